# SPDX-License-Identifier: Apache-2.0
"""What a run ran on: enough to compare runs, nothing that names the machine or its user."""

import datetime
import os
import platform
import re
import resource
import time
from pathlib import Path
from typing import Any

import torch

import fastkd
from benchmarks.commands import first_line

_STAT = Path("/proc/stat")
_CPU = Path("/sys/devices/system/cpu")
_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def device() -> dict[str, Any]:
    """CPU, caches, memory, and how busy others keep them."""
    return {
        "cpu": cpu_model() or platform.machine(),
        "cores": os.cpu_count(),
        "caches": _caches(),
        "memory_gib": _memory_gib(),
        "huge_pages": _selected(_read(_HUGE_PAGES)),
        "system": platform.system(),
        "load_at_start": round(os.getloadavg()[0], 2),
    }


def versions() -> dict[str, Any]:
    """What was run."""
    info = fastkd.info()
    return {
        "fastkd": info["version"],
        "fastkd_cpu_build": info["cpu"] or "none: the reference ran",
        "fastkd_threads": info["threads"],
        "torch": torch.__version__,
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "libc": " ".join(platform.libc_ver()).strip() or "unknown",
        # Builds fastkd's kernels and those of torch.compile, if the environment does not differ.
        "compiler": first_line(os.environ.get("CXX", "g++"), "--version") or "none",
    }


def date() -> str:
    """Today, UTC."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")


def cpu_model() -> str:
    """The CPU's name, or ""."""
    match = re.search(r"^model name\s*:\s*(.+)$", _read(Path("/proc/cpuinfo")), re.MULTILINE)
    return match.group(1).strip() if match else ""


def slug(threads: tuple[int, ...]) -> str:
    """Name of the results' files."""
    words = re.sub(r"\((r|tm)\)", "", cpu_model().lower())
    name = re.sub(r"[^a-z0-9]+", "-", words).strip("-") or "cpu"
    return f"{name}-{'-'.join(map(str, threads))}-threads"


class OtherWork:
    """Tells how much of the CPUs other processes, and neighbours of a virtual machine, use.

    Not a nicety: with the cores shared, the barriers of torch's thread pool make small eager
    calls hundreds of times slower, and every ratio to them worthless.
    """

    def __init__(self) -> None:
        self._begin = time.perf_counter()
        self._own, self._all = _own_cpu_seconds(), _all_cpu_seconds()

    def share(self) -> float | None:
        """Of all CPUs' time since the start, by others; None where it can't be told."""
        now = _all_cpu_seconds()
        if now is None or self._all is None:
            return None
        others = now - self._all - (_own_cpu_seconds() - self._own)
        elapsed = (time.perf_counter() - self._begin) * (os.cpu_count() or 1)
        return round(min(1.0, max(0.0, others / elapsed)), 3)


def _own_cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _all_cpu_seconds() -> float | None:
    """CPU time of the machine that was not idle, Linux's proc(5)."""
    words = _read(_STAT).split("\n", 1)[0].split()
    if len(words) < 9:
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, words[1:9])
    ticks = user + nice + system + irq + softirq + steal
    return ticks / os.sysconf("SC_CLK_TCK")


def _caches() -> dict[str, str]:
    """Sizes by level, of one core's view."""
    caches: dict[str, str] = {}
    for index in sorted((_CPU / "cpu0" / "cache").glob("index*")):
        kind = _read(index / "type")
        if kind and kind != "Instruction":
            caches[f"L{_read(index / 'level')}"] = _read(index / "size")
    return caches


def _memory_gib() -> float | None:
    match = re.search(r"^MemTotal:\s*(\d+) kB", _read(Path("/proc/meminfo")), re.MULTILINE)
    return round(int(match.group(1)) / 2**20, 1) if match else None


def _selected(choices: str) -> str:
    match = re.search(r"\[(\w+)\]", choices)
    return match.group(1) if match else "unknown"


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
