# SPDX-License-Identifier: Apache-2.0
"""Attention transfer."""

from torch import Tensor

from fastkd._attention_options import AttentionTransferOptions, MapReduction
from fastkd._feature_validation import check_maps
from fastkd.losses._module import LossModule
from fastkd.losses._path import call, options_of
from fastkd.ops.attention_transfer_loss import paths
from fastkd.reference.attention_transfer_loss import evaluate, with_one_size


def attention_transfer_loss(
    student_features: Tensor,
    teacher_features: Tensor,
    *,
    p: float = 2.0,
    interpolate: bool = False,
    reduction: MapReduction = "mean",
) -> Tensor:
    r"""Compare the positions at which the features are active.

    The map of an example has the value :math:`Q = \frac{1}{C} \sum_c |x_c|^p` at each position.
    With :math:`A = Q / \max(\|Q\|_2, 10^{-12})` of each side, the loss is the mean over all
    examples and positions of

    .. math::
        \ell = (A^S - A^T)^2

    Arithmetic is float32 or better. The kernels keep one number for each position between forward
    and backward. Backward reads the student's features again, so they must not change in place
    before backward. Double backward (create_graph) uses the PyTorch reference.

    Features that are all 0 have the map 0 and get the gradient 0. NaN or infinity gives NaN. In the
    kernels, a number whose p-th power overflows float32 (|x| above 1e4 for p = 8) can also give
    NaN.

    Args:
        student_features: (N, C, ...) with at least one dimension of positions, usually
            (N, C, H, W); float32, bfloat16, float16 (kernels), or float64 (reference). The only
            argument that gets a gradient.
        teacher_features: (N, C', ...), of the same examples and positions; channels and dtype may
            differ. Need not be detached; to train the teacher too, see `fastkd.reference`.
        p: the power, > 0. With p <= 1 the map has no slope at 0, and the gradient is 0 there.
        interpolate: whether the heights and widths of (N, C, H, W) may differ. If so, torch's
            adaptive_avg_pool2d averages the larger of each down to the smaller.
        reduction: "mean" over all N examples and H W positions, as in the original code, or "sum".

    Returns:
        The loss, 0-d: float32, or float64 if one of the features is float64.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes, devices or values that do not fit.
        RuntimeError: CUDA refused a kernel, or FASTKD_REQUIRE_NATIVE=1 and there is no kernel.

    References:
        Zagoruyko, Komodakis: Paying More Attention to Attention: Improving the Performance of
        Convolutional Neural Networks via Attention Transfer, ICLR 2017, arXiv:1612.03928, equation
        2. The equation has the norm of the difference. Here, as in the authors' code, the loss is
        the mean square.

    Example:
        >>> import torch, fastkd
        >>> student = torch.tensor([3.0, 4.0], requires_grad=True)
        >>> teacher = torch.ones(1, 8, 1, 2)
        >>> loss = fastkd.attention_transfer_loss(student.reshape(1, 1, 1, 2), teacher)
        >>> loss.backward()
        >>> round(loss.item(), 4)
        0.037
    """
    options = options_of(AttentionTransferOptions, p, interpolate, reduction)
    return _call(student_features, teacher_features, options)


class AttentionTransferLoss(LossModule):
    """Module form of `fastkd.attention_transfer_loss`: it stores the options."""

    def __init__(
        self, *, p: float = 2.0, interpolate: bool = False, reduction: MapReduction = "mean"
    ) -> None:
        """Store the options; see `fastkd.attention_transfer_loss`."""
        super().__init__(AttentionTransferOptions(p, interpolate, reduction))

    def forward(self, student_features: Tensor, teacher_features: Tensor) -> Tensor:
        """Compute the loss; see `fastkd.attention_transfer_loss`."""
        return _call(student_features, teacher_features, self.options)


def _call(student: Tensor, teacher: Tensor, options: AttentionTransferOptions) -> Tensor:
    check_maps("attention_transfer_loss", student, teacher, options.interpolate)
    if options.interpolate:
        student, teacher = with_one_size(student, teacher.detach())
    return call(paths, evaluate, student, teacher, options)
