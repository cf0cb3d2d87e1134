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
    r"""Distil the angles that every three examples of a batch make.

    With the direction :math:`e_{ij} = (x_i - x_j) / \|x_i - x_j\|_2` of each side and the cosine
    :math:`a_{ijk} = \langle e_{ij}, e_{kj} \rangle` at :math:`x_j`, the loss is the mean over all
    i, j and k of

    .. math::
        \ell_{ijk} = \mathrm{criterion}(a_{ijk}^S - a_{ijk}^T)

    Angles do not change where all embeddings are moved, turned or scaled. The kernels take the
    :math:`N^3` cosines from squared distances as they need them: memory is O(N^2), time O(N^3), and
    a large common offset costs no digits. Arithmetic is float32 at least; the gradient is computed
    together with the loss; double backward (create_graph) runs through the PyTorch reference, which
    holds N x N x D and N x N x N numbers.

    Degenerate triplets: two examples no further apart than `eps` have no direction, so their
    cosines are 0 and nothing moves them, while a teacher that tells them apart still adds to the
    loss. Triplets with i = j or k = j add 0. So do those with i = k (cosine 1), unless one side
    has no direction there. With N = 1 the loss is 0. NaN or infinity in the embeddings gives NaN.
    Where some pair of students is nearer than 1/64 of their largest distance (of teachers: 1e-5),
    the kernels compute in float64, at about four times the time: near pairs pull all others by
    forces that nearly cancel. Below 1e-8 of it even that loses digits.

    Args:
        student_embeddings: (N, D), float32, bfloat16, float16 (kernels), or float64 (reference).
            The only argument that gets a gradient.
        teacher_embeddings: (N, D'), rows of the same examples; its own width and dtype. Need not be
            detached; to train the teacher too, see `fastkd.reference`.
        criterion: "smooth_l1" (Huber's function over `beta`), "l1" or "l2" (the square, without
            1/2), as torch.nn.functional's losses of those names.
        beta: where "smooth_l1" goes from the square to the absolute value, in [1e-18, 1e18].
        reduction: "mean" over all N^3 entries, as the original code, "sum", or "mean_distinct" over
            the N (N - 1) (N - 2) triplets of different examples.
        eps: the largest distance that has no direction, in [1e-18, 1e18].

    Returns:
        The loss, 0-d: float32, or float64 if one of the embeddings is.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes, devices or values that do not fit.
        RuntimeError: CUDA refused a kernel, or FASTKD_REQUIRE_NATIVE=1 and there is none.

    References:
        Park, Kim, Lu, Cho: Relational Knowledge Distillation, CVPR 2019, arXiv:1904.05068,
        equations 7 to 9. The authors divide by max(distance, eps) where we take no direction.

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
