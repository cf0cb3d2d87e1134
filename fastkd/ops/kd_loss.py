# SPDX-License-Identifier: Apache-2.0
"""kd_loss over its kernel: the eager autograd function and the registered op.

Both compute the gradient for grad_loss = 1 in the forward call, while the logits are in cache, and
scale it in backward. float16 gradients are stored times a power of two, out of the subnormals, and
scaled back with grad_loss (`unscale`).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastkd import _backends, _front, _native
from fastkd._native_module import NativeModule
from fastkd._options import KDLossInputs, KDLossOptions
from fastkd._validation import check_kd_loss, read_num_items, target_out_of_range
from fastkd.ops._graph import (
    backward_of_reference,
    check_unchanged,
    graph_is_kept,
    versions_of,
)
from fastkd.ops._module import module_of
from fastkd.reference.kd_loss import evaluate


class Result(NamedTuple):
    """What the kernel gives."""

    loss: Tensor
    grad: Tensor | None  # for grad_loss = 1, times 1 / unscale
    unscale: Tensor | None  # [] float32; None: 1


def forward(inputs: KDLossInputs, options: KDLossOptions, with_grad: bool) -> Result:
    """Run the kernel on plain tensors of a device that has a module."""
    student, teacher, target, sample_weight, num_items = inputs
    dim = options.dim % student.ndim
    if target is not None and not target.is_contiguous():
        target = target.contiguous()
    if sample_weight is not None:
        sample_weight = sample_weight.detach().to(torch.float32).contiguous()
    rows = student.shape[:dim] + student.shape[dim + 1 :]
    # The device is named: torch.set_default_device must not move what the kernel writes.
    device = student.device
    shape = rows if options.reduction == "none" else ()
    loss = torch.empty(shape, dtype=torch.float32, device=device)
    grad = torch.empty_like(student) if with_grad else None
    unscale = None
    if with_grad and student.dtype == torch.float16:
        unscale = torch.empty((), dtype=torch.float32, device=device)

    module = module_of("kd_loss", student)
    call = _native.KDLossCall(
        *_native_options(module, options, target is not None),
        rows[0] if rows else 1,
        -1.0 if num_items is None else _settle(num_items, module, student),
        target,
        sample_weight,
        loss,
        unscale,
        _native.new_workspace(module, student, dim),
    )
    try:
        if not _native.kd_loss(module, call, dim, student, teacher, grad):
            # Strides that no driver reads: one copy to contiguous rows.
            student_rows, teacher_rows = _class_rows(student, dim), _class_rows(teacher, dim)
            grad = torch.empty_like(student_rows) if with_grad else None
            if not _native.kd_loss(module, call, 1, student_rows, teacher_rows, grad):
                raise RuntimeError("kd_loss: the kernel refused contiguous rows (a bug in fastkd)")
            if grad is not None:
                grad = grad.view(student.movedim(dim, -1).shape).movedim(-1, dim)
    except IndexError as error:
        assert target is not None
        row = int(str(error))
        raise target_out_of_range("kd_loss", target, row, student.shape[dim]) from None
    return Result(loss, grad, unscale)


def _settle(num_items: float | Tensor, module: NativeModule, student: Tensor) -> float | Tensor:
    """num_items as the kernel takes it: what is in device memory stays there."""
    on_device = isinstance(num_items, Tensor) and num_items.get_device() == student.get_device()
    if isinstance(num_items, Tensor) and on_device and module.device_type == "cuda":
        return num_items.detach().to(torch.float64)
    return read_num_items("kd_loss", num_items)


def _class_rows(logits: Tensor, dim: int) -> Tensor:
    return logits.detach().movedim(dim, -1).reshape(-1, logits.shape[dim]).contiguous()


@functools.lru_cache(maxsize=256)
def _native_options(
    module: NativeModule, options: KDLossOptions, has_target: bool
) -> tuple[Any, Any]:
    alpha = options.alpha if has_target else 1.0
    return (
        module.KdLossOptions(
            options.temperature,
            alpha * options.soft_factor,
            1.0 - alpha,
            options.label_smoothing,
        ),
        module.RowOptions(_native.REDUCTION_CODES[options.reduction], options.ignore_index),
    )


class KDLossFunction(torch.autograd.Function):
    """The eager path. `forward(ctx, ...)` style: setup_context costs 25 us a call."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        """Compute loss and gradient of the fields of a KDLossInputs and its options."""
        *fields, options = arguments
        inputs = KDLossInputs(*fields)
        loss, grad, unscale = forward(inputs, options, with_grad=True)
        ctx.save_for_backward(grad, unscale, inputs.student)
        # Only double backward needs the rest. It is not saved: a teacher may come from
        # inference_mode, or its buffer may be written again before backward.
        ctx.constants = inputs[1:], versions_of(inputs[1:4])
        ctx.options = options
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the gradient by grad_loss."""
        grad, unscale, student = ctx.saved_tensors
        constants, versions = ctx.constants
        kept = graph_is_kept()
        if not kept:
            ctx.constants = None  # lets go of the teacher, as autograd does of saved tensors
        if torch.is_grad_enabled():  # create_graph: the result must be differentiable itself
            inputs = KDLossInputs(student, *constants)
            names = "teacher_logits, target or sample_weight"
            check_unchanged("kd_loss", names, inputs[1:4], versions)
            grad_student = _backward_of_reference(inputs, ctx.options, grad_loss)
        else:
            grad_student = _scale(grad, grad_loss, unscale, ctx.options.dim, kept)
        return grad_student, None, None, None, None, None


