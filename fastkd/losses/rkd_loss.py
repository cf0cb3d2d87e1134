# SPDX-License-Identifier: Apache-2.0
"""Relational distillation by distances and angles together."""

import functools

from torch import Tensor

from fastkd._relational_options import Criterion, RelationReduction, RKDOptions
from fastkd.losses._module import EmbeddingsModule
from fastkd.losses._path import call_on_embeddings, options_of
from fastkd.ops.rkd_loss import both as paths
from fastkd.reference.rkd_loss import evaluate

_call = functools.partial(call_on_embeddings, paths, evaluate)


def rkd_loss(
    student_embeddings: Tensor,
    teacher_embeddings: Tensor,
    *,
    distance_weight: float = 25.0,
    angle_weight: float = 50.0,
    criterion: Criterion = "smooth_l1",
    beta: float = 1.0,
    reduction: RelationReduction = "mean",
    squared: bool = False,
    eps: float = 1e-12,
) -> Tensor:
    r"""Compare the distances and the angles in a batch: relational knowledge distillation.

    .. math::
        \ell = w_D \, \ell_{\mathrm{distance}} + w_A \, \ell_{\mathrm{angle}}

    The two parts are `rkd_distance_loss` and `rkd_angle_loss`. One call computes both, and computes
    the distances once. A part with weight 0 is not computed. The docstrings of the two functions
    explain degenerate pairs and triplets. With N = 1 the loss is 0. NaN or infinity in the
    embeddings gives NaN. If both weights are 0, the embeddings are not read and the loss is 0.
    With `angle_weight=0`, embeddings longer than 1e18 can also give NaN in the kernels, because
    their squares overflow float32.

    Args:
        student_embeddings: (N, D), float32, bfloat16, float16 (kernels), or float64 (reference).
            The only argument that gets a gradient.
        teacher_embeddings: (N, D'), rows of the same examples; width and dtype may differ. Need not
            be detached; to train the teacher too, see `fastkd.reference`.
        distance_weight: weight of the distance loss, >= 0; 25 is the authors'.
        angle_weight: weight of the angle loss, >= 0; 50 is the authors'.
        criterion: "smooth_l1" (Huber's function over `beta`) or "l1", as in torch.nn.functional, or
            "l2" (the square, without 1/2).
        beta: the difference at which "smooth_l1" changes from the square to the absolute value, in
            [1e-18, 1e18].
        reduction: "mean" over all N^2 pairs and N^3 triplets, as the original code, "sum", or
            "mean_distinct" over those of different examples.
        squared: whether the distance loss compares squared distances.
        eps: lower bound of the squared distances in the distance loss. In the angle loss, two
            examples no further apart than eps have no direction. In [1e-18, 1e18].

    Returns:
        The loss, 0-d: float32, or float64 if one of the embeddings is float64.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes, devices or values that do not fit.
        RuntimeError: CUDA refused a kernel, or FASTKD_REQUIRE_NATIVE=1 and there is no kernel.

    References:
        Park, Kim, Lu, Cho: Relational Knowledge Distillation, CVPR 2019, arXiv:1904.05068,
        section 3.2.

    Example:
        >>> import torch, fastkd
        >>> student = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], requires_grad=True)
        >>> teacher = torch.tensor([[0.0], [1.0], [2.0]])
        >>> loss = fastkd.rkd_loss(student, teacher)
        >>> loss.backward()
        >>> round(loss.item(), 3)
        8.274
    """
    options = options_of(
        RKDOptions, distance_weight, angle_weight, criterion, beta, reduction, squared, eps
    )
    return _call(student_embeddings, teacher_embeddings, options)


class RKDLoss(EmbeddingsModule):
    """Module form of `fastkd.rkd_loss`: it stores the options."""

    _call = staticmethod(_call)

    def __init__(
        self,
        *,
        distance_weight: float = 25.0,
        angle_weight: float = 50.0,
        criterion: Criterion = "smooth_l1",
        beta: float = 1.0,
        reduction: RelationReduction = "mean",
        squared: bool = False,
        eps: float = 1e-12,
    ) -> None:
        """Store the options; see `fastkd.rkd_loss`."""
        super().__init__(
            RKDOptions(distance_weight, angle_weight, criterion, beta, reduction, squared, eps)
        )
