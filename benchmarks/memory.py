# SPDX-License-Identifier: Apache-2.0
"""Extra memory of a call: counted in tensors, and seen by the operating system."""

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

# glibc's malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


def peak_tensor_bytes(call: Callable[[], object]) -> int:
    """Most bytes that torch's CPU allocator held for the call at one moment.

    The results count, what was allocated before does not. Buffers that native code gets from
    elsewhere are not seen: compare with `peak_resident_bytes`.
    """
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        kept = call()
    del kept
    assert profiler.profiler is not None
    results = profiler.profiler.kineto_results
    assert results is not None
    events = [event for event in results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def peak_gpu_bytes(call: Callable[[], object]) -> int:
    """Most bytes that torch's CUDA allocator held for the call at one moment, results included."""
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    kept = call()
    peak = torch.cuda.max_memory_allocated()
    del kept
    return peak - before


def peak_resident_bytes(call: Callable[[], object]) -> int | None:
    """Growth of the process's resident set at the worst moment of the call; None off Linux.

    Counts whole pages of whatever the call touches, so it tells something for large calls only.
    """
    gc.collect()
    libc = _glibc()
    try:
        if libc is not None:
            libc.malloc_trim(0)  # else the call may reuse pages that count as resident already
        _CLEAR_REFS.write_text("5")  # the peak starts anew: Linux's proc(5)
        before = _status_bytes("VmRSS")
        kept = call()
        peak = _status_bytes("VmHWM")
    except OSError:
        return None
    del kept
    return max(0, peak - before)


def keep_freed_memory_mapped(reserve: int) -> bool:
    """From now on freed blocks stay with the process, so new ones cost no page faults.

    For every caller of malloc alike, which all of torch's CPU tensors are. `reserve` bytes are
    mapped at once: an aligned block does not fit the hole that its like left if a small block
    went to the rest of it, so the heap would grow for many calls before it holds enough holes.
    False: not glibc, nothing was changed.
    """
    libc = _glibc()
    # Every block from the heap, however large, and the heap never shrinks.
    if libc is None or not (libc.mallopt(_M_MMAP_MAX, 0) and libc.mallopt(_M_TRIM_THRESHOLD, -1)):
        return False
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes = [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    block = libc.malloc(reserve)
    if block is None:
        raise MemoryError(f"no {reserve} bytes to keep mapped")
    ctypes.memset(block, 0, reserve)
    libc.free(block)
    return True


def _glibc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") else None


def _status_bytes(field: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {field} in the process status")
