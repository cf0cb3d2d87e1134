# SPDX-License-Identifier: Apache-2.0
"""dist_loss with its gradient in closed form, of torch's operations: the eager way.

With a, b the centred probabilities of student and teacher and D = |a| |b| + eps, a correlation
changes with a by b / D - (a . b) |b| a / (|a| D^2): nothing but a, b and numbers of a row or a
column, so the gradient is written where intermediate results were. Four tensors of the logits' size
are held, where autograd of the plain formula holds eight.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastkd._feature_options import DISTOptions
from fastkd.ops._graph import (
    backward_of_reference,
    check_unchanged,
    graph_is_kept,
    versions_of,
)
from fastkd.reference._precision import widest_dtype
from fastkd.reference.dist_loss import EPS, Rows, evaluate, is_level, rows_of


def eager(student: Tensor, teacher: Tensor, mask: Tensor | None, options: DISTOptions) -> Tensor:
    """The loss of plain tensors outside of transforms and traces."""
    if student.requires_grad and torch.is_grad_enabled():
        loss: Tensor = _apply(student, teacher, mask, options)
        return loss
    return _forward(student.detach(), teacher.detach(), mask, options, with_grad=False)[0]


class DISTLossFunction(torch.autograd.Function):
    """The gradient is computed in forward and scaled in backward, in float32 at least."""

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, teacher: Tensor, mask: Tensor | None, options: DISTOptions
    ) -> Tensor:
        """Compute loss and gradient."""
        loss, grad = _forward(student, teacher, mask, options, with_grad=True)
        ctx.save_for_backward(grad, student)
        # For double backward. Not saved: they may come from inference_mode, or be written again.
        ctx.constants = (teacher, mask), versions_of((teacher, mask))
        ctx.options = options
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the gradient by grad_loss."""
        grad, student = ctx.saved_tensors
        constants, versions = ctx.constants
        if not graph_is_kept():
            ctx.constants = None  # lets go of the teacher, as autograd does of saved tensors
        if torch.is_grad_enabled():  # create_graph: the result must be differentiable itself
            check_unchanged("dist_loss", "teacher_logits or mask", constants, versions)
            teacher, mask = constants
            grad_student = backward_of_reference(
                lambda: evaluate(student, teacher.detach(), mask, ctx.options), student, grad_loss
            )
        else:
            grad_student = (grad * grad_loss).to(student.dtype)
        return grad_student, None, None, None


_apply: Any = DISTLossFunction.apply


def _forward(
    student: Tensor, teacher: Tensor, mask: Tensor | None, options: DISTOptions, with_grad: bool
) -> tuple[Tensor, Tensor | None]:
    shape, dtype = student.shape, widest_dtype(student, teacher)
    dim = options.dim % student.ndim
    if student.ndim == 1:
        student, teacher, dim = student.unsqueeze(0), teacher.unsqueeze(0), 1
        mask = None if mask is None else mask.unsqueeze(0)
    if student.numel() == 0:
        return student.new_zeros((), dtype=dtype), student.to(dtype) if with_grad else None
    rows = rows_of(student, mask, dim)
    q = _softmax(student.to(dtype), rows, options)
    p = _softmax(teacher.to(dtype), rows, options)
    buffers = torch.empty_like(q), torch.empty_like(q)

    uniform = 1 / rows.classes  # the mean of a row
    q_mean, p_mean = (_column_means(x, rows, buffers[0]) for x in (q, p))
    of_rows = _correlate(q, p, uniform, uniform, (rows.dim,), rows.classes, rows, buffers)
    of_columns = _correlate(q, p, q_mean, p_mean, rows.others, rows.counted, rows, buffers)
    inter = options.inter_factor * (1 - of_rows.value.sum() / rows.counted)
    intra = options.intra_factor * (1 - of_columns.value.mean())
    loss = rows.finish(inter + intra)
    if not with_grad:
        return loss, None

    # What centres a row of the gradient is the same for all its classes, which softmax does not
    # see; it is taken off all the same, for the digits. What centres a column is made of rounded
    # means' errors, which would be all that is left where p and q nearly agree, as in two rows.
    grad, centred = buffers
    row_scale = -options.inter_factor / options.temperature / rows.counted
    column_scale = -options.intra_factor / options.temperature / rows.classes
    torch.sub(p, uniform, out=grad).mul_(of_rows.cross * row_scale)
    grad.addcmul_(torch.sub(q, uniform, out=centred), of_rows.own * row_scale)
    of_column = p.sub_(p_mean).mul_(of_columns.cross * column_scale)
    of_column.addcmul_(torch.sub(q, q_mean, out=centred), of_columns.own * column_scale)
    grad.add_(of_column).sub_(_column_means(of_column, rows, centred))
    # Of the logits: q (grad - sum of q grad).
    grad.sub_(torch.mul(q, grad, out=centred).sum(rows.dim, keepdim=True)).mul_(q)
    if rows.ignored is not None:
        grad.masked_fill_(rows.ignored, 0)
    return loss, grad.view(shape)


def _softmax(logits: Tensor, rows: Rows, options: DISTOptions) -> Tensor:
    logits = rows.masked(logits)
    if options.temperature != 1:
        logits = logits / options.temperature
    return logits.softmax(rows.dim)


def _column_means(x: Tensor, rows: Rows, buffer: Tensor) -> Tensor:
    if rows.ignored is not None:
        x = buffer.copy_(x).masked_fill_(rows.ignored, 0)
    return x.sum(rows.others, keepdim=True) / rows.counted


class _Correlation(NamedTuple):
    """Of every row, or of every column; it changes with q by cross b + own a."""

    value: Tensor
    cross: Tensor
    own: Tensor


def _correlate(
    q: Tensor,
    p: Tensor,
    q_mean: float | Tensor,
    p_mean: float | Tensor,
    dims: tuple[int, ...],
    count: int | Tensor,
    rows: Rows,
    buffers: tuple[Tensor, Tensor],
) -> _Correlation:
    """The reference's _correlation without its scaling, which only second derivatives need."""
    a, b = buffers

    def centre(x: Tensor, mean: float | Tensor, out: Tensor) -> None:
        torch.sub(x, mean, out=out)
        if rows.ignored is not None:
            out.masked_fill_(rows.ignored, 0)

    centre(q, q_mean, a)
    centre(p, p_mean, b)
    product = a.mul_(b).sum(dims, keepdim=True)
    b_square = b.square_().sum(dims, keepdim=True)
    centre(q, q_mean, a)
    a_square = a.square_().sum(dims, keepdim=True)
    level = is_level(a_square, count, q_mean) | is_level(b_square, count, p_mean)
    a_norm, b_norm = a_square.masked_fill(level, 1).sqrt(), b_square.sqrt()
    damped = a_norm * b_norm + EPS
    value = (product / damped).masked_fill(level, 0)
    cross = damped.reciprocal().masked_fill(level, 0)
    return _Correlation(value, cross, -value * b_norm / (a_norm * damped))
