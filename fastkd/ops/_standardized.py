# SPDX-License-Identifier: Apache-2.0
"""kd_loss of z-scores, a part of the rows at a time: the kernel on them, and their derivative.

With z = (x - mean) / (d + eps) of a row, d the deviation of its n logits, and g the kernel's
gradient of z, whose mean is 0 as softmax does not see an offset:

    dx = (g - z (sum of g z) (d + eps) / ((n - 1) d)) / (d + eps)

A part stays in the caches, so torch's operations cost little, and what is held is the gradient.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from fastkd._options import KDLossInputs, KDLossOptions
from fastkd._reduction import reduce_total
from fastkd._validation import check_target_range, settled_num_items, without
from fastkd.ops._row_kernel import Result, new_gradient
from fastkd.reference._standard import EPS, is_masked, standard_of

Kernel = Callable[[KDLossInputs, KDLossOptions, bool], Result]

_PART_BYTES = {"cpu": 2 << 20}  # of one side in float32
_PART_BYTES_ELSEWHERE = 64 << 20  # not measured
# Between these the squares of a row's spread neither overflow nor lose digits.
_ORDINARY = 2.0**-50, 2.0**50


def forward(
    kernel: Kernel, inputs: KDLossInputs, options: KDLossOptions, with_grad: bool
) -> Result:
    """Loss and gradient, by a kernel that computes both of plain logits."""
    student, _, target, *_ = inputs
    dim, function = options.dim % student.ndim, options.function
    rows, classes = without(student.shape, dim), student.shape[dim]
    if target is not None and not target.is_cuda:
        check_target_range(function, target, options.ignore_index, classes)
    num_items = settled_num_items(function, inputs.num_items)
    weight = _row_weights(inputs, options, classes)
    by_rows = options.reduction == "none"
    grad = None
    if with_grad:
        written_over = options.inplace and student.dtype == torch.float32
        grad = student.detach() if written_over else new_gradient(student, options)
    # The parts give sums, or row losses.
    part_options = replace(
        options, standardize_logits=False, inplace=True, reduction="none" if by_rows else "sum"
    )
    limit = _PART_BYTES.get(student.device.type, _PART_BYTES_ELSEWHERE) // 4
    parts = list(_parts(student.shape, dim, limit))
    work = _Work(kernel, part_options, dim, inputs, weight, grad)
    losses = [work.take(part) for part in parts]
    if by_rows:
        value = torch.empty(rows, dtype=torch.float32, device=student.device)
        for part, loss in zip(parts, losses, strict=True):
            value[without(part, dim)] = loss
        return Result(value, grad, None)
    exact = torch.stack(losses).double().sum() if losses else student.new_zeros(()).double()
    total = exact.to(torch.float32)
    count = math.prod(rows) if weight is None else weight.sum(dtype=torch.float64)
    rest = count, options.reduction, rows[0] if rows else 1, num_items
    return Result(reduce_total(total, *rest), grad, reduce_total(torch.ones_like(total), *rest))


def _row_weights(inputs: KDLossInputs, options: KDLossOptions, classes: int) -> Tensor | None:
    """0 for rows that do not count; NaN for a target out of range, which on CUDA nothing sees."""
    target, weight = inputs.target, inputs.sample_weight
    weight = None if weight is None else weight.detach().to(torch.float32)
    if target is None:
        return weight
    if weight is None:
        weight = torch.ones_like(target, dtype=torch.float32)
    outside = (target < 0) | (target >= classes)
    return weight.masked_fill(outside, math.nan).masked_fill(target == options.ignore_index, 0)


def _ignored(weight: Tensor | None) -> Tensor | None:
    """Which rows do not count, where there may be some."""
    if weight is None:
        return None
    ignored = weight == 0
    return ignored if ignored.is_cuda or bool(ignored.any()) else None


class _Work:
    """The parts of one call, and the three buffers that they are computed in."""

    def __init__(
        self,
        kernel: Kernel,
        options: KDLossOptions,
        dim: int,
        inputs: KDLossInputs,
        weight: Tensor | None,
        grad: Tensor | None,
    ) -> None:
        self.kernel, self.options, self.dim = kernel, options, dim
        self.student, self.teacher = inputs.student.detach(), inputs.teacher.detach()
        self.target, self.weight, self.grad = inputs.target, weight, grad
        self.ignored = _ignored(weight)
        self.alpha = 1.0 if inputs.target is None else options.alpha
        self.buffers: list[Tensor] = []

    def take(self, part: tuple[slice, ...]) -> Tensor:
        """Loss of some rows, whose gradient is written."""
        dim, rows = self.dim, without(part, self.dim)
        student, teacher = self.student[part], self.teacher[part]
        weight = None if self.weight is None else self.weight[rows]
        ignored = None if self.ignored is None else self.ignored[rows]
        shared = min(student.shape[dim], teacher.shape[dim])  # differ only with common_vocab
        student_scores, teacher_scores, scratch = self._buffers(student.narrow(dim, 0, shared))

        def scores(logits: Tensor, into: Tensor) -> _Scores:
            logits = logits.narrow(dim, 0, shared)
            if ignored is not None:
                logits = _without_ignored(logits, ignored, dim)
            return _Scores(logits, dim, into, scratch)

        of_student = scores(student, student_scores)
        of_teacher = scores(teacher, teacher_scores)
        if self.grad is None:
            loss = self._soft(of_student.values, of_teacher.values, weight, False)
            return loss if self.alpha == 1 else loss + self._hard(student, part, weight, False)

        grad, out = scratch.copy_(of_student.values), self.grad[part]
        loss = self._soft(grad, of_teacher.values, weight, True)
        if self.alpha == 1:
            out.zero_()
        else:
            loss = loss + self._hard(out.copy_(student), part, weight, True)
        of_student.add_gradient(grad, teacher_scores, out.narrow(dim, 0, shared))
        return loss

    def _soft(
        self, student: Tensor, teacher: Tensor, weight: Tensor | None, with_grad: bool
    ) -> Tensor:
        """By the scores; the gradient takes the place of the student's."""
        weight = weight if weight is None or self.alpha == 1 else weight * self.alpha
        scores = KDLossInputs(student, teacher, None, weight, None)
        return self.kernel(scores, self.options, with_grad).loss

    def _hard(
        self, student: Tensor, part: tuple[slice, ...], weight: Tensor | None, with_grad: bool
    ) -> Tensor:
        """By the logits, the same."""
        assert self.target is not None
        assert weight is not None
        target, weight = self.target[without(part, self.dim)], weight * (1 - self.alpha)
        rows = KDLossInputs(student, self.teacher[part], target, weight, None)
        return self.kernel(rows, replace(self.options, alpha=0.0), with_grad).loss

    def _buffers(self, like: Tensor) -> list[Tensor]:
        """Of the shape of a part, of which the first is the largest."""
        count = like.numel()
        if not self.buffers:
            self.buffers = [like.new_empty(count, dtype=torch.float32) for _ in range(3)]
        return [buffer[:count].view(like.shape) for buffer in self.buffers]


