# SPDX-License-Identifier: Apache-2.0
"""Losses of rows of logits over a kernel: the eager autograd function and the registered op."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from fastkd import _backends
from fastkd._options import KDLossInputs
from fastkd.ops import _row_kernel
from fastkd.ops._graph import (
    Versions,
    backward_of_reference,
    check_unchanged,
    graph_is_kept,
    versions_of,
)
from fastkd.ops._row_kernel import (
    Result,
    RowLoss,
    check_memory,
    new_gradient,
    scale,
    scaled,
    settle,
)
from fastkd.ops._two_paths import TwoPaths, autograd_apply, schema_of

Path = Callable[[KDLossInputs, Any], Tensor]
Paths = TwoPaths[Path]
Forward = Callable[[KDLossInputs, Any, bool], Result]  # with a gradient or without


def paths_of(loss: RowLoss, forward: Forward | None = None) -> Paths:
    """The eager autograd function and the registered op of a loss, by its kernel or `forward`."""
    forward = forward or functools.partial(_row_kernel.forward, loss)
    return Paths(_eager(loss, forward), _RegisteredOp(loss, forward))


def _of_reference(loss: RowLoss, inputs: KDLossInputs, options: Any, grad_loss: Tensor) -> Tensor:
    return backward_of_reference(
        lambda: loss.evaluate(inputs.constant(), options), inputs.student, grad_loss
    )


# ---- eager ----


def _eager(loss: RowLoss, forward: Forward) -> Path:
    def compute(ctx: Any, *arguments: Any) -> Tensor:
        *fields, options = arguments
        inputs = KDLossInputs(*fields)
        value, grad, unscale = forward(inputs, options, True)
        if options.inplace:
            increment_version(inputs.student)
        ctx.save_for_backward(grad, unscale, None if options.inplace else inputs.student)
        # Only double backward needs the rest. It is not saved: a teacher may come from
        # inference_mode, or its buffer may be written again before backward.
        ctx.constants = inputs[1:], versions_of(inputs.constants())
        ctx.options = options
        return value

    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        grad, unscale, student = ctx.saved_tensors
        constants = ctx.constants
        kept = graph_is_kept()
        if not kept:
            ctx.constants = None  # lets go of the teacher, as autograd does of saved tensors
        if torch.is_grad_enabled():  # create_graph: the result must be differentiable itself
            grad_student = _differentiable(loss, student, constants, ctx.options, grad_loss)
        else:
            grad_student = scale(grad, grad_loss, unscale, ctx.options.dim, kept)
        return grad_student, None, None, None, None, None, None

    apply = autograd_apply(loss.function, compute, backward)

    def eager(inputs: KDLossInputs, options: Any) -> Tensor:
        if isinstance(inputs.num_items, Tensor):
            inputs = _with_own_num_items(loss, inputs, inputs.num_items)
        if inputs.student.requires_grad and torch.is_grad_enabled():
            if options.inplace:
                check_memory(loss, inputs)
            return apply(*inputs, options)
        return forward(inputs, options, False).loss

    return eager


def _differentiable(
    loss: RowLoss,
    student: Tensor | None,
    constants: tuple[tuple[Any, ...], Versions],
    options: Any,
    grad_loss: Tensor,
) -> Tensor:
    """The gradient through plain PyTorch, from what an eager node holds."""
    if student is None:
        raise RuntimeError(
            f"{loss.function}: backward(create_graph=True) needs student_logits, which "
            "inplace=True has overwritten"
        )
    others, versions = constants
    inputs = KDLossInputs(student, *others)
    told = loss.teacher if inputs.indices is None else f"{loss.teacher}, teacher_indices"
    names = f"{told}, target or sample_weight"
    check_unchanged(loss.function, names, inputs.constants(), versions)
    return _of_reference(loss, inputs, options, grad_loss)


def _with_own_num_items(loss: RowLoss, inputs: KDLossInputs, num_items: Tensor) -> KDLossInputs:
    """The count as it is now: the caller's may change before backward."""
    module = _backends.module_for(inputs.student.get_device())
    assert module is not None
    settled = settle(loss, num_items, module, inputs.student)
    if isinstance(settled, Tensor) and num_items.dtype == settled.dtype:
        settled = settled.clone()  # it was not converted, so it is the caller's
    return inputs._replace(num_items=settled)


