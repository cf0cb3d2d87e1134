# SPDX-License-Identifier: Apache-2.0
"""Losses of a student's and a teacher's tensor whose kernel gives value and gradient in one call.

The gradient for grad_loss = 1, or a smaller tensor that it follows from, is computed in the forward
call, in float32 whatever the student's type, and scaled in backward: half types round once, after a
loss scale. Double backward runs through the reference.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastkd.ops._graph import (
    Versions,
    backward_of_reference,
    check_unchanged,
    graph_is_kept,
    versions_of,
)
from fastkd.ops._two_paths import TwoPaths, autograd_apply, schema_of

# Student, teacher, options, with a gradient -> loss [] and what is kept for it, both float32.
Kernel = Callable[[Tensor, Tensor, Any, bool], tuple[Tensor, Tensor | None]]
# What was kept, grad_loss, student, options -> gradient of the student.
Scale = Callable[[Tensor, Tensor, Tensor, Any], Tensor]
# Student, teacher, options -> loss, in plain PyTorch.
Evaluate = Callable[[Tensor, Tensor, Any], Tensor]
Path = Callable[[Tensor, Tensor, Any], Tensor]
Paths = TwoPaths[Path]


def _scaled(grad: Tensor, grad_loss: Tensor, student: Tensor, _options: Any) -> Tensor:
    return (grad * grad_loss).to(student.dtype)


def _shape(student: Tensor) -> Sequence[int]:
    return student.shape


class Loss(NamedTuple):
    """What makes one loss."""

    function: str  # the public one's name
    teacher_name: str  # its second argument
    options: Any  # a dataclass of numbers and words
    check: Callable[[Tensor, Tensor], None]  # of the public function's tensors
    kernel: Kernel
    evaluate: Evaluate
    # The gradient is kept, unless these say what is.
    kept_shape: Callable[[Tensor], Sequence[int]] = _shape
    scale: Scale = _scaled
    scale_compiled: Scale = _scaled  # of operations that torch.compile knows


def paths_of(loss: Loss) -> Paths:
    """The eager autograd function and the registered op of a loss."""
    return Paths(_eager(loss), _compiled(loss))


def _eager(loss: Loss) -> Path:
    def forward(ctx: Any, student: Tensor, teacher: Tensor, options: Any) -> Tensor:
        value, kept = loss.kernel(student, teacher, options, True)
        ctx.save_for_backward(kept, student)
        # Only double backward needs the teacher. It is not saved: it may come from
        # inference_mode, or its buffer may be written again before backward.
        ctx.constants = (teacher, versions_of((teacher,)))
        ctx.options = options
        return value

    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        kept, student = ctx.saved_tensors
        constants: tuple[Tensor, Versions] = ctx.constants
        if not graph_is_kept():
            ctx.constants = None  # lets go of the teacher, as autograd does of saved tensors
        if not torch.is_grad_enabled():
            return loss.scale(kept, grad_loss, student, ctx.options), None, None
        teacher, versions = constants
        check_unchanged(loss.function, loss.teacher_name, (teacher,), versions)
        return _of_reference(loss, student, teacher, ctx.options, grad_loss), None, None

    apply = autograd_apply(loss.function, forward, backward)

    def eager(student: Tensor, teacher: Tensor, options: Any) -> Tensor:
        if student.requires_grad and torch.is_grad_enabled():
            return apply(student, teacher, options)
        return loss.kernel(student, teacher, options, False)[0]

    return eager


def _of_reference(
    loss: Loss, student: Tensor, teacher: Tensor, options: Any, grad_loss: Tensor
) -> Tensor:
    return backward_of_reference(
        lambda: loss.evaluate(student, teacher.detach(), options), student, grad_loss
    )


def _compiled(loss: Loss) -> Path:
    fields = dataclasses.fields(loss.options)
    names = [field.name for field in fields]
    words = schema_of(fields)
    schema = f"(Tensor student, Tensor teacher{words}, bool with_grad) -> (Tensor, Tensor)"

    def op(student: Tensor, teacher: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        *values, with_grad = rest
        loss.check(student, teacher)  # an op may be called by anyone
        if torch.float64 in (student.dtype, teacher.dtype):
            raise TypeError(
                f"fastkd::{loss.function} has no float64 kernel: call fastkd.{loss.function}"
            )
        value, kept = loss.kernel(student, teacher, loss.options(*values), with_grad)
        return value, value.new_empty(0) if kept is None else kept

    def fake(student: Tensor, teacher: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        value = student.new_empty((), dtype=torch.float32)
        return value, value.new_empty(loss.kept_shape(student) if rest[-1] else (0,))

    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        student, teacher, *values, ctx.with_grad = inputs
        ctx.options = loss.options(*values)
        _, kept = output
        ctx.mark_non_differentiable(kept)
        ctx.save_for_backward(kept, student, teacher)

    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        kept, student, teacher = ctx.saved_tensors
        if torch.is_grad_enabled() or not ctx.with_grad:  # exported without gradients
            grad_student = _of_reference(loss, student, teacher, ctx.options, grad_loss)
        else:
            grad_student = loss.scale_compiled(kept, grad_loss, student, ctx.options)
        return grad_student, *(None,) * (len(names) + 2)

    registered = torch.library.custom_op(
        f"fastkd::{loss.function}", op, mutates_args=(), device_types=("cpu", "cuda"), schema=schema
    )
    registered.register_fake(fake)
    registered.register_autograd(backward, setup_context=save)

    def compiled(student: Tensor, teacher: Tensor, options: Any) -> Tensor:
        values = [getattr(options, name) for name in names]
        with_grad = student.requires_grad and torch.is_grad_enabled()
        value: Tensor = registered(student, teacher.detach(), *values, with_grad)[0]
        return value

    return compiled
