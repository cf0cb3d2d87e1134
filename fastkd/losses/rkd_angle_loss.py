# SPDX-License-Identifier: Apache-2.0
"""Relational distillation by the angles of triplets."""

import functools

from torch import Tensor

from fastkd._relational_options import Criterion, RelationReduction, RKDAngleOptions
from fastkd.losses._module import CosinesModule
from fastkd.losses._path import call_on_embeddings, options_of
from fastkd.ops.rkd_loss import angle as paths
from fastkd.reference.rkd_angle_loss import evaluate

_call = functools.partial(call_on_embeddings, paths, evaluate)


def rkd_angle_loss(
    student_embeddings: Tensor,
    teacher_embeddings: Tensor,
    *,
    criterion: Criterion = "smooth_l1",
    beta: float = 1.0,
    reduction: RelationReduction = "mean",
    eps: float = 1e-12,
) -> Tensor:
    r"""Compare the angles that every three examples of a batch form.

    With the direction :math:`e_{ij} = (x_i - x_j) / \|x_i - x_j\|_2` of each side and the cosine
    :math:`a_{ijk} = \langle e_{ij}, e_{kj} \rangle` at :math:`x_j`, the loss is the mean over all
    i, j and k of

    .. math::
        \ell_{ijk} = \mathrm{criterion}(a_{ijk}^S - a_{ijk}^T)

    Moving, turning or scaling all embeddings does not change the angles. The kernels compute the
    :math:`N^3` cosines from squared distances when they need them: the memory is O(N^2), the time
    O(N^3), and a large common offset loses no digits. Arithmetic is float32 or better. The gradient
    is computed together with the loss. Double backward (create_graph) uses the PyTorch reference,
    which needs N x N x D and N x N x N numbers.

    Two examples no further apart than `eps` have no direction: their cosines are 0 and give them no
    gradient. If the same two examples are further apart for the teacher, their triplets still add
    to the loss. Triplets with i = j or k = j add 0. Triplets with i = k have cosine 1 and add 0,
    unless one side has no direction there. With N = 1 the loss is 0. NaN or infinity in the
    embeddings gives NaN.

    If two of the student's examples are nearer than 1/64 of the largest distance in the batch (for
    the teacher: 1.5e-5), the kernels compute in float64, which takes about four times as long. The
    reason is that the gradients which two near examples give to the others almost cancel. If two
    examples are nearer than 1e-8 of the largest distance, float64 loses digits too.

    Args:
        student_embeddings: (N, D), float32, bfloat16, float16 (kernels), or float64 (reference).
            The only argument that gets a gradient.
        teacher_embeddings: (N, D'), rows of the same examples; width and dtype may differ. Need not
            be detached; to train the teacher too, see `fastkd.reference`.
        criterion: "smooth_l1" (Huber's function over `beta`) or "l1", as in torch.nn.functional, or
            "l2" (the square, without 1/2).
        beta: the difference at which "smooth_l1" changes from the square to the absolute value, in
            [1e-18, 1e18].
        reduction: "mean" over all N^3 entries, as the original code, "sum", or "mean_distinct" over
            the N (N - 1) (N - 2) triplets of different examples.
        eps: two examples no further apart have no direction; in [1e-18, 1e18].

    Returns:
        The loss, 0-d: float32, or float64 if one of the embeddings is float64.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes, devices or values that do not fit.
        RuntimeError: CUDA refused a kernel, or FASTKD_REQUIRE_NATIVE=1 and there is no kernel.

    References:
        Park, Kim, Lu, Cho: Relational Knowledge Distillation, CVPR 2019, arXiv:1904.05068,
        equations 7 to 9. The authors divide by max(distance, eps); here, near examples have no
        direction.

    Example:
        >>> import torch, fastkd
        >>> student = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], requires_grad=True)
        >>> teacher = torch.tensor([[0.0], [1.0], [2.0]])
        >>> loss = fastkd.rkd_angle_loss(student, teacher)
        >>> loss.backward()
        >>> round(loss.item(), 4)
        0.1296
    """
    options = options_of(RKDAngleOptions, criterion, beta, reduction, eps)
    return _call(student_embeddings, teacher_embeddings, options)


class RKDAngleLoss(CosinesModule):
    """Module form of `fastkd.rkd_angle_loss`: it stores the options."""

    _call = staticmethod(_call)
    _options = RKDAngleOptions
