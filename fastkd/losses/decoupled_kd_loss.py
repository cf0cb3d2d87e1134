# SPDX-License-Identifier: Apache-2.0
"""Decoupled knowledge distillation: separate weights for the label and the other classes."""

from torch import Tensor

from fastkd import _front
from fastkd._options import DecoupledKDLossOptions, KDLossInputs, Reduction
from fastkd._validation import check_decoupled_kd_loss
from fastkd.losses._module import LossModule
from fastkd.losses._path import call_on_rows, options_of
from fastkd.ops.decoupled_kd_loss import PATHS
from fastkd.reference.decoupled_kd_loss import evaluate


def decoupled_kd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    *,
    temperature: float = 4.0,
    alpha: float = 1.0,
    beta: float = 8.0,
    hard_weight: float = 0.0,
    dim: int = -1,
    ignore_index: int = -100,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    num_items: int | Tensor | None = None,
    temperature_squared: bool = True,
    inplace: bool = False,
) -> Tensor:
    r"""Compute a distillation loss with separate weights for the label and the other classes.

    With :math:`p = \mathrm{softmax}(t / T)` of the teacher,
    :math:`q = \mathrm{softmax}(s / T)` of the student, y the row's label, and
    :math:`\hat p, \hat q` the same softmax of the classes that are not y, the loss of a row is

    .. math::
        \ell = T^2 \big[ \alpha \, \mathrm{KL}\big((p_y, 1 - p_y) \,\|\, (q_y, 1 - q_y)\big)
             + \beta \, \mathrm{KL}(\hat p \,\|\, \hat q) \big]
             + w \, \mathrm{CE}(\mathrm{softmax}(s), y)

    in nats, where w is `hard_weight`. The first term is the paper's target-class distillation
    (TCKD), the second its non-target-class distillation (NCKD). Forward KL is the special case
    :math:`\alpha = 1, \beta = 1 - p_y`. It gives the other classes a small weight if the teacher is
    confident about the label. A constant beta keeps their weight the same in all rows.

    The paper's trainer adds the cross-entropy with weight 1 (`hard_weight=1.0`). It also raises the
    weight of the two other terms from 0 over the first 20 epochs. To do this, multiply alpha and
    beta by min(epoch / 20, 1).

    The sums over the other classes leave out the label and are not differences from 1. So the loss
    is finite even if the label takes all of the softmax (logits thousands apart). Classes at -inf
    on both sides are masked. If only the student masks a class, the loss is +inf. If the teacher
    masks all classes but the label, the second term is 0. NaN gives NaN, and so does +inf in a
    class that is not the label. +inf at the label means a probability of 1. Equal logits give a
    soft loss and gradient of exactly 0 in the kernels. A term with weight 0 is not computed.

    Arithmetic is float32 or better for every dtype of the logits. The gradient is computed together
    with the loss, in one pass over the logits. Double backward (create_graph) uses the PyTorch
    reference.

    Args:
        student_logits: (..., C, ...) with the classes in `dim`; float32, bfloat16, float16
            (kernels), or float64 (reference). The only argument that gets a gradient.
        teacher_logits: the same shape; its dtype may differ. Need not be detached; to train the
            teacher too, see `fastkd.reference`.
        target: int64 class indices in [0, C), the logits' shape without `dim`. Rows whose target is
            `ignore_index` give loss 0 and gradient 0, whatever their logits hold.
        temperature: T, in [1e-6, 1e6].
        alpha: weight of the label's term, in [0, 1e6]. It does not weigh soft against hard terms.
        beta: weight of the other classes' term, in [0, 1e6] (the paper: 8 for CIFAR-100, 0.5 for
            ImageNet).
        hard_weight: weight of the cross-entropy, at temperature 1, in [0, 1e6].
        dim: the class dimension: -1 for (N, C), 1 for (N, C, H, W).
        ignore_index: the target value of rows that do not count.
        sample_weight: non-negative weight of each row, the logits' shape without `dim`, any
            floating dtype; values are not checked. Rows of weight 0 do not count. Gets no gradient.
        reduction: "none" (the logits' shape without `dim`), "sum", "mean" (over the rows that
            count, by weight), or "batchmean" (sum / size of the first dimension that is not `dim`).
        num_items: replaces the denominator of "mean" and "batchmean", as in `fastkd.kd_loss`.
        temperature_squared: whether T^2 multiplies the two divergences.
        inplace: whether the gradient may be written over the student's logits, as in
            `fastkd.kd_loss`.

    Returns:
        The loss: float32, or float64 if one of the logits is float64. If no row counts, the loss
        and its gradient are 0.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes, devices or values that do not fit.
        IndexError: a target outside [0, C) that is not `ignore_index`, on the CPU. On CUDA, the
            loss and the gradient of its row are NaN.
        RuntimeError: CUDA refused a kernel, or FASTKD_REQUIRE_NATIVE=1 and there is no kernel.

    References:
        Zhao, Cui, Song, Qiu, Liang: Decoupled Knowledge Distillation, arXiv:2203.08679, equation 7.

    Example:
        >>> import torch, fastkd
        >>> student = torch.tensor([[2.0, 0.0, -1.0]], requires_grad=True)
        >>> teacher = torch.tensor([[1.0, 1.0, -2.0]])
        >>> loss = fastkd.decoupled_kd_loss(student, teacher, torch.tensor([0]), beta=2.0)
        >>> loss.backward()
        >>> round(loss.item(), 4)
        1.1063
    """
    return _call(
        KDLossInputs(student_logits, teacher_logits, target, sample_weight, num_items),
        options_of(
            DecoupledKDLossOptions,
            temperature,
            alpha,
            beta,
            hard_weight,
            dim,
            ignore_index,
            reduction,
            temperature_squared,
            inplace,
        ),
    )


class DecoupledKDLoss(LossModule):
    """Module form of `fastkd.decoupled_kd_loss`: it stores the options that are not tensors."""

    def __init__(
        self,
        *,
        temperature: float = 4.0,
        alpha: float = 1.0,
        beta: float = 8.0,
        hard_weight: float = 0.0,
        dim: int = -1,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        temperature_squared: bool = True,
        inplace: bool = False,
    ) -> None:
        """Store the options; see `fastkd.decoupled_kd_loss`."""
        super().__init__(
            DecoupledKDLossOptions(
                temperature,
                alpha,
                beta,
                hard_weight,
                dim,
                ignore_index,
                reduction,
                temperature_squared,
                inplace,
            )
        )

    def forward(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        target: Tensor,
        *,
        sample_weight: Tensor | None = None,
        num_items: int | Tensor | None = None,
    ) -> Tensor:
        """Compute the loss; see `fastkd.decoupled_kd_loss`."""
        inputs = KDLossInputs(student_logits, teacher_logits, target, sample_weight, num_items)
        return _call(inputs, self.options)


def _call(inputs: KDLossInputs, options: DecoupledKDLossOptions) -> Tensor:
    plain = inputs.target is not None and not options.inplace
    if plain and _front.is_ordinary_call(inputs, options.dim):
        return PATHS.eager(inputs, options)
    check_decoupled_kd_loss(inputs, options)
    return call_on_rows(PATHS, evaluate, inputs, options)
