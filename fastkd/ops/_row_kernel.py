# SPDX-License-Identifier: Apache-2.0
"""Calls of the kernel of a loss of rows of logits.

The gradient for grad_loss = 1 is computed with the loss, while the logits are in cache, and scaled
in backward. float16 gradients are stored times a power of two, out of the subnormals, and scaled
back with grad_loss (`unscale`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastkd import _backends, _front, _native
from fastkd._native_module import NativeModule
from fastkd._options import KDLossInputs
from fastkd._topk_validation import topk_error
from fastkd._validation import read_num_items, target_out_of_range
from fastkd.ops._module import module_of


class RowLoss(NamedTuple):
    """What makes one loss."""

    function: str  # the public one's name
    options: Any  # a dataclass of numbers and words; dim, ignore_index, reduction, inplace in it
    eager_only: tuple[str, ...]  # options that the registered op does not have
    check: Callable[[KDLossInputs, Any], None]  # of the public function's tensors
    # Module, options, whether there is a target -> options of the kernel, and of the rows.
    native_options: Callable[[NativeModule, Any, bool], tuple[Any, Any]]
    evaluate: Callable[[KDLossInputs, Any], Tensor]  # in plain PyTorch
    teacher: str = "teacher_logits"  # what the public function calls it


class Result(NamedTuple):
    """What the kernel gives."""

    loss: Tensor
    grad: Tensor | None  # for grad_loss = 1, times 1 / unscale
    unscale: Tensor | None  # [] float32; None: 1


def forward(loss: RowLoss, inputs: KDLossInputs, options: Any, with_grad: bool) -> Result:
    """Run the kernel on plain tensors of a device that has a module."""
    student, _, target, sample_weight, num_items, _ = inputs
    dim = options.dim % student.ndim
    if target is not None and not target.is_contiguous():
        target = target.contiguous()
    if sample_weight is not None:
        sample_weight = sample_weight.detach().to(torch.float32).contiguous()
    rows = student.shape[:dim] + student.shape[dim + 1 :]
    # The device is named: torch.set_default_device must not move what the kernel writes.
    device = student.device
    shape = rows if options.reduction == "none" else ()
    value = torch.empty(shape, dtype=torch.float32, device=device)
    grad = None
    if with_grad:
        grad = student.detach() if options.inplace else new_gradient(student, options)
    unscale = None
    if with_grad and student.dtype == torch.float16:
        unscale = torch.empty((), dtype=torch.float32, device=device)

    module = module_of(loss.function, student)
    call = _native.KDLossCall(
        *loss.native_options(module, options, target is not None),
        rows[0] if rows else 1,
        -1.0 if num_items is None else settle(loss, num_items, module, student),
        target,
        sample_weight,
        value,
        unscale,
        _native.new_workspace(module, student, dim),
    )
    try:
        grad = _run(loss, module, call, inputs, options, grad)
    except IndexError as error:
        assert target is not None
        row = int(str(error))
        raise target_out_of_range(loss.function, target, row, student.shape[dim]) from None
    except KeyError as error:
        row = int(error.args[0])
        raise topk_error(inputs, options, student.shape[dim], row) from None
    return Result(value, grad, unscale)


def _run(
    loss: RowLoss,
    module: NativeModule,
    call: _native.KDLossCall,
    inputs: KDLossInputs,
    options: Any,
    grad: Tensor | None,
) -> Tensor | None:
    """Call the kernel, which fills `grad`, or another tensor that is returned."""
    student, dim = inputs.student, options.dim % inputs.student.ndim
    kernel: Callable[..., bool] = _native.kd_loss
    teacher: Tensor | _native.TopK = inputs.teacher
    if inputs.indices is not None:
        kernel, teacher = _native.topk_kd_loss, _topk_rows(inputs.teacher, inputs.indices, dim)
    if kernel(module, call, dim, student, teacher, grad):
        return grad
    # Strides that no driver reads: one copy to contiguous rows.
    student_rows = _class_rows(student, dim)
    teacher_rows = _class_rows(teacher, dim) if isinstance(teacher, Tensor) else teacher
    rows_grad = None if grad is None else torch.empty_like(student_rows)
    if not kernel(module, call, 1, student_rows, teacher_rows, rows_grad):
        raise RuntimeError(f"{loss.function}: the kernel refused contiguous rows (a bug in fastkd)")
    if rows_grad is None:
        return None
    grad = rows_grad.view(student.movedim(dim, -1).shape).movedim(-1, dim)
    return student.detach().copy_(grad) if options.inplace else grad


def row_options(module: NativeModule, options: Any) -> Any:
    """The kernel's options of which rows count, and how."""
    return module.RowOptions(_native.REDUCTION_CODES[options.reduction], options.ignore_index)


