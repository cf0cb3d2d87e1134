# SPDX-License-Identifier: Apache-2.0
"""compute-sanitizer and ncu: their command lines, and what matters of what they say.

Standard library only.
"""

import csv
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.commands import last_line
from benchmarks.gpu_facts import find_nvcc

SANITIZERS = ("memcheck", "racecheck", "synccheck", "initcheck")
# Without its cache torch allocates each tensor by itself, and no read or write past an end is lost.
SANITIZER_ENVIRONMENT = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}

READ, WRITTEN = "dram__bytes_read.sum", "dram__bytes_write.sum"
DURATION = "gpu__time_duration.sum"
XU = "sm__inst_executed_pipe_xu.avg.pct_of_peak_sustained_active"
ISSUE = "smsp__issue_active.avg.pct_of_peak_sustained_active"
REGISTERS = "launch__registers_per_thread"
DRAM_METRICS = (READ, WRITTEN, DURATION)
ALL_METRICS = (*DRAM_METRICS, XU, ISSUE, REGISTERS)

_UNITS = {
    "ns": 1e-9,
    "nsecond": 1e-9,
    "us": 1e-6,
    "usecond": 1e-6,
    "ms": 1e-3,
    "msecond": 1e-3,
    "Kbyte": 1e3,
    "Mbyte": 1e6,
    "Gbyte": 1e9,
}
# What gpu_calls prints.
_CALLED = re.compile(r"called (\S+) (\S+) (\S+) (\d+) (\S+)$")
_VERDICT = re.compile(r"=+ ((?:ERROR|RACECHECK) SUMMARY: .*)")
_COMPLAINT = re.compile(r"=+ ((?:Invalid|Uninitialized|Race|Error|Warning|Barrier|Program hit).*)")


def find_tool(name: str) -> str | None:
    """A tool of the CUDA toolkit: on the path, beside nvcc, in the usual places."""
    folders = [os.environ.get("CUDA_HOME", "") + "/bin", "/usr/local/cuda/bin"]
    if nvcc := find_nvcc():
        folders.append(str(Path(shutil.which(nvcc[0]) or nvcc[0]).resolve().parent))
    places = [str(path) for path in Path("/opt/nvidia/nsight-compute").glob("*")]
    found = (shutil.which(name, path=folder) for folder in (*folders, *sorted(places)[::-1]))
    return shutil.which(name) or next((path for path in found if path), None)


def sanitizer_command(tool: str, sanitizer: str, program: Sequence[str]) -> list[str]:
    """A program under one of the tools; exit status 9 where it complains."""
    return [sanitizer, "--tool", tool, "--error-exitcode", "9", "--print-limit", "20", *program]


def sanitizer_words(output: str) -> str:
    """The verdict, the first complaint, and how many calls it saw."""
    lines = output.splitlines()
    verdicts = [found[1] for line in lines if (found := _VERDICT.match(line.strip()))]
    complaints = [found[1] for line in lines if (found := _COMPLAINT.match(line.strip()))]
    if not verdicts:
        return f"no verdict: {last_line(output)}"
    return "; first: ".join([verdicts[-1].lower(), *complaints[:1]])


def ncu_command(ncu: str, program: Sequence[str], metrics: Sequence[str]) -> list[str]:
    """One call of a loss under ncu: only our kernels, the clocks as they are."""
    options = ["--profile-from-start", "off", "--clock-control", "none"]
    options += ["--kernel-name-base", "demangled", "--kernel-name", "regex:fastkd"]
    options += ["--metrics", ",".join(metrics)]
    options += ["--csv", "--page", "raw", "--print-units", "base"]
    return [ncu, *options, *program]


def has_profile(output: str) -> bool:
    """Whether ncu has seen a kernel."""
    return next(_kernels(output), None) is not None


def ncu_words(output: str) -> list[str]:
    """A line for each profiled kernel of a call: DRAM bytes per element, how busy, how long."""
    kernels, call = list(_kernels(output)), next(_calls(output), None)
    if call is None or not kernels:
        return [f"no kernel was profiled: {last_line(output)}"]
    lines = []
    for kernel in kernels:
        moved = _number(kernel, READ) + _number(kernel, WRITTEN)
        seconds = _number(kernel, DURATION)
        words = f"{call.name}: {moved / call.count:.2f} DRAM bytes for each {call.unit}"
        words += f", {moved / seconds / 1e9:.0f} GB/s, {seconds * 1e6:.0f} us"
        for name, unit in ((XU, "% XU"), (ISSUE, "% issue"), (REGISTERS, " registers")):
            if name in kernel:
                words += f", {_number(kernel, name):.0f}{unit}"
        lines.append(f"{words} ({_kernel_name(kernel['Kernel Name'])})")
    return lines


@dataclass(frozen=True)
class _Call:
    name: str
    count: int
    unit: str


def _calls(output: str) -> Iterator[_Call]:
    for line in output.splitlines():
        if found := _CALLED.search(line.strip()):
            loss, shape, dtypes, count, unit = found.groups()
            yield _Call(f"{loss} {shape} {dtypes}", int(count), unit)


def _kernels(output: str) -> Iterator[dict[str, str]]:
    """The table that ncu prints among other lines, in bytes and seconds."""
    lines = [line for line in output.splitlines() if line.startswith('"')]
    table = list(csv.reader(lines))
    if len(table) < 2 or "Kernel Name" not in table[0]:
        return
    header, units, *body = table  # the second line has the units
    factors = {name: _UNITS.get(unit, 1.0) for name, unit in zip(header, units, strict=False)}
    for line in body:
        record = dict(zip(header, line, strict=False))
        for name, factor in factors.items():
            if factor != 1.0 and name in record:
                record[name] = repr(_number(record, name) * factor)
        yield record


def _kernel_name(demangled: str) -> str:
    """The function's own name; nvcc writes <unnamed>, others (anonymous namespace)."""
    plain = re.sub(r"(<unnamed>|\(anonymous namespace\))::", "", demangled)
    return re.split(r"[<(]", plain)[0].split("::")[-1]


def _number(kernel: dict[str, str], metric: str) -> float:
    try:
        return float(kernel[metric].replace(",", ""))
    except (KeyError, ValueError):  # "n/a": the chip has no such counter
        return float("nan")
