# SPDX-License-Identifier: Apache-2.0
"""Soft targets from hidden states: the logits are never whole."""

from typing import Literal

import torch
from torch import Tensor

from fastkd import _front
from fastkd._linear_options import FUNCTION, LinearKDLossInputs, LinearKDLossOptions
from fastkd._linear_validation import check_linear_kd_loss
from fastkd._options import Divergence, Reduction, Tail, TeacherValues
from fastkd.losses._module import LossModule
from fastkd.losses._path import check_values, options_of
from fastkd.ops import linear_kd_loss as ops
from fastkd.ops._constant import constant
from fastkd.reference.linear_kd_loss import evaluate


def linear_kd_loss(
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher_hidden: Tensor | None = None,
    teacher_weight: Tensor | None = None,
    target: Tensor | None = None,
    *,
    student_bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    teacher_logits: Tensor | None = None,
    teacher_values: Tensor | None = None,
    teacher_indices: Tensor | None = None,
    logit_softcap: float | None = None,
    chunk_rows: int | Literal["auto"] = "auto",
    temperature: float = 1.0,
    alpha: float = 0.5,
    divergence: Divergence = "forward_kl",
    beta: float = 0.5,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    num_items: int | Tensor | None = None,
    temperature_squared: bool = True,
    common_vocab: bool = False,
    standardize_logits: bool = False,
    teacher_is: TeacherValues = "log_probs",
    tail: Tail = "bucket",
) -> Tensor:
    r"""`fastkd.kd_loss` of the logits of two output layers, which are never held whole.

    With hidden states h and output layers (W, b) of student and teacher, the loss is that of

    .. math::
        s = h_S W_S^\top + b_S, \qquad t = h_T W_T^\top + b_T

    or of :math:`c \tanh(s / c)` and :math:`c \tanh(t / c)` with a logit_softcap c. Some rows at a
    time (a chunk) their logits are computed, kd_loss's kernel writes its gradient over the
    student's, and that becomes gradients of hidden states, weight and bias. One chunk of logits a
    side is held, beside the gradients: what is held does not grow with the number of rows, as the
    logits would. Products are torch's own.

    Gradients are those of `kd_loss` after the layer, computed for the arguments that require one: a
    frozen layer costs no product. They are computed in forward and scaled in backward; only
    reduction="none", whose gradient waits for that of every row, computes the logits anew in
    backward. They are added up in float32 at least, whatever the logits' type, so of half types
    the weight's gradient is held twice for a moment. Under autocast products have its dtype, as
    those of a linear layer, and the weights' copies in it are held. Rows that do not count may hold
    anything, NaN too.

    torch.compile and torch.export call the same, as does torch.utils.checkpoint. The PyTorch
    reference, which holds the logits, serves transforms (vmap, func.grad), tensor subclasses and
    create_graph, and under torch.compile reduction="none" and float64.

    Args:
        student_hidden: (..., H), float32, bfloat16, float16 or float64; gets a gradient.
        student_weight: (V, H), that of `torch.nn.Linear(H, V)`; gets a gradient. Of
            student_hidden's dtype, unless autocast converts.
        teacher_hidden: (..., H'), the same rows; its own width and dtype. Needs no gradient and
            gets none.
        teacher_weight: (V, H').
        target: int64 class indices, (...); rows of `ignore_index` do not count.
        student_bias: (V,); gets a gradient.
        teacher_bias: (V,).
        teacher_logits: (..., V), in place of the teacher's hidden states, weight and bias; logits
            or log-probabilities at temperature 1. No softcap is put on them.
        teacher_values: (..., K), in place of all these, of a teacher known by K classes a row: then
            the loss is that of `fastkd.topk_kd_loss`.
        teacher_indices: (..., K), which classes they are of.
        logit_softcap: c in [1e-3, 1e4], of both sides' logits, in their dtype as in transformers;
            costs a third chunk where there is a gradient.
        chunk_rows: how many rows at a time; "auto": such that a chunk of logits takes about 16 MiB
            on the CPU and 256 MiB on a GPU, and 64 rows at least.
        temperature: as in `fastkd.kd_loss`, like all that follow.
        alpha: weight of the distillation term.
        divergence: "forward_kl", "reverse_kl", "js" or "tv".
        beta: of "js".
        ignore_index: the target value of rows that do not count.
        label_smoothing: of the hard term.
        sample_weight: (...), one weight a row.
        reduction: "none" (...), "sum", "mean", or "batchmean" (sum / size of the first dimension).
        num_items: replaces the denominator of "mean" and "batchmean".
        temperature_squared: whether T^2 multiplies the divergence.
        common_vocab: whether the class counts may differ.
        standardize_logits: whether the divergence is that of z-scores.
        teacher_is: what teacher_values are, "log_probs" or "logits"; as in `fastkd.topk_kd_loss`,
            like what follows.
        tail: "bucket", "renormalize", "renormalize_teacher" or "truncate".

    Returns:
        The loss: float32, or float64 if one of the logits is.

    Raises:
        TypeError: an argument of the wrong type or dtype; several or none of the teacher's forms.
        ValueError: shapes, devices or values that do not fit.
        IndexError: a target outside [0, V) that is not `ignore_index`, or an index outside it, on
            the CPU; on CUDA such a row's loss and all gradients are NaN.
        RuntimeError: as in `fastkd.kd_loss`.

    References:
        Those of `fastkd.kd_loss` and `fastkd.topk_kd_loss`.

    Example:
        >>> import torch, fastkd
        >>> hidden = torch.tensor([[1.0, 2.0], [0.5, -1.0]], requires_grad=True)
        >>> weight = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, -1.0]], requires_grad=True)
        >>> teacher = torch.tensor([[2.0], [-1.0]]), torch.tensor([[0.5], [1.0], [-1.0]])
        >>> loss = fastkd.linear_kd_loss(
        ...     hidden, weight, *teacher, torch.tensor([1, 0]), temperature=2.0
        ... )
        >>> loss.backward()
        >>> round(loss.item(), 4)
        0.4546
    """
    options = options_of(
        LinearKDLossOptions,
        logit_softcap,
        chunk_rows,
        temperature,
        alpha,
        divergence,
        beta,
        ignore_index,
        label_smoothing,
        reduction,
        temperature_squared,
        common_vocab,
        standardize_logits,
        teacher_is,
        tail,
    )
    inputs = LinearKDLossInputs(
        student_hidden,
        student_weight,
        student_bias,
        teacher_hidden,
        teacher_weight,
        teacher_bias,
        teacher_logits,
        teacher_values,
        teacher_indices,
        target,
        sample_weight,
        num_items,
    )
    return _call(inputs, options)


