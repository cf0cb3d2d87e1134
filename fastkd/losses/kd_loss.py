# SPDX-License-Identifier: Apache-2.0
"""Knowledge distillation with soft targets at a temperature."""

import torch
from torch import Tensor

from fastkd import _front, _validation
from fastkd._options import Divergence, KDLossInputs, KDLossOptions, Reduction
from fastkd.losses._module import LossModule
from fastkd.losses._path import options_of
from fastkd.ops import kd_loss as ops
from fastkd.ops._constant import constant
from fastkd.reference.kd_loss import evaluate as evaluate_reference


def kd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor | None = None,
    *,
    temperature: float = 1.0,
    alpha: float = 0.5,
    divergence: Divergence = "forward_kl",
    dim: int = -1,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    num_items: int | Tensor | None = None,
    temperature_squared: bool = True,
    common_vocab: bool = False,
) -> Tensor:
    r"""Distil a student from a teacher's soft targets, and from labels where there are any.

    With :math:`p = \mathrm{softmax}(t / T)` of the teacher and
    :math:`q = \mathrm{softmax}(s / T)` of the student, the loss of a row is

    .. math::
        \ell = \alpha \, T^2 \, \mathrm{KL}(p \,\|\, q)
             + (1 - \alpha) \, \mathrm{CE}(\mathrm{softmax}(s), y)

    in nats, and :math:`\ell = T^2 \, \mathrm{KL}(p \| q)` without a target. The cross-entropy is
    taken at temperature 1. A class with p = 0 adds 0, and q = 0 where p > 0 gives +inf, so logits
    of -inf (masked classes) are legal; a row that is all -inf, or holds NaN or +inf, gives NaN.
    Equal logits give a divergence and a gradient of exactly 0 in the kernels.

    Arithmetic is float32 at least, whatever the logits' type. The gradient is computed together
    with the loss; double backward (create_graph) runs through the PyTorch reference. As for any op
    that keeps its input, the student's logits must not change in place before backward.

    Args:
        student_logits: (..., C, ...) with the classes in `dim`; float32, bfloat16, float16
            (kernels), or float64 (reference). The only argument that gets a gradient.
        teacher_logits: the same shape, its own dtype. Need not be detached; to train the teacher
            too, see `fastkd.reference`.
        target: int64 class indices in [0, C), the logits' shape without `dim`. Rows whose target is
            `ignore_index` give loss 0 and gradient 0 in both terms, whatever their logits hold.
        temperature: T, in [1e-6, 1e6].
        alpha: weight of the distillation term, in [0, 1]; the hard term weighs 1 - alpha.
            (Libraries disagree: torchdistill's alpha weighs the hard term.) Has no effect without
            a target.
        divergence: "forward_kl", the only one so far.
        dim: the class dimension: -1 for (N, C) and (B, T, V), 1 for (N, C, H, W).
        ignore_index: the target value of rows that do not count.
        label_smoothing: in [0, 1], of the hard term, as in torch.nn.functional.cross_entropy.
        sample_weight: non-negative weight of each row, the logits' shape without `dim`, any
            floating dtype; values are not checked. Rows of weight 0 do not count. Gets no gradient.
        reduction: "none" (the logits' shape without `dim`), "sum", "mean" (over the rows that
            count, by weight), or "batchmean" (sum / size of the first dimension that is not `dim`).
        num_items: replaces the denominator of "mean" and "batchmean": gradient accumulation and
            data parallel training need one count for all parts. 0 gives loss 0. A count that is on
            the GPU stays there (negative: NaN).
        temperature_squared: whether T^2 multiplies the divergence, which keeps the gradient's scale
            independent of T.
        common_vocab: whether the class counts may differ (padded vocabularies). The soft term
            then takes the first min(C_s, C_t) classes, renormalised; the hard term takes all of the
            student's.

    Returns:
        The loss: float32, or float64 if one of the logits is. Where no row counts it is 0 with a
        gradient of 0.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes, devices or values that do not fit.
        IndexError: a target outside [0, C) that is not `ignore_index`, on the CPU. On CUDA nothing
            waits for the device to look: such a row's loss and gradient are NaN.
        RuntimeError: CUDA refused a kernel, or FASTKD_REQUIRE_NATIVE=1 and there is none.

    References:
        Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, arXiv:1503.02531,
        section 2.

    Example:
        >>> import torch, fastkd
        >>> student = torch.tensor([[2.0, 0.0, -1.0]], requires_grad=True)
        >>> teacher = torch.tensor([[1.0, 1.0, -2.0]])
        >>> loss = fastkd.kd_loss(student, teacher, torch.tensor([0]), temperature=4.0, alpha=0.9)
        >>> loss.backward()
        >>> round(loss.item(), 4)
        0.4331
    """
    return _call(
        KDLossInputs(student_logits, teacher_logits, target, sample_weight, num_items),
        options_of(
            KDLossOptions,
            temperature,
            alpha,
            divergence,
            dim,
            ignore_index,
            label_smoothing,
            reduction,
            temperature_squared,
            common_vocab,
        ),
    )


class KDLoss(LossModule):
    """Module form of `fastkd.kd_loss`: it stores the options that are not tensors."""

    def __init__(
        self,
        *,
        temperature: float = 1.0,
        alpha: float = 0.5,
        divergence: Divergence = "forward_kl",
        dim: int = -1,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        reduction: Reduction = "mean",
        temperature_squared: bool = True,
        common_vocab: bool = False,
    ) -> None:
        """Store the options; see `fastkd.kd_loss`."""
        super().__init__(
            KDLossOptions(
                temperature,
                alpha,
                divergence,
                dim,
                ignore_index,
                label_smoothing,
                reduction,
                temperature_squared,
                common_vocab,
            )
        )

    def forward(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        target: Tensor | None = None,
        *,
        sample_weight: Tensor | None = None,
        num_items: int | Tensor | None = None,
    ) -> Tensor:
        """Compute the loss; see `fastkd.kd_loss`."""
        inputs = KDLossInputs(student_logits, teacher_logits, target, sample_weight, num_items)
        return _call(inputs, self.options)


def _call(inputs: KDLossInputs, options: KDLossOptions) -> Tensor:
    if _front.is_ordinary_call(inputs, options.dim):
        return ops.eager(inputs, options)
    _validation.check_kd_loss(inputs, options)
    path = _front.choose_path(*inputs[:4])
    if path != "reference":
        return (ops.eager if path == "eager" else ops.compiled)(inputs, options)
    if not torch.compiler.is_compiling() and not _front.in_transform():
        _check_values(inputs, options)
    inputs = inputs.constant()._replace(teacher=constant(inputs.teacher))
    return evaluate_reference(inputs, options)


def _check_values(inputs: KDLossInputs, options: KDLossOptions) -> None:
    """What the kernels check as they read, for the reference: only where looking costs no sync."""
    target, num_items = inputs.target, inputs.num_items
    if target is not None and _front.is_plain(target) and not target.is_cuda:
        classes = inputs.student.shape[options.dim]
        _validation.check_target_range("kd_loss", target, options.ignore_index, classes)
    if isinstance(num_items, Tensor) and _front.is_plain(num_items) and not num_items.is_cuda:
        _validation.read_num_items("kd_loss", num_items)
