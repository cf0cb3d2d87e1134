# SPDX-License-Identifier: Apache-2.0
"""linear_kd_loss, a chunk of rows at a time: loss and gradients.

A chunk's logits are products by torch; kd_loss's kernel writes its gradient over the student's, and
products of that are added up in float32 at least. All are gradients of the sum of the row losses:
the reduction's factor is put on in backward, together with grad_loss.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from fastkd import _front
from fastkd._linear_options import FUNCTION, LinearKDLossInputs, LinearKDLossOptions
from fastkd._linear_validation import autocasts
from fastkd._options import KDLossInputs, KDLossOptions, TopKKDLossOptions
from fastkd._reduction import reduce_total
from fastkd._validation import settled_num_items
from fastkd.ops import kd_loss as of_logits
from fastkd.ops import topk_kd_loss as of_topk
from fastkd.ops._layer_product import layer_product
from fastkd.ops._linear_gradients import Gradients, GradientSums, Wanted
from fastkd.ops._row_kernel import Result as ChunkResult
from fastkd.reference.kd_loss import evaluate as evaluate_logits
from fastkd.reference.topk_kd_loss import evaluate as evaluate_topk

# Bytes of a chunk's logits where chunk_rows="auto": on the CPU larger ones are hardly faster, and
# kd_loss's kernel finds these in the cache. A GPU's have not been measured.
_CHUNK_BYTES = {"cpu": 16 << 20}
_CHUNK_BYTES_ELSEWHERE = 256 << 20
_LEAST_ROWS = 64

Dtypes = tuple[torch.dtype, torch.dtype | None]  # of the products of student and teacher


class Result(NamedTuple):
    """Of all chunks."""

    loss: Tensor
    grads: Gradients  # of the sum of the row losses
    scale: Tensor  # [], what the reduction multiplies that sum by


class _Layer(NamedTuple):
    """What gives one side's logits, in the dtype of its products."""

    hidden: Tensor  # [N, H]
    weight: Tensor
    bias: Tensor | None

    def logits(self, hidden: Tensor) -> Tensor:
        return layer_product(hidden, self.weight, self.bias)


