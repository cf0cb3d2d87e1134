# SPDX-License-Identifier: Apache-2.0
"""Relational distillation by the distances of pairs."""

import functools

from torch import Tensor

from fastkd._relational_options import Criterion, RelationReduction, RKDDistanceOptions
from fastkd.losses._module import EmbeddingsModule
from fastkd.losses._path import call_on_embeddings, options_of
from fastkd.ops.rkd_loss import distance as paths
from fastkd.reference.rkd_distance_loss import evaluate

_call = functools.partial(call_on_embeddings, paths, evaluate)


def rkd_distance_loss(
    student_embeddings: Tensor,
    teacher_embeddings: Tensor,
    *,
    criterion: Criterion = "smooth_l1",
    beta: float = 1.0,
    reduction: RelationReduction = "mean",
    squared: bool = False,
    eps: float = 1e-12,
) -> Tensor:
    r"""Compare the distances between the examples of a batch, relative to their mean.

    With :math:`d_{ij} = \|x_i - x_j\|_2` of each side and :math:`\mu` its mean over all pairs
    :math:`i \ne j`, the loss is the mean over all i and j of

    .. math::
        \ell_{ij} = \mathrm{criterion}(d_{ij}^S / \mu^S - d_{ij}^T / \mu^T)

    The gradient includes the dependence on the student's mean. Distances are computed from
    differences of embeddings, so a large common offset or near duplicates lose no digits.

    Arithmetic is float32 or better. The gradient is computed together with the loss, in O(N^2)
    memory. Double backward (create_graph) uses the PyTorch reference.

    An example has distance 0 to itself and adds 0. Two examples with
    :math:`\|x_i - x_j\|^2 \le` `eps` have the distance :math:`\sqrt{\mathrm{eps}}`, also in the
    mean, and get no gradient from this pair. With N = 1 the loss is 0. NaN or infinity in the
    embeddings gives NaN. In the kernels, vectors longer than 1e18 can also give NaN, because their
    squares overflow float32.

    Args:
        student_embeddings: (N, D), float32, bfloat16, float16 (kernels), or float64 (reference).
            The only argument that gets a gradient.
        teacher_embeddings: (N, D'), rows of the same examples; width and dtype may differ. Need not
            be detached; to train the teacher too, see `fastkd.reference`.
        criterion: "smooth_l1" (Huber's function over `beta`) or "l1", as in torch.nn.functional, or
            "l2" (the square, without 1/2).
        beta: the difference at which "smooth_l1" changes from the square to the absolute value, in
            [1e-18, 1e18].
        reduction: "mean" over all N^2 entries, as the original code, "sum", or "mean_distinct" over
            the N (N - 1) pairs of different examples.
        squared: whether d is the squared distance.
        eps: lower bound of the squared distances, in [1e-18, 1e18].

    Returns:
        The loss, 0-d: float32, or float64 if one of the embeddings is float64.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes, devices or values that do not fit.
        RuntimeError: CUDA refused a kernel, or FASTKD_REQUIRE_NATIVE=1 and there is no kernel.

    References:
        Park, Kim, Lu, Cho: Relational Knowledge Distillation, CVPR 2019, arXiv:1904.05068,
        equations 4 to 6. The authors weigh this loss by 25 and `rkd_angle_loss` by 50;
        `rkd_loss` computes both in one call.

    Example:
        >>> import torch, fastkd
        >>> student = torch.tensor([[0.0], [1.0], [3.0]], requires_grad=True)
        >>> teacher = torch.tensor([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]])
        >>> loss = fastkd.rkd_distance_loss(student, teacher)
        >>> loss.backward()
        >>> round(loss.item(), 4)
        0.0139
    """
    options = options_of(RKDDistanceOptions, criterion, beta, reduction, squared, eps)
    return _call(student_embeddings, teacher_embeddings, options)


class RKDDistanceLoss(EmbeddingsModule):
    """Module form of `fastkd.rkd_distance_loss`: it stores the options."""

    _call = staticmethod(_call)

    def __init__(
        self,
        *,
        criterion: Criterion = "smooth_l1",
        beta: float = 1.0,
        reduction: RelationReduction = "mean",
        squared: bool = False,
        eps: float = 1e-12,
    ) -> None:
        """Store the options; see `fastkd.rkd_distance_loss`."""
        super().__init__(RKDDistanceOptions(criterion, beta, reduction, squared, eps))