def new_gradient(student: Tensor, options: Any) -> Tensor:
    """What takes the gradient: in float32 where the reduction's factor is put on in backward."""
    wide = getattr(options, "standardize_logits", False)
    return torch.empty_like(student, dtype=torch.float32 if wide else student.dtype)


def check_memory(loss: RowLoss, inputs: KDLossInputs) -> None:
    """Raise where writing over the student's logits would change what has yet to be read."""
    student, teacher, target, sample_weight, _, indices = inputs
    if not _is_disjoint(student):
        raise ValueError(
            f"{loss.function}: with inplace=True every logit of the student must have its own "
            f"memory, got shape {tuple(student.shape)} with strides {student.stride()}"
        )
    others = {
        loss.teacher: teacher,
        "target": target,
        "sample_weight": sample_weight,
        "teacher_indices": indices,
    }
    for name, other in others.items():
        if other is not None and _native.may_overlap(student, other):
            raise ValueError(
                f"{loss.function}: with inplace=True {name} must not lie in the memory of "
                "student_logits, nor between its rows: pass a clone"
            )


def _is_disjoint(logits: Tensor) -> bool:
    """Whether no two elements share memory, as far as strides tell."""
    reach = 1
    for step, size in sorted(zip(logits.stride(), logits.shape, strict=True)):
        if size > 1 and step < reach:
            return False
        reach = max(reach, step * size)
    return True


def settle(
    loss: RowLoss, num_items: float | Tensor, module: NativeModule, student: Tensor
) -> float | Tensor:
    """num_items as the kernel takes it: what is in device memory stays there."""
    on_device = isinstance(num_items, Tensor) and num_items.get_device() == student.get_device()
    if isinstance(num_items, Tensor) and on_device and module.device_type == "cuda":
        return num_items.detach().to(torch.float64)
    return read_num_items(loss.function, num_items)


def _topk_rows(values: Tensor, indices: Tensor, dim: int) -> _native.TopK:
    """As the kernel reads them; contiguous float32 and int64, classes last, are not copied."""
    values = values.detach().movedim(dim, -1)
    count = values.shape[-1]
    rows = indices.movedim(dim, -1).to(torch.int64).reshape(-1, count).contiguous()
    return _native.TopK(values.to(torch.float32).reshape(-1, count).contiguous(), rows)


def _class_rows(logits: Tensor, dim: int) -> Tensor:
    return logits.detach().movedim(dim, -1).reshape(-1, logits.shape[dim]).contiguous()


def scale(grad: Tensor, grad_loss: Tensor, unscale: Tensor | None, dim: int, kept: bool) -> Tensor:
    """grad * grad_loss * unscale; a graph that is not `kept` lets `grad` be overwritten."""
    if _front.in_transform() or not _front.is_plain(grad_loss):  # is_grads_batched: vmap here
        return scaled(grad, grad_loss, unscale, dim)
    # A graph that is not kept frees `grad` after this call: then it may be overwritten.
    out = torch.empty_like(grad) if kept else grad
    module = _backends.ready_module(grad.get_device())
    assert module is not None
    if grad_loss.ndim:
        grad_loss = grad_loss.contiguous()
    if _native.scale_gradient(module, dim % grad.ndim, grad, out, grad_loss, unscale):
        return out
    return scaled(grad, grad_loss, unscale, dim)


def scaled(grad: Tensor, grad_loss: Tensor, unscale: Tensor | None, dim: int) -> Tensor:
    """The same by torch's operations."""
    factor = grad_loss if unscale is None else grad_loss * unscale
    if factor.ndim:
        factor = factor.unsqueeze(dim)
    return (grad.to(torch.float32) * factor).to(grad.dtype)
