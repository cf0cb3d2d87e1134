# SPDX-License-Identifier: Apache-2.0
"""Neuron selectivity transfer: the positions at which the channels respond."""

from torch import Tensor

from fastkd._feature_options import ExampleReduction, NSTOptions
from fastkd._feature_validation import check_maps
from fastkd.losses._module import LossModule
from fastkd.losses._path import options_of
from fastkd.ops._constant import constant
from fastkd.reference.nst_loss import evaluate


def nst_loss(
    student_features: Tensor,
    teacher_features: Tensor,
    *,
    interpolate: bool = False,
    reduction: ExampleReduction = "mean",
) -> Tensor:
    r"""Compare the distributions of the channels' selectivity patterns.

    A channel's map, flattened over its positions and scaled to Euclidean norm 1, is one sample. The
    loss of an example is the squared maximum mean discrepancy between the student's samples
    :math:`s_i` and the teacher's samples :math:`t_j`, for the polynomial kernel
    :math:`k(x, y) = (x^\top y)^2`:

    .. math::
        \ell = \frac{1}{C_S^2} \sum_{ij} k(s_i, s_j) + \frac{1}{C_T^2} \sum_{ij} k(t_i, t_j)
             - \frac{2}{C_S C_T} \sum_{ij} k(s_i, t_j)
             = \Big\| \frac{S^\top S}{C_S} - \frac{T^\top T}{C_T} \Big\|_F^2

    with S of shape (C, positions). It is computed from Gram matrices over the channels, or over the
    positions if that is less work (small maps of many channels). Over the positions, no digits
    cancel. Over the channels, the three terms are subtracted. The loss then has the rounding error
    of its largest term, about 1e-7 in float32, and can be below 0 by that much. Equal features give
    exactly 0.

    A map with a norm of at most 1e-12 counts as zeros and gets no gradient. Norms above 1e18 can
    give NaN.

    Arithmetic is float32 or better for every dtype of the features. Autocast does not change this.
    Call backward outside of autocast, as PyTorch recommends: inside, the products of backward run
    in half precision.

    Args:
        student_features: (N, C, H, W) or (N, C, ...), float32, bfloat16, float16 or float64. The
            only argument that gets a gradient.
        teacher_features: (N, C', H, W); channels and dtype may differ. Need not be detached; to
            train the teacher too, see `fastkd.reference`.
        interpolate: whether the heights and widths may differ. If so, adaptive_avg_pool2d averages
            the larger of each down to the smaller.
        reduction: "mean" or "sum" over the examples.

    Returns:
        The loss, 0-d: float32, or float64 if one of the features is float64.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes, devices or values that do not fit.

    References:
        Huang, Wang: Like What You Like: Knowledge Distill via Neuron Selectivity Transfer,
        arXiv:1707.01219, section 4, the polynomial kernel with d = 2 and c = 0.

    Example:
        >>> import torch, fastkd
        >>> student = torch.tensor([1.0, 0.0]).view(1, 1, 1, 2).requires_grad_()
        >>> teacher = torch.tensor([[3.0, 4.0], [4.0, -3.0]]).view(1, 2, 1, 2)
        >>> loss = fastkd.nst_loss(student, teacher)
        >>> loss.backward()
        >>> round(loss.item(), 4)
        0.5
    """
    options = options_of(NSTOptions, interpolate, reduction)
    return _call(student_features, teacher_features, options)


class NSTLoss(LossModule):
    """Module form of `fastkd.nst_loss`: it stores the options."""

    def __init__(self, *, interpolate: bool = False, reduction: ExampleReduction = "mean") -> None:
        """Store the options; see `fastkd.nst_loss`."""
        super().__init__(NSTOptions(interpolate, reduction))

    def forward(self, student_features: Tensor, teacher_features: Tensor) -> Tensor:
        """Compute the loss; see `fastkd.nst_loss`."""
        return _call(student_features, teacher_features, self.options)


def _call(student: Tensor, teacher: Tensor, options: NSTOptions) -> Tensor:
    check_maps("nst_loss", student, teacher, options.interpolate)
    return evaluate(student, constant(teacher), options)
