# SPDX-License-Identifier: Apache-2.0
"""The gate: which of three ways a call takes. Nothing below it checks what a tensor is.

eager      plain CPU or CUDA tensors outside any transform: addresses go to the kernel
compiled   torch.compile and torch.export: ops registered with torch.library
reference  all the rest (vmap, func.grad, subclasses, modes, float64, other devices): always
           right, never fast
"""

import functools
from typing import Literal

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _disable_current_modes

from fastkd import _backends, _native
from fastkd._options import KDLossInputs

Path = Literal["eager", "compiled", "reference"]


def _plain_key_sets(device: str) -> frozenset[int]:
    """Dispatch keys of tensors of a device that are nothing but memory, as raw bits.

    One comparison then excludes functorch wrappers, meta, fake, sparse, quantized and zero tensors,
    and lazy conjugates and negations: whatever would not be at its address. The caller may be in
    any mode: an import, or the first call on CUDA.
    """
    tensors = []
    with _disable_current_modes():
        for inference in (False, True):
            with torch.inference_mode(inference):
                tensors.append(torch.empty(0, device=device))
    return frozenset(torch._C._dispatch_keys(t).raw_repr() for t in tensors)


_plain_keys = set(_plain_key_sets("cpu"))  # and CUDA's, once there is a CUDA tensor
_PLAIN_TYPES = (Tensor, torch.nn.Parameter)


def choose_path(student: Tensor, teacher: Tensor, *others: Tensor | None) -> Path:
    """The way of a call with these checked arguments."""
    if torch.compiler.is_compiling():
        from fastkd._compiling import is_served  # noqa: PLC0415 - it imports torch._dynamo

        served = _has_kernel(student, teacher) and student.device.type in ("cpu", "cuda")
        return "compiled" if served and is_served(student.get_device()) else "reference"
    if in_transform() or not _has_kernel(student, teacher):
        return "reference"
    if type(student) in _PLAIN_TYPES and student.is_cuda:
        _plain_keys.update(_cuda_key_sets())
    for tensor in (student, teacher, *others):
        if tensor is not None and not is_plain(tensor):
            return "reference"
    return "reference" if _backends.module_for(student.get_device()) is None else "eager"


@functools.cache
def _cuda_key_sets() -> frozenset[int]:
    return _plain_key_sets("cuda")


def is_ordinary_call(inputs: KDLossInputs, dim: int) -> bool:
    """Whether this is, at a glance, the common call: plain tensors of one shape, classes last.

    True only where every check of the public function would pass and choose_path would say eager;
    whatever is wrong or rare goes the long way. It saves the checks' 8 us on the calls where 8 us
    are a fifth.
    """
    student, teacher, target, sample_weight, num_items, _ = inputs
    if sample_weight is not None or num_items is not None:
        return False
    if torch.compiler.is_compiling() or in_transform():
        return False
    plain = is_plain(student) and is_plain(teacher) and (target is None or is_plain(target))
    if not plain or not _has_kernel(student, teacher):
        return False
    device = student.get_device()
    if teacher.get_device() != device or _backends.ready_module(device) is None:
        return False
    shape = student.shape
    if not shape or shape[-1] == 0 or dim not in (-1, len(shape) - 1) or teacher.shape != shape:
        return False
    return target is None or (
        target.dtype == torch.int64 and target.shape == shape[:-1] and target.get_device() == device
    )


def _has_kernel(student: Tensor, teacher: Tensor) -> bool:
    return student.dtype in _native.DTYPE_CODES and teacher.dtype in _native.DTYPE_CODES


def is_plain(tensor: Tensor) -> bool:
    """Whether the tensor is ordinary CPU or CUDA memory, and of torch's own types."""
    return type(tensor) in _PLAIN_TYPES and (
        torch._C._dispatch_keys(tensor).raw_repr() in _plain_keys
    )


def is_seen_by_autograd_alone(*tensors: Tensor | None) -> bool:
    """Whether an autograd function of torch's operations may serve, of any device and dtype."""
    if torch.compiler.is_compiling() or in_transform():
        return False
    return all(tensor is None or type(tensor) in _PLAIN_TYPES for tensor in tensors)


def in_transform() -> bool:
    """Whether something must see every operation: functorch, a mode, forward-mode AD, a trace."""
    return bool(
        torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack()
        or forward_ad._current_level >= 0
        or torch._C._get_tracing_state() is not None
    )