# Function.apply looks for functorch wrappers and then calls this; the front has excluded them,
# which saves 2 us a call.
_apply: Callable[..., Tensor] = super(torch.autograd.Function, KDLossFunction).apply


def _scale(grad: Tensor, grad_loss: Tensor, unscale: Tensor | None, dim: int, kept: bool) -> Tensor:
    if _front.in_transform() or not _front.is_plain(grad_loss):  # is_grads_batched: vmap here
        return _scaled(grad, grad_loss, unscale, dim)
    # A graph that is not kept frees `grad` after this call: then it may be overwritten.
    out = torch.empty_like(grad) if kept else grad
    module = _backends.ready_module(grad.get_device())
    assert module is not None
    if grad_loss.ndim:
        grad_loss = grad_loss.contiguous()
    if _native.scale_gradient(module, dim % grad.ndim, grad, out, grad_loss, unscale):
        return out
    return _scaled(grad, grad_loss, unscale, dim)


def _scaled(grad: Tensor, grad_loss: Tensor, unscale: Tensor | None, dim: int) -> Tensor:
    factor = grad_loss if unscale is None else grad_loss * unscale
    if factor.ndim:
        factor = factor.unsqueeze(dim)
    return (grad.to(torch.float32) * factor).to(grad.dtype)


def _backward_of_reference(
    inputs: KDLossInputs, options: KDLossOptions, grad_loss: Tensor
) -> Tensor:
    return backward_of_reference(
        lambda: evaluate(inputs.constant(), options), inputs.student, grad_loss
    )


# The fields of KDLossInputs, then those of KDLossOptions in their order.
_SCHEMA = (
    "(Tensor student, Tensor teacher, Tensor? target, Tensor? sample_weight, Tensor? num_items, "
    "float temperature, float alpha, str divergence, int dim, int ignore_index, "
    "float label_smoothing, str reduction, bool temperature_squared, bool common_vocab, "
    "bool with_grad) -> (Tensor, Tensor, Tensor)"
)


def _unpack(arguments: tuple[Any, ...]) -> tuple[KDLossInputs, KDLossOptions, bool]:
    *values, with_grad = arguments
    return KDLossInputs(*values[:5]), KDLossOptions(*values[5:]), with_grad


