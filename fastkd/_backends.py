# SPDX-License-Identifier: Apache-2.0
"""Finds and loads the compiled modules: which serves the tensors of a device, and why not others.

The same C++ is built once per CPU instruction set and once for CUDA, and every module has the same
functions. The best CPU build that the machine can run and that is installed serves CPU tensors;
FASTKD_CPU_CAPABILITY=base|avx2|avx512 overrides the choice. The CUDA module is imported when the
first CUDA tensor comes.
"""

import contextlib
import ctypes
import importlib
import os
import platform
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fastkd._native_module import INTERFACE, NativeModule

# From best to plainest, by what torch says the CPU can do.
_X86_BUILDS = {"AVX512": ("avx512", "avx2", "base"), "AVX2": ("avx2", "base")}

# Modules and compiled functions are called from torch.
_NOT_THE_USER = tuple(f"{Path(file).parent}{os.sep}" for file in (__file__, torch.__file__))

CPU = -1  # what Tensor.get_device() says of CPU tensors; CUDA devices count from 0


@dataclass
class CpuBackend:
    """The CPU module in use, and why others are not."""

    capability: str | None = None
    module: NativeModule | None = None
    failures: dict[str, str] = field(default_factory=dict)
    threads: str = "serial"


def module_for(device: int) -> NativeModule | None:
    """The module for tensors of a device, or None: then the reference serves, after one warning."""
    module = loaded_module(device)
    if module is None:
        _complain(device)
    return module


def loaded_module(device: int) -> NativeModule | None:
    """The same without a word."""
    if device not in _modules:
        _modules[device], _failures[device] = _load_cuda(device)
    return _modules[device]


# What was found so far, by device.
_modules: dict[int, NativeModule | None] = {}
_failures: dict[int, str] = {}
_warned: set[int] = set()


# The module for tensors of a device, if it has been asked for before: the quick question.
ready_module: Callable[[int], NativeModule | None] = _modules.get


def known_gpus() -> list[int]:
    """The GPUs that have been asked about."""
    return [device for device in _modules if device != CPU]


def failure(device: int) -> str:
    """Why there is no module for a device."""
    return _failures.get(device, "")


_cpu = CpuBackend()


def cpu_backend() -> CpuBackend:
    """What serves CPU tensors, for info()."""
    return _cpu


def cuda_module() -> tuple[Any, str]:
    """The CUDA module whatever the GPUs and the driver, or None and why there is none."""
    return _import("_cuda")


def _complain(device: int) -> None:
    name = "CPU" if device == CPU else "CUDA"
    message = f"fastkd has no native {name} module ({_failures[device]})"
    if os.environ.get("FASTKD_REQUIRE_NATIVE") == "1":
        raise RuntimeError(f"{message}, and FASTKD_REQUIRE_NATIVE=1 forbids the reference")
    if device in _warned:
        return
    _warned.add(device)
    way_out = (
        "Reinstalling fastkd where there is a C++ compiler brings the kernels."
        if device == CPU
        else "`python -m fastkd info` tells what there is."
    )
    warnings.warn(
        f"{message}; the PyTorch reference serves instead. {way_out}",
        RuntimeWarning,
        stacklevel=_depth_of_the_user(),
    )


def _depth_of_the_user() -> int:
    """How far above the caller of this function the first frame outside fastkd and torch is."""
    # warnings.warn(skip_file_prefixes=) does the same from Python 3.12 on.
    frame, depth = sys._getframe(1), 1
    while frame.f_code.co_filename.startswith(_NOT_THE_USER) and frame.f_back is not None:
        frame, depth = frame.f_back, depth + 1
    return depth


# ---- CPU ----


def cpu_capabilities() -> tuple[str, ...]:
    """The builds that this CPU could run, best first."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return ("base",)
    return _X86_BUILDS.get(torch.backends.cpu.get_cpu_capability(), ("base",))


@contextlib.contextmanager
def use_on_cpu(build: str | None) -> Iterator[None]:
    """Serve CPU tensors with another build for a while; None takes the kernels away. For tests.

    Args:
        build: one of `cpu_capabilities()`, or "cuda_emulated", where it is built.
    """
    before = _cpu
    backend = _load_cpu(build) if build else CpuBackend(failures={"all": "switched off"})
    if build and backend.module is None:
        raise RuntimeError(f"the {build} build does not load: {backend.failures[build]}")
    _serve_cpu(backend)
    try:
        yield
    finally:
        _serve_cpu(before)


def _serve_cpu(backend: CpuBackend) -> None:
    global _cpu
    _cpu = backend
    _modules[CPU] = backend.module
    _failures[CPU] = "; ".join(f"{name}: {why}" for name, why in backend.failures.items())
    _warned.discard(CPU)


def _load_cpu(*builds: str) -> CpuBackend:
    """Import the first build that loads."""
    backend = CpuBackend()
    for build in builds:
        name = f"_{build}" if build == "cuda_emulated" else f"_cpu_{build}"
        module, why = _import(name)
        if module is None:
            backend.failures[build] = why
            continue
        if module.device_type == "cpu" and (address := _parallel_for_address()):
            module.set_parallel_for(address)
            backend.threads = "torch"
        backend.capability, backend.module = build, module
        break
    return backend


def _parallel_for_address() -> int:
    """Address of torch's thread pool entry (torch >= 2.10), or 0."""
    folder = Path(torch.__file__).parent / "lib"
    names = {"Darwin": "libtorch_cpu.dylib", "Windows": "torch_cpu.dll"}
    try:
        library = ctypes.CDLL(str(folder / names.get(platform.system(), "libtorch_cpu.so")))
        return ctypes.cast(library.torch_parallel_for, ctypes.c_void_p).value or 0
    except (OSError, AttributeError):
        return 0


def _choose_cpu() -> CpuBackend:
    available = cpu_capabilities()
    wanted = os.environ.get("FASTKD_CPU_CAPABILITY")
    if not wanted:
        return _load_cpu(*available)
    if wanted not in available:
        raise RuntimeError(
            f"FASTKD_CPU_CAPABILITY must be one of {', '.join(available)} on this CPU, "
            f"got {wanted!r}"
        )
    return _load_cpu(wanted)


# ---- CUDA ----


def _load_cuda(device: int) -> tuple[NativeModule | None, str]:
    """The CUDA module for one GPU, or why not."""
    if torch.version.hip:
        return None, "torch is built for ROCm, fastkd's kernels are for CUDA"
    module, why = _import("_cuda")
    if module is not None:
        with torch.cuda.device(device):
            why = module.device_problem(device)
    return (None, why) if why else (module, "")


def _import(name: str) -> tuple[Any, str]:
    """A compiled module of this package, or None and why not."""
    try:
        module = importlib.import_module(f"fastkd.{name}")
    except ModuleNotFoundError:
        return None, "it is not in this build"
    except ImportError as error:
        return None, str(error)
    found = getattr(module, "interface", "none")
    if found != INTERFACE:  # built in place from other sources
        return None, (
            f"it is of another version of fastkd: interface {INTERFACE} expected, {found} found; "
            "rebuild it with `pip install -e .`"
        )
    return module, ""


_serve_cpu(_choose_cpu())