class LinearKDLoss(LossModule):
    """Module form of `fastkd.linear_kd_loss`: it stores the options that are not tensors."""

    def __init__(
        self,
        *,
        logit_softcap: float | None = None,
        chunk_rows: int | Literal["auto"] = "auto",
        temperature: float = 1.0,
        alpha: float = 0.5,
        divergence: Divergence = "forward_kl",
        beta: float = 0.5,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        reduction: Reduction = "mean",
        temperature_squared: bool = True,
        common_vocab: bool = False,
        standardize_logits: bool = False,
        teacher_is: TeacherValues = "log_probs",
        tail: Tail = "bucket",
    ) -> None:
        """Store the options; see `fastkd.linear_kd_loss`."""
        super().__init__(
            LinearKDLossOptions(
                logit_softcap,
                chunk_rows,
                temperature,
                alpha,
                divergence,
                beta,
                ignore_index,
                label_smoothing,
                reduction,
                temperature_squared,
                common_vocab,
                standardize_logits,
                teacher_is,
                tail,
            )
        )

    def forward(
        self,
        student_hidden: Tensor,
        student_weight: Tensor,
        teacher_hidden: Tensor | None = None,
        teacher_weight: Tensor | None = None,
        target: Tensor | None = None,
        *,
        student_bias: Tensor | None = None,
        teacher_bias: Tensor | None = None,
        teacher_logits: Tensor | None = None,
        teacher_values: Tensor | None = None,
        teacher_indices: Tensor | None = None,
        sample_weight: Tensor | None = None,
        num_items: int | Tensor | None = None,
    ) -> Tensor:
        """Compute the loss; see `fastkd.linear_kd_loss`."""
        inputs = LinearKDLossInputs(
            student_hidden,
            student_weight,
            student_bias,
            teacher_hidden,
            teacher_weight,
            teacher_bias,
            teacher_logits,
            teacher_values,
            teacher_indices,
            target,
            sample_weight,
            num_items,
        )
        return _call(inputs, self.options)


def _call(inputs: LinearKDLossInputs, options: LinearKDLossOptions) -> Tensor:
    check_linear_kd_loss(inputs, options)
    compiling = torch.compiler.is_compiling()
    if compiling and ops.op_serves(options):
        told = (inputs.teacher_hidden, inputs.teacher_logits, inputs.teacher_values)
        (teacher,) = (tensor for tensor in told if tensor is not None)
        if _front.choose_path(inputs.student_hidden, teacher) == "compiled":
            return ops.compiled(_constant(inputs), options)
    if not compiling and not _front.in_transform():
        classes = inputs.student_weight.shape[0]
        check_values(FUNCTION, inputs.target, inputs.num_items, classes, options)
        ops.check_topk_values(inputs, options)
        tensors = [tensor for tensor in inputs if isinstance(tensor, Tensor)]
        if _front.is_seen_by_autograd_alone(*tensors):
            return ops.eager(inputs, options)
    return evaluate(_constant(inputs), options)


def _constant(inputs: LinearKDLossInputs) -> LinearKDLossInputs:
    """The same with a gradient for the student only."""
    others = (constant(x) if isinstance(x, Tensor) else x for x in inputs[3:])
    return LinearKDLossInputs(*inputs.student, *others)  # type: ignore[arg-type]
