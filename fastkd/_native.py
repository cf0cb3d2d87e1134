# SPDX-License-Identifier: Apache-2.0
"""Calls the compiled modules, and is the only place that takes an address of a tensor."""

import contextlib
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from fastkd._backends import CPU
from fastkd._native_module import Described, NativeModule

# The codes of csrc/core/dtype.h and csrc/core/logit_args.h.
DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
# Of csrc/losses/divergence.h.
DIVERGENCE_CODES = {"forward_kl": 0, "reverse_kl": 1, "js": 2, "tv": 3, "decoupled": 4}
# Of csrc/losses/topk_kd_loss.h.
TAIL_CODES = {"bucket": 0, "renormalize": 1, "renormalize_teacher": 2, "truncate": 3}
REDUCTION_CODES = {"none": 0, "sum": 1, "mean": 2, "batchmean": 3}
# Of csrc/core/pair_args.h.
CRITERION_CODES = {"smooth_l1": 0, "l1": 1, "l2": 2}
PAIR_REDUCTION_CODES = {"mean": 0, "sum": 1, "mean_distinct": 2}
SIMILARITY_CODES = {
    "similarity_preserving_loss": 0,
    "cosine_similarity_loss": 1,
    "pkt_loss": 2,
    "correlation_loss": 3,
}
PairKernel = Literal["rkd_loss", "similarity_loss"]
MAX_RANK = 8  # csrc/core/logit_layout.h


class KDLossCall(NamedTuple):
    """What a call of kd_loss or topk_kd_loss is given besides the logits."""

    options: Any  # module.KdLossOptions or module.TopKKdLossOptions
    rows: Any  # module.RowOptions
    batch_size: int  # denominator of "batchmean"
    num_items: float | Tensor  # < 0: the reduction's own denominator; [] float64 on the device
    target: Tensor | None
    sample_weight: Tensor | None  # float32
    loss: Tensor  # float32
    unscale: Tensor | None  # [] float32
    workspace: Tensor | None


class TopK(NamedTuple):
    """A teacher by K classes a row, in the order of the rows."""

    values: Tensor  # [rows, K] float32, contiguous
    indices: Tensor  # [rows, K] int64, contiguous


