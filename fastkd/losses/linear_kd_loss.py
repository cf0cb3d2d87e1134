# SPDX-License-Identifier: Apache-2.0
"""Soft targets from hidden states, one chunk of logits at a time."""

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
    r"""Compute `fastkd.kd_loss` from hidden states, one chunk of logits at a time.

    With hidden states h and output layers (W, b) of student and teacher, the logits are

    .. math::
        s = h_S W_S^\top + b_S, \qquad t = h_T W_T^\top + b_T

    With a logit_softcap c, they are :math:`c \tanh(s / c)` and :math:`c \tanh(t / c)`. The rows are
    processed in chunks. For each chunk, the function computes the logits of both sides. The kernel
    of `kd_loss` replaces the student's logits by their gradient. The gradients of the hidden
    states, the weight and the bias are computed from it. Besides these gradients, one chunk of
    logits of each side is in memory, so the memory for logits does not grow with the number of
    rows. PyTorch computes the matrix products, in the dtype of the hidden states.

    The gradients equal those of an output layer followed by `kd_loss`. A frozen layer needs no
    gradient, so its matrix product is skipped. The gradients are computed in forward and scaled in
    backward. With reduction="none", they depend on the gradient of each row's loss, so backward
    computes the logits again. The gradients of the chunks are added in float32 or better. So a
    weight in bfloat16 or float16 needs memory for two gradients for a moment. Under autocast, the
    products have the dtype of autocast, as in a linear layer, and copies of the weights in this
    dtype are in memory. Rows that do not count may hold anything, NaN too.

    torch.compile, torch.export and torch.utils.checkpoint use the chunks too. The PyTorch
    reference, which keeps all logits in memory, serves transforms (vmap, func.grad), tensor
    subclasses and create_graph, and under torch.compile also reduction="none" and float64.

    Args:
        student_hidden: (..., H), float32, bfloat16, float16 or float64; gets a gradient.
        student_weight: (V, H), the weight of `torch.nn.Linear(H, V)`; gets a gradient. Its dtype is
            that of student_hidden, unless autocast converts both.
        teacher_hidden: (..., H'), the same rows; width and dtype may differ. Gets no gradient.
        teacher_weight: (V, H').
        target: int64 class indices, (...); rows of `ignore_index` do not count.
        student_bias: (V,); gets a gradient.
        teacher_bias: (V,).
        teacher_logits: (..., V), in place of the teacher's hidden states, weight and bias. They are
            logits, or log-probabilities at temperature 1. The softcap is not applied to them.
        teacher_values: (..., K), in place of all other arguments of the teacher, for a teacher of
            which K classes of each row are stored. The loss is then `fastkd.topk_kd_loss`.
        teacher_indices: (..., K), the classes of teacher_values.
        logit_softcap: c in [1e-3, 1e4], for the logits of both sides, in their dtype as in
            transformers. If a gradient is needed, it takes memory for a third chunk.
        chunk_rows: the number of rows of a chunk. "auto" chooses chunks of logits of about 16 MiB
            on the CPU and 256 MiB on a GPU, and of at least 64 rows.
        temperature: as in `fastkd.kd_loss`, like the arguments up to standardize_logits.
        alpha: weight of the distillation term.
        divergence: "forward_kl", "reverse_kl", "js" or "tv".
        beta: weight of the teacher in the mixture of "js".
        ignore_index: the target value of rows that do not count.
        label_smoothing: in [0, 1], of the hard term.
        sample_weight: (...), the weight of each row.
        reduction: "none" (...), "sum", "mean", or "batchmean" (sum / size of the first dimension).
        num_items: replaces the denominator of "mean" and "batchmean".
        temperature_squared: whether T^2 multiplies the divergence.
        common_vocab: whether the class counts may differ.
        standardize_logits: whether the divergence compares z-scores.
        teacher_is: "log_probs" or "logits"; as in `fastkd.topk_kd_loss`, like tail.
        tail: "bucket", "renormalize", "renormalize_teacher" or "truncate".

    Returns:
        The loss: float32, or float64 if one of the logits is float64.

    Raises:
        TypeError: an argument of the wrong type or dtype, or not exactly one of the three forms of
            the teacher.
        ValueError: shapes, devices or values that do not fit.
        IndexError: a target or an index outside [0, V), unless the target is `ignore_index`, on the
            CPU. On CUDA, the loss of its row and all gradients are NaN.
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
    return LinearKDLossInputs(*inputs.of_student(), *others)  # type: ignore[arg-type]
