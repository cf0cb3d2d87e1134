# SPDX-License-Identifier: Apache-2.0
"""Loads the compiled modules, and is the only place that takes an address of a tensor.

The same C++ is built once per instruction set; the best build that the CPU can run and that is
installed serves every call. FASTKD_CPU_CAPABILITY=base|avx2|avx512 overrides the choice.
"""

import contextlib
import ctypes
import importlib
import os
import platform
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

# The codes of csrc/core/dtype.h and csrc/core/logit_args.h.
DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
REDUCTION_CODES = {"none": 0, "sum": 1, "mean": 2, "batchmean": 3}
MAX_RANK = 8  # csrc/core/logit_layout.h

# From best to plainest, by what torch says the CPU can do.
_X86_BUILDS = {"AVX512": ("avx512", "avx2", "base"), "AVX2": ("avx2", "base")}

Described = tuple[int, int, tuple[int, ...], tuple[int, ...]]


class NativeModule(Protocol):
    """What csrc/bindings.cpp exports; every backend has the same functions."""

    def __hash__(self) -> int: ...

    def KdLossOptions(  # noqa: N802 - a C++ struct
        self, temperature: float, soft_weight: float, hard_weight: float, label_smoothing: float
    ) -> Any: ...

    def RowOptions(self, reduction: int, ignore_index: int) -> Any: ...  # noqa: N802

    def kd_loss(
        self,
        options: Any,
        rows: Any,
        dim: int,
        batch_size: int,
        num_items: float,
        student: Described,
        teacher: Described,
        target: int,
        sample_weight: int,
        loss: int,
        unscale: int,
        grad: Described | None,
    ) -> bool: ...

    def scale_gradient(
        self,
        dim: int,
        grad: Described,
        out: Described,
        grad_loss: int,
        per_row: bool,
        unscale: int,
    ) -> bool: ...

    def set_parallel_for(self, address: int) -> None: ...


@dataclass
class Backend:
    """The CPU module in use, and why others are not."""

    capability: str | None = None
    module: NativeModule | None = None
    failures: dict[str, str] = field(default_factory=dict)
    threads: str = "serial"
    warned: bool = False


def cpu_capabilities() -> tuple[str, ...]:
    """The builds that this CPU can run, best first."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return ("base",)
    return _X86_BUILDS.get(torch.backends.cpu.get_cpu_capability(), ("base",))


def cpu_module() -> NativeModule | None:
    """The module for CPU tensors, or None: then the reference serves, after one warning."""
    if _cpu.module is None:
        reasons = "; ".join(f"{name}: {why}" for name, why in _cpu.failures.items())
        message = f"fastkd has no native CPU module ({reasons})"
        if os.environ.get("FASTKD_REQUIRE_NATIVE") == "1":
            raise RuntimeError(f"{message}, and FASTKD_REQUIRE_NATIVE=1 forbids the reference")
        if not _cpu.warned:
            _cpu.warned = True
            warnings.warn(
                f"{message}; the PyTorch reference serves instead. Install a C++ compiler and "
                "reinstall fastkd to get the kernels.",
                RuntimeWarning,
                stacklevel=5,  # cpu_module, choose_path, _call, kd_loss, the user
            )
    return _cpu.module


def backend() -> Backend:
    """What is loaded, for info()."""
    return _cpu


@contextlib.contextmanager
def use_cpu_capability(capability: str | None) -> Iterator[None]:
    """Serve CPU tensors with another build for a while; None takes the kernels away. For tests."""
    global _cpu
    before = _cpu
    _cpu = _load((capability,)) if capability else Backend(failures={"all": "switched off"})
    if capability and _cpu.module is None:
        failures, _cpu = _cpu.failures, before
        raise RuntimeError(f"the {capability} build does not load: {failures[capability]}")
    try:
        yield
    finally:
        _cpu = before


class KDLossCall(NamedTuple):
    """What a call of kd_loss is given besides the logits."""

    options: Any  # module.KdLossOptions
    rows: Any  # module.RowOptions
    batch_size: int  # denominator of "batchmean"
    num_items: float  # < 0: the reduction's own denominator
    target: Tensor | None
    sample_weight: Tensor | None  # float32
    loss: Tensor  # float32
    unscale: Tensor | None  # [] float32


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
    options, rows, batch_size, num_items, target, sample_weight, loss, unscale = call
    return module.kd_loss(
        options,
        rows,
        dim,
        batch_size,
        num_items,
        _describe(student),
        _describe(teacher),
        _address(target),
        _address(sample_weight),
        loss.data_ptr(),
        _address(unscale),
        None if grad is None else _describe(grad),
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
    return module.scale_gradient(
        dim,
        described,
        described if out is grad else _describe(out),
        grad_loss.data_ptr(),
        grad_loss.ndim != 0,
        _address(unscale),
    )


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


def _parallel_for_address() -> int:
    """Address of torch's thread pool entry (torch >= 2.10), or 0."""
    folder = Path(torch.__file__).parent / "lib"
    names = {"Darwin": "libtorch_cpu.dylib", "Windows": "torch_cpu.dll"}
    try:
        library = ctypes.CDLL(str(folder / names.get(platform.system(), "libtorch_cpu.so")))
        return ctypes.cast(library.torch_parallel_for, ctypes.c_void_p).value or 0
    except (OSError, AttributeError):
        return 0


def _load(capabilities: tuple[str, ...]) -> Backend:
    """Import the first build that loads."""
    loaded = Backend()
    for capability in capabilities:
        try:
            module: Any = importlib.import_module(f"fastkd._cpu_{capability}")
        except ImportError as error:
            loaded.failures[capability] = str(error)
            continue
        if address := _parallel_for_address():
            module.set_parallel_for(address)
            loaded.threads = "torch"
        loaded.capability, loaded.module = capability, module
        break
    return loaded


def _choose() -> Backend:
    available = cpu_capabilities()
    wanted = os.environ.get("FASTKD_CPU_CAPABILITY")
    if not wanted:
        return _load(available)
    if wanted not in available:
        raise RuntimeError(
            f"FASTKD_CPU_CAPABILITY must be one of {', '.join(available)} on this CPU, "
            f"got {wanted!r}"
        )
    return _load((wanted,))


_cpu = _choose()