@torch.library.custom_op(
    "fastkd::kd_loss", mutates_args=(), device_types=("cpu", "cuda"), schema=_SCHEMA
)
def kd_loss_op(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, gradient for grad_loss = 1 (empty without with_grad), and its unscale factor."""
    inputs, options, with_grad = _unpack(arguments)
    check_kd_loss(inputs, options)  # an op may be called by anyone
    if torch.float64 in (inputs.student.dtype, inputs.teacher.dtype):
        raise TypeError("fastkd::kd_loss has no float64 kernel: call fastkd.kd_loss")
    loss, grad, unscale = forward(inputs, options, with_grad)
    if grad is None:
        grad = inputs.student.new_empty(0)
    elif grad.stride() != (promised := torch.empty_like(inputs.student)).stride():
        grad = promised.copy_(grad)
    return loss, grad, loss.new_ones(()) if unscale is None else unscale


@kd_loss_op.register_fake
def _(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    (student, *_), options, with_grad = _unpack(arguments)
    dim = options.dim % student.ndim
    rows = student.shape[:dim] + student.shape[dim + 1 :]
    loss = student.new_empty(rows if options.reduction == "none" else (), dtype=torch.float32)
    grad = torch.empty_like(student) if with_grad else student.new_empty(0)
    return loss, grad, loss.new_empty(())


def _save_for_op_backward(
    ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]
) -> None:
    fields, ctx.options, ctx.with_grad = _unpack(inputs)
    ctx.num_items = fields.num_items
    _, grad, unscale = output
    ctx.mark_non_differentiable(grad, unscale)
    ctx.save_for_backward(grad, unscale, *fields[:4])


def _op_backward(
    ctx: Any, grad_loss: Tensor, _grad_grad: Tensor, _grad_unscale: Tensor
) -> tuple[Tensor | None, ...]:
    grad, unscale, student, teacher, target, sample_weight = ctx.saved_tensors
    if torch.is_grad_enabled() or not ctx.with_grad:  # exported without gradients, then trained
        inputs = KDLossInputs(student, teacher, target, sample_weight, ctx.num_items)
        grad_student = _backward_of_reference(inputs, ctx.options, grad_loss)
    else:
        half = grad.dtype == torch.float16
        grad_student = _scaled(grad, grad_loss, unscale if half else None, ctx.options.dim)
    return grad_student, *(None,) * 14


kd_loss_op.register_autograd(_op_backward, setup_context=_save_for_op_backward)


def eager(inputs: KDLossInputs, options: KDLossOptions) -> Tensor:
    """The eager path: an autograd node only where a gradient is wanted."""
    if isinstance(inputs.num_items, Tensor):  # read now: it may change before backward
        module = _backends.module_for(inputs.student.get_device())
        assert module is not None
        num_items = _settle(inputs.num_items, module, inputs.student)
        if isinstance(num_items, Tensor) and inputs.num_items.dtype == num_items.dtype:
            num_items = num_items.clone()  # it was not converted, so it is the caller's
        inputs = inputs._replace(num_items=num_items)
    if inputs.student.requires_grad and torch.is_grad_enabled():
        return _apply(*inputs, options)
    return forward(inputs, options, with_grad=False).loss


def compiled(inputs: KDLossInputs, options: KDLossOptions) -> Tensor:
    """The path of torch.compile and torch.export: the registered op."""
    student, teacher, target, sample_weight, num_items = inputs.constant()
    if num_items is not None:
        if isinstance(num_items, Tensor):
            num_items = num_items.to(student.device, torch.float64)
        else:  # torch.full keeps a symbol, as_tensor would compile anew for every value
            num_items = torch.full((), num_items, dtype=torch.float64, device=student.device)
    loss: Tensor
    loss, _, _ = kd_loss_op(
        student,
        teacher,
        target,
        sample_weight,
        num_items,
        options.temperature,
        options.alpha,
        options.divergence,
        int(options.dim),  # with dynamic=True it arrives as a symbol
        int(options.ignore_index),
        options.label_smoothing,
        options.reduction,
        options.temperature_squared,
        options.common_vocab,
        student.requires_grad and torch.is_grad_enabled(),
    )
    return loss