class _Scores:
    """z, and what turns its gradient into that of the logits."""

    def __init__(self, logits: Tensor, dim: int, into: Tensor, scratch: Tensor) -> None:
        self.dim = dim
        self.masked: Tensor | None = None
        if not logits.is_cuda:  # whose values nothing waits for
            largest = logits.amax(dim, keepdim=True).to(torch.float32)
            least = logits.amin(dim, keepdim=True)
            if not _is_ordinary(largest - least):
                masked = is_masked(logits.to(torch.float32))
                least = torch.where(masked, largest, logits, out=scratch).amin(dim, keepdim=True)
                self.masked = masked
            if self.masked is None or _is_ordinary(largest - least):
                self._of_ordinary_rows(logits, largest, into, scratch)
                return
        self._of_any_rows(logits.to(torch.float32), into)

    def _of_ordinary_rows(
        self, logits: Tensor, largest: Tensor, into: Tensor, scratch: Tensor
    ) -> None:
        # The largest first, so that a common offset costs no digits.
        self.values = torch.sub(logits, largest, out=into)
        self.count: int | Tensor = logits.shape[self.dim]
        if self.masked is not None:
            self.values.masked_fill_(self.masked, 0)
            self.count = self.count - self.masked.sum(self.dim, keepdim=True)
        self.values.sub_(self.values.sum(self.dim, keepdim=True) / self.count)
        if self.masked is not None:
            self.values.masked_fill_(self.masked, 0)
        square = torch.square(self.values, out=scratch).sum(self.dim, keepdim=True)
        deviation = (square / (self.count - 1)).sqrt()
        damped = deviation + EPS
        self.inverse = damped.reciprocal()
        self.pull = damped / (deviation * (self.count - 1))
        self.values.mul_(self.inverse)
        if self.masked is not None:
            self.values.masked_fill_(self.masked, -math.inf)

    def _of_any_rows(self, logits: Tensor, into: Tensor) -> None:
        """Level rows, extreme ones, NaN: as the reference has them."""
        standard = standard_of(logits, self.dim)
        self.masked, self.count = standard.masked, standard.sampled
        self.values = torch.div(standard.centred, standard.damped, out=into)
        self.values.masked_fill_(self.masked, -math.inf)
        self.inverse = (1 / (standard.damped * standard.power)).masked_fill(standard.level, 0)
        self.pull = standard.damped / (standard.deviation * (self.count - 1).clamp_min(1))

    def add_gradient(self, grad: Tensor, scratch: Tensor, out: Tensor) -> None:
        """Add the logits' gradient to `out`, by that of z; grad, z and scratch are written over."""
        if self.masked is not None:
            # What the kernel tells of masked classes is of no other: the rest has a mean.
            grad.masked_fill_(self.masked, 0)
            grad.sub_(grad.sum(self.dim, keepdim=True) / self.count).masked_fill_(self.masked, 0)
            self.values.masked_fill_(self.masked, 0)
        dot = torch.mul(grad, self.values, out=scratch).sum(self.dim, keepdim=True)
        grad.addcmul_(self.values, -dot * self.pull)
        out.addcmul_(grad, self.inverse)


def _is_ordinary(spread: Tensor) -> bool:
    return bool(((spread > _ORDINARY[0]) & (spread < _ORDINARY[1])).all())


def _without_ignored(logits: Tensor, ignored: Tensor, dim: int) -> Tensor:
    """The logits, with any ordinary ones in rows that do not count: those may hold NaN."""
    shape = [1] * logits.ndim
    shape[dim] = logits.shape[dim]
    any_row = torch.linspace(0, 1, shape[dim], device=logits.device).view(shape)
    return torch.where(ignored.unsqueeze(dim), any_row, logits)


def _parts(shape: torch.Size, dim: int, most: int) -> Iterator[tuple[slice, ...]]:
    """Parts of up to `most` elements, or of one row; cut along the first dimensions."""
    steps, left = list(shape), math.prod(shape)
    for axis in range(len(shape)):
        if axis == dim or left <= most:
            continue
        left //= shape[axis]
        steps[axis] = max(1, min(shape[axis], most // left))
        left *= steps[axis]
    return itertools.product(
        *(
            [slice(at, at + step) for at in range(0, size, max(step, 1))]
            for size, step in zip(shape, steps, strict=True)
        )
    )