def _layer(hidden: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> _Layer:
    rows = hidden.detach().reshape(math.prod(hidden.shape[:-1]), hidden.shape[-1]).to(dtype)
    bias = None if bias is None else bias.detach().to(dtype)
    return _Layer(rows, weight.detach().to(dtype), bias)


def product_dtype(hidden: Tensor) -> torch.dtype:
    """What a linear layer computes in."""
    if not autocasts(hidden.device) or hidden.dtype == torch.float64:
        return hidden.dtype
    return torch.get_autocast_dtype(hidden.device.type)


class _Rows(NamedTuple):
    """What is known of each row, [N]."""

    target: Tensor | None
    weight: Tensor | None
    ignored: Tensor | None  # rows that do not count, whatever they hold

    def without_ignored(self, hidden: Tensor, part: slice) -> Tensor:
        """Hidden states of some rows: 0 times what ignored ones hold may be NaN."""
        if self.ignored is None:
            return hidden[part]
        return hidden[part].masked_fill(self.ignored[part].unsqueeze(1), 0)

    def inputs(
        self, student: Tensor, teacher: tuple[Tensor, Tensor | None], part: slice
    ) -> KDLossInputs:
        target = None if self.target is None else self.target[part]
        weight = None if self.weight is None else self.weight[part]
        logits, indices = teacher
        return KDLossInputs(student, logits, target, weight, None, indices)


def _rows_of(inputs: LinearKDLossInputs, options: LinearKDLossOptions) -> _Rows:
    target = None if inputs.target is None else inputs.target.reshape(-1)
    weight = None if inputs.sample_weight is None else inputs.sample_weight.detach().reshape(-1)
    ignored = None if weight is None else weight == 0
    if target is not None:
        of_target = target == options.ignore_index
        ignored = of_target if ignored is None else ignored | of_target
    return _Rows(target, weight, ignored)


class _Teacher:
    """The teacher's logits, or its values and indices, a chunk at a time."""

    def __init__(
        self,
        inputs: LinearKDLossInputs,
        softcap: float | None,
        dtype: torch.dtype | None,
    ) -> None:
        known = inputs.teacher_values
        self.whole = inputs.teacher_logits if known is None else known
        self.indices = inputs.teacher_indices
        if inputs.teacher_hidden is not None:
            assert inputs.teacher_weight is not None
            assert dtype is not None
            of_teacher = inputs.teacher_hidden, inputs.teacher_weight, inputs.teacher_bias
            self.layer = _layer(*of_teacher, dtype)
            self.softcap = softcap

    def rows(self, part: slice) -> tuple[Tensor, Tensor | None]:
        if self.whole is not None:
            indices = None if self.indices is None else _rows(self.indices, part)
            return _rows(self.whole.detach(), part), indices
        logits = self.layer.logits(self.layer.hidden[part])
        return _cap(logits, self.softcap)[0], None


def run(
    inputs: LinearKDLossInputs,
    options: LinearKDLossOptions,
    dtypes: Dtypes,
    wanted: Wanted,
    row_scale: Tensor | None = None,
) -> Result:
    """The loss, and the wanted gradients of the sum of the row losses (times `row_scale`)."""
    student = _layer(*inputs.of_student(), dtypes[0])
    rows = _rows_of(inputs, options)
    count = len(student.hidden)
    step = min(_chunk_rows(student.weight, options.chunk_rows), max(count, 1))
    teacher = _Teacher(inputs, options.logit_softcap, dtypes[1])
    sums = GradientSums(student.hidden, student.weight, wanted)
    weighed = rows
    if row_scale is not None:
        scaled = row_scale if rows.weight is None else row_scale * rows.weight
        weighed = rows._replace(weight=scaled)
    by_rows = options.reduction == "none" and row_scale is None
    chunk_options = replace(
        options.kd if inputs.teacher_values is None else options.topk,
        reduction="none" if by_rows else "sum",
        inplace=True,
    )

    def take(part: slice) -> Tensor:  # a call each: its logits are gone before the next
        hidden = rows.without_ignored(student.hidden, part)
        logits, slope = _cap(student.logits(hidden), options.logit_softcap, any(wanted))
        chunk = weighed.inputs(logits, teacher.rows(part), part)
        loss, grad, unscale = _differentiate(chunk, chunk_options, any(wanted))
        if grad is not None:
            if slope is not None:
                grad.mul_(slope)
            sums.add(part, hidden, grad, unscale)
        return loss

    losses = [take(slice(at, min(at + step, count))) for at in range(0, count, step)]
    dtype = _loss_dtype(dtypes[0], inputs, dtypes[1])
    if by_rows:
        shape = inputs.student_hidden.shape[:-1]
        loss = torch.cat(losses) if losses else student.hidden.new_zeros(0, dtype=dtype)
        loss = loss.view(shape)
        return Result(loss, sums.grads, loss.new_ones(()))
    exact = torch.stack(losses).double().sum() if losses else student.hidden.new_zeros(()).double()
    total = exact.to(dtype)
    batch_size = inputs.student_hidden.shape[0] if inputs.student_hidden.ndim > 1 else 1
    num_items = settled_num_items(FUNCTION, inputs.num_items)
    rest = _count(rows, count), options.reduction, batch_size, num_items
    scale = reduce_total(torch.ones_like(total), *rest)
    return Result(reduce_total(total, *rest), sums.grads, scale)


def _loss_dtype(
    student: torch.dtype, inputs: LinearKDLossInputs, teacher: torch.dtype | None
) -> torch.dtype:
    told = inputs.teacher_logits if inputs.teacher_values is None else inputs.teacher_values
    other = teacher if told is None else told.dtype
    assert other is not None
    return torch.promote_types(torch.promote_types(student, other), torch.float32)


def _chunk_rows(weight: Tensor, chunk_rows: int | str) -> int:
    if not isinstance(chunk_rows, str):
        return chunk_rows
    budget = _CHUNK_BYTES.get(weight.device.type, _CHUNK_BYTES_ELSEWHERE)
    return max(_LEAST_ROWS, budget // (len(weight) * weight.element_size()))


def _cap(
    logits: Tensor, softcap: float | None, with_slope: bool = False
) -> tuple[Tensor, Tensor | None]:
    """The logits, in place, and their derivative."""
    if softcap is None:
        return logits, None
    logits.div_(softcap).tanh_()
    slope = torch.mul(logits, logits).neg_().add_(1) if with_slope else None
    return logits.mul_(softcap), slope


def _rows(logits: Tensor, part: slice) -> Tensor:
    """Some rows of logits (..., V), counted along all dimensions but the last."""
    if logits.ndim == 1:
        return logits.unsqueeze(0)
    try:
        return logits.view(-1, logits.shape[-1])[part]
    except RuntimeError:  # a shifted or transposed sequence: only the chunk is copied
        places = torch.arange(part.start, part.stop, device=logits.device)
        return logits[_unravel(places, logits.shape[:-1])]


def _unravel(places: Tensor, shape: Sequence[int]) -> tuple[Tensor, ...]:
    """Compute torch.unravel_index, which itself imports sympy, half a second at the first call."""
    indices = []
    for size in reversed(shape):
        indices.append(places % size)
        places = places // size
    return tuple(reversed(indices))


def _differentiate(
    inputs: KDLossInputs, options: KDLossOptions | TopKKDLossOptions, with_grad: bool
) -> ChunkResult:
    """Loss and gradient of a chunk's logits, whose memory the gradient takes where a kernel can."""
    path = _front.choose_path(inputs.student, *inputs.constants())
    leaf = inputs.student.detach().requires_grad_(with_grad)
    with torch.set_grad_enabled(with_grad):
        if isinstance(options, TopKKDLossOptions):
            if path == "eager":
                return of_topk.forward(inputs, options, with_grad)
            loss = evaluate_topk(inputs._replace(student=leaf), options)
        else:
            if path == "eager":
                loss, grad, unscale = of_logits.forward(inputs, options, with_grad)
                # Of standardized half types it is in float32.
                return ChunkResult(loss, None if grad is None else grad.to(leaf.dtype), unscale)
            loss = evaluate_logits(inputs._replace(student=leaf), options)
        total = loss.sum()
    grad = torch.autograd.grad(total, leaf)[0] if with_grad else None
    return ChunkResult(loss.detach(), grad, None)


def _count(rows: _Rows, count: int) -> float | Tensor:
    """The denominator of "mean"."""
    if rows.ignored is None:
        return count
    if rows.weight is None:
        return (~rows.ignored).sum(dtype=torch.float64)
    return rows.weight.masked_fill(rows.ignored, 0).sum(dtype=torch.float64)


def product_dtypes(inputs: LinearKDLossInputs) -> Dtypes:
    """Of the products of student and teacher."""
    teacher = inputs.teacher_hidden
    return product_dtype(inputs.student_hidden), teacher if teacher is None else product_dtype(
        teacher
    )
