# SPDX-License-Identifier: Apache-2.0
"""Logit matching: the squared difference of the logits."""

import torch
from torch import Tensor

from fastkd import _front
from fastkd._feature_options import LogitMSEOptions
from fastkd._options import Reduction
from fastkd._validation import check_weighted_logits, read_num_items
from fastkd.losses._module import LossModule
from fastkd.losses._path import options_of
from fastkd.ops._constant import constant
from fastkd.reference.logit_mse_loss import evaluate


def logit_mse_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    dim: int = -1,
    zero_mean: bool = False,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    num_items: int | Tensor | None = None,
) -> Tensor:
    r"""Compute the mean squared difference of the logits.

    The loss of a row is the mean over its C classes

    .. math::
        \ell = \frac{1}{C} \sum_c (s_c - t_c)^2

    with the mean over the classes subtracted from each side first if `zero_mean`. PyTorch's own
    fused operations compute it, so it has no kernel.

    It is the limit of soft targets at high temperature. Without labels, the
    :math:`T^2 \, \mathrm{KL}` of `fastkd.kd_loss` tends to half of this loss with `zero_mean`, at
    the rate 1 / T. Softmax does not depend on the mean of a row, but this loss does. Use
    `zero_mean` if the mean of the student's logits should be free.

    Arithmetic is float32 or better for every dtype of the logits. Infinite logits give infinity or
    NaN, so leave masked classes out.

    Args:
        student_logits: (..., C, ...) with the classes in `dim`; float32, bfloat16, float16 or
            float64. The only argument that gets a gradient.
        teacher_logits: the same shape; its dtype may differ. Need not be detached; to train the
            teacher too, see `fastkd.reference`.
        dim: the class dimension: -1 for (N, C) and (B, T, V), 1 for (N, C, H, W).
        zero_mean: whether each row's mean over its classes is subtracted from the logits.
        sample_weight: non-negative weight of each row, the logits' shape without `dim`, any
            floating dtype; values are not checked. Rows of weight 0 do not count and may hold
            anything, NaN too. Gets no gradient.
        reduction: "none" (the logits' shape without `dim`), "sum", "mean" (over the rows that
            count, by weight), or "batchmean" (sum / size of the first dimension that is not `dim`).
        num_items: replaces the denominator of "mean" and "batchmean". Gradient accumulation and
            data parallel training need one count for all parts. 0 gives loss 0.

    Returns:
        The loss: float32, or float64 if one of the logits is float64. If no row counts, the loss
        and its gradient are 0.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes, devices or values that do not fit.

    References:
        Ba, Caruana: Do Deep Nets Really Need to be Deep?, arXiv:1312.6184, equation 1 (half of the
        sum over the classes: C / 2 times this loss). The limit: Hinton, Vinyals, Dean: Distilling
        the Knowledge in a Neural Network, arXiv:1503.02531, section 2.1.

    Example:
        >>> import torch, fastkd
        >>> student = torch.tensor([[2.0, 0.0, -1.0]], requires_grad=True)
        >>> teacher = torch.tensor([[1.0, 1.0, -2.0]])
        >>> loss = fastkd.logit_mse_loss(student, teacher)
        >>> loss.backward()
        >>> round(loss.item(), 4)
        1.0
        >>> round(fastkd.logit_mse_loss(student, teacher, zero_mean=True).item(), 4)
        0.8889
    """
    options = options_of(LogitMSEOptions, dim, zero_mean, reduction)
    return _call(student_logits, teacher_logits, sample_weight, num_items, options)


class LogitMSELoss(LossModule):
    """Module form of `fastkd.logit_mse_loss`: it stores the options that are not tensors."""

    def __init__(
        self, *, dim: int = -1, zero_mean: bool = False, reduction: Reduction = "mean"
    ) -> None:
        """Store the options; see `fastkd.logit_mse_loss`."""
        super().__init__(LogitMSEOptions(dim, zero_mean, reduction))

    def forward(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        *,
        sample_weight: Tensor | None = None,
        num_items: int | Tensor | None = None,
    ) -> Tensor:
        """Compute the loss; see `fastkd.logit_mse_loss`."""
        return _call(student_logits, teacher_logits, sample_weight, num_items, self.options)


def _call(
    student: Tensor,
    teacher: Tensor,
    sample_weight: Tensor | None,
    num_items: int | Tensor | None,
    options: LogitMSEOptions,
) -> Tensor:
    check_weighted_logits(
        "logit_mse_loss",
        student,
        teacher,
        options.dim,
        sample_weight,
        num_items,
        options.reduction,
    )
    if isinstance(num_items, Tensor):
        num_items = constant(num_items)
        _check_value(num_items)
    if sample_weight is not None:
        sample_weight = constant(sample_weight)
    return evaluate(student, constant(teacher), sample_weight, num_items, options)


def _check_value(num_items: Tensor) -> None:
    """Only where looking costs no sync."""
    if torch.compiler.is_compiling() or _front.in_transform():
        return
    if _front.is_plain(num_items) and not num_items.is_cuda:
        read_num_items("logit_mse_loss", num_items)