def new_workspace(module: NativeModule, logits: Tensor, dim: int) -> Tensor | None:
    """Scratch that the module wants for a call over these logits."""
    if module.device_type == "cpu":  # wants none
        return None
    size = module.workspace_bytes(logits.numel() // logits.shape[dim])
    return torch.empty(size, dtype=torch.uint8, device=logits.device) if size else None


def kd_loss(
    module: NativeModule,
    call: KDLossCall,
    dim: int,
    student: Tensor,
    teacher: Tensor,
    grad: Tensor | None,
) -> bool:
    """Run the kernel; False: it can't read these strides, pass contiguous rows."""
    if student.ndim > MAX_RANK:
        return False
    return _run_rows(module.kd_loss, call, dim, student, (_describe(teacher),), grad)


def topk_kd_loss(
    module: NativeModule,
    call: KDLossCall,
    dim: int,
    student: Tensor,
    teacher: TopK,
    grad: Tensor | None,
) -> bool:
    """The same with a teacher known by K classes a row."""
    if student.ndim > MAX_RANK:
        return False
    values, indices = teacher
    told = values.shape[1], _address(values), _address(indices)
    return _run_rows(module.topk_kd_loss, call, dim, student, told, grad)


def _run_rows(
    kernel: Callable[..., bool],
    call: KDLossCall,
    dim: int,
    student: Tensor,
    teacher: tuple[Any, ...],
    grad: Tensor | None,
) -> bool:
    options, rows, batch_size, num_items, target, sample_weight, loss, unscale, workspace = call
    on_device = 0
    if isinstance(num_items, Tensor):
        on_device, num_items = num_items.data_ptr(), -1.0
    with _device_of(student):
        return kernel(
            options,
            rows,
            dim,
            batch_size,
            num_items,
            on_device,
            _describe(student),
            *teacher,
            _address(target),
            _address(sample_weight),
            loss.data_ptr(),
            _address(unscale),
            None if grad is None else _describe(grad),
            _address(workspace),
            *_queue(student),
        )


def scale_gradient(
    module: NativeModule,
    dim: int,
    grad: Tensor,
    out: Tensor,
    grad_loss: Tensor,
    unscale: Tensor | None,
) -> bool:
    """out = grad * grad_loss * unscale; False: the kernel can't read these strides."""
    if grad.ndim > MAX_RANK:
        return False
    described = _describe(grad)
    with _device_of(grad):
        return module.scale_gradient(
            dim,
            described,
            described if out is grad else _describe(out),
            grad_loss.data_ptr(),
            grad_loss.ndim != 0,
            _address(unscale),
            *_queue(grad),
        )


def run_pairs(
    module: NativeModule,
    kernel: PairKernel,
    options: Any,
    student: Tensor,
    teacher: Tensor,
    loss: Tensor,
    grad: Tensor | None,
) -> None:
    """Run a relational kernel over contiguous float32 embeddings, [N, D] each."""
    sizes = len(student), student.shape[1], teacher.shape[1]
    bytes_needed = getattr(module, f"{kernel}_workspace")(options, *sizes, grad is not None)
    workspace = torch.empty(bytes_needed, dtype=torch.uint8, device=student.device)
    with _device_of(student):
        getattr(module, kernel)(
            options,
            *sizes,
            _address(student),
            _address(teacher),
            _address(loss),
            _address(grad),
            _address(workspace),
            *_queue(student),
        )


def attention_transfer_loss(
    module: NativeModule,
    student: Tensor,
    teacher: Tensor,
    power: float,
    mean: bool,
    loss: Tensor,
    map_grad: Tensor | None,
) -> bool:
    """Run the kernel over features [N, C, P]; False: it can't read these strides."""
    bytes_needed = module.attention_transfer_loss_workspace(
        len(student), student.shape[2], map_grad is not None
    )
    workspace = torch.empty(bytes_needed, dtype=torch.uint8, device=student.device)
    with _device_of(student):
        return module.attention_transfer_loss(
            power,
            mean,
            _describe(student),
            _describe(teacher),
            _address(loss),
            _address(map_grad),
            _address(workspace),
            *_queue(student),
        )


def attention_transfer_gradient(
    module: NativeModule,
    student: Tensor,
    power: float,
    map_grad: Tensor,
    grad_loss: Tensor,
    grad: Tensor,
) -> bool:
    """Run backward over features [N, C, P]; False: the kernel can't read these strides."""
    with _device_of(student):
        return module.attention_transfer_gradient(
            power,
            _describe(student),
            _address(map_grad),
            _address(grad_loss),
            _describe(grad),
            *_queue(student),
        )


def may_overlap(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors may have bytes in common: False is certain."""
    first, last = _extent(one)
    other_first, other_last = _extent(other)
    return first < other_last and other_first < last


def _extent(tensor: Tensor) -> tuple[int, int]:
    """Addresses of the first byte and behind the last."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    elements = 1 + sum((size - 1) * step for size, step in sizes) if tensor.numel() else 0
    return tensor.data_ptr(), tensor.data_ptr() + elements * tensor.element_size()


# Where the current device is the tensor's, as on the CPU it always is.
_UNCHANGED = contextlib.nullcontext()


def _device_of(tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    """Make a tensor's GPU the current one, as the kernels expect.

    torch's guard creates no context on the GPU that was current before; CUDA's own way back to it
    would.
    """
    device = tensor.get_device()
    if device == CPU or device == torch.cuda.current_device():
        return _UNCHANGED
    return torch.cuda.device(device)


def _queue(tensor: Tensor) -> tuple[int, int]:
    """Device and current stream, as an address."""
    device = tensor.get_device()
    return (0, 0) if device == CPU else (device, torch._C._cuda_getCurrentRawStream(device))


def _describe(tensor: Tensor) -> Described:
    return tensor.data_ptr(), DTYPE_CODES[tensor.dtype], tensor.shape, tensor.stride()


def _address(tensor: Tensor | None) -> int:
    if tensor is None:
        return 0
    address = tensor.data_ptr()
    if address == 0 and tensor.numel():
        raise RuntimeError(
            "fastkd: a tensor has no storage (was it freed by resize_(0) or sharding?)"
        )
    return address