# ---- torch.compile and torch.export ----


class _RegisteredOp:
    """fastkd::<function>: loss, gradient for grad_loss = 1 (empty without), its unscale factor."""

    def __init__(self, loss: RowLoss, forward: Forward) -> None:
        self.loss = loss
        self.forward = forward
        fields = dataclasses.fields(loss.options)
        self.fields = [field for field in fields if field.name not in loss.eager_only]
        self.op = torch.library.custom_op(
            f"fastkd::{loss.function}",
            self._run,
            mutates_args=(),
            device_types=("cpu", "cuda"),
            schema="(Tensor student, Tensor teacher, Tensor? target, Tensor? sample_weight, "
            f"Tensor? num_items, Tensor? indices{schema_of(self.fields)}, bool with_grad) "
            "-> (Tensor, Tensor, Tensor)",
        )
        self.op.register_fake(self._fake)
        self.op.register_autograd(self._backward, setup_context=self._save)

    def __call__(self, inputs: KDLossInputs, options: Any) -> Tensor:
        constant = inputs.constant()
        num_items = constant.num_items
        if num_items is not None:
            device = inputs.student.device
            if isinstance(num_items, Tensor):
                num_items = num_items.to(device, torch.float64)
            else:  # torch.full keeps a symbol, as_tensor would compile anew for every value
                num_items = torch.full((), num_items, dtype=torch.float64, device=device)
        values = [getattr(options, field.name) for field in self.fields]
        for i, field in enumerate(self.fields):
            if field.type is int:  # with dynamic=True it arrives as a symbol
                values[i] = int(values[i])
        with_grad = inputs.student.requires_grad and torch.is_grad_enabled()
        value: Tensor = self.op(*constant[:4], num_items, constant.indices, *values, with_grad)[0]
        return value

    def _unpack(self, arguments: tuple[Any, ...]) -> tuple[KDLossInputs, Any, bool]:
        *values, with_grad = arguments
        named = zip((field.name for field in self.fields), values[6:], strict=True)
        return KDLossInputs(*values[:6]), self.loss.options(**dict(named)), with_grad

    def _run(self, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        inputs, options, with_grad = self._unpack(arguments)
        self.loss.check(inputs, options)  # an op may be called by anyone
        if torch.float64 in (inputs.student.dtype, inputs.teacher.dtype):
            name = self.loss.function
            raise TypeError(f"fastkd::{name} has no float64 kernel: call fastkd.{name}")
        value, grad, unscale = self.forward(inputs, options, with_grad)
        if grad is None:
            grad = inputs.student.new_empty(0)
        elif grad.stride() != (promised := new_gradient(inputs.student, options)).stride():
            grad = promised.copy_(grad)
        return value, grad, value.new_ones(()) if unscale is None else unscale

    def _fake(self, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        (student, *_), options, with_grad = self._unpack(arguments)
        dim = options.dim % student.ndim
        rows = student.shape[:dim] + student.shape[dim + 1 :]
        shape = rows if options.reduction == "none" else ()
        value = student.new_empty(shape, dtype=torch.float32)
        grad = new_gradient(student, options) if with_grad else student.new_empty(0)
        return value, grad, value.new_empty(())

    def _save(self, ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        of_call, ctx.options, ctx.with_grad = self._unpack(inputs)
        ctx.num_items = of_call.num_items
        _, grad, unscale = output
        ctx.mark_non_differentiable(grad, unscale)
        ctx.save_for_backward(grad, unscale, *of_call[:4], of_call.indices)

    def _backward(
        self, ctx: Any, grad_loss: Tensor, _grad_grad: Tensor, _grad_unscale: Tensor
    ) -> tuple[Tensor | None, ...]:
        grad, unscale, student, teacher, target, sample_weight, indices = ctx.saved_tensors
        if torch.is_grad_enabled() or not ctx.with_grad:  # exported without gradients, then trained
            inputs = KDLossInputs(student, teacher, target, sample_weight, ctx.num_items, indices)
            grad_student = _of_reference(self.loss, inputs, ctx.options, grad_loss)
        else:
            grad_student = scaled(grad, grad_loss, unscale, ctx.options.dim).to(student.dtype)
        return grad_student, *(None,) * (len(self.fields) + 6)
