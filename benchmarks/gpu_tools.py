# SPDX-License-Identifier: Apache-2.0
"""compute-sanitizer and ncu: their command lines, and what matters of what they say.

Standard library only.
"""

import csv
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

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
# Kernels of which gpu_calls counts as many as it says.
PROFILED_KERNELS = "rows_|columns|angle_|_along_positions"
# What gpu_calls prints.
_CALLED = re.compile(r"called (\S+) (\S+) (\S+) (\d+) (\S+) (\d+)$")
_VERDICT = re.compile(r"=+ ((?:ERROR|RACECHECK) SUMMARY: .*)")
_COMPLAINT = re.compile(r"=+ ((?:Invalid|Uninitialized|Race|Error|Warning|Barrier|Program hit).*)")


def sanitizer_command(tool: str, sanitizer: str, python: str) -> list[str]:
    """Small calls under one of the tools; exit status 9 where it complains."""
    options = ["--tool", tool, "--error-exitcode", "9", "--print-limit", "20"]
    return [sanitizer, *options, python, "-m", "benchmarks.gpu_calls", "small"]


def sanitizer_words(output: str) -> str:
    """The verdict, the first complaint, and how many calls it saw."""
    lines = output.splitlines()
    verdicts = [found[1] for line in lines if (found := _VERDICT.match(line.strip()))]
    complaints = [found[1] for line in lines if (found := _COMPLAINT.match(line.strip()))]
    count = len(list(_calls(output)))
    if not verdicts:
        return f"{count} calls, no verdict: {last_line(output)}"
    first = f"; first: {complaints[0]}" if complaints else ""
    return f"{count} calls, {verdicts[-1].lower()}{first}"


def ncu_command(ncu: str, python: str, metrics: Sequence[str]) -> list[str]:
    """Large calls under ncu: only the kernels that do the work, the clocks as they are."""
    options = ["--profile-from-start", "off", "--clock-control", "none"]
    options += ["--kernel-name", f"regex:{PROFILED_KERNELS}", "--metrics", ",".join(metrics)]
    options += ["--csv", "--page", "raw", "--print-units", "base"]
    return [ncu, *options, python, "-m", "benchmarks.gpu_calls", "profile"]


def ncu_words(output: str) -> list[str]:
    """A line for each profiled kernel: DRAM bytes per element (triplet), how busy, how long."""
    kernels = list(_kernels(output))
    calls = list(_calls(output))
    if not kernels:
        return [f"no kernel was profiled: {last_line(output)}"]
    of_kernels = list(itertools.chain.from_iterable([call] * call.kernels for call in calls))
    if len(kernels) != len(of_kernels):
        return [f"{len(kernels)} kernels in {len(calls)} calls: see the log"]
    lines = []
    for kernel, call in zip(kernels, of_kernels, strict=True):
        moved = _number(kernel, READ) + _number(kernel, WRITTEN)
        seconds = _number(kernel, DURATION)
        words = f"{call.name}: {moved / call.count:.2f} DRAM bytes for each {call.unit}"
        words += f", {moved / seconds / 1e9:.0f} GB/s, {seconds * 1e6:.0f} us"
        for name, unit in ((XU, "% XU"), (ISSUE, "% issue"), (REGISTERS, " registers")):
            if name in kernel:
                words += f", {_number(kernel, name):.0f}{unit}"
        lines.append(f"{words} ({kernel['Kernel Name'].partition('<')[0].split('::')[-1]})")
    return lines


def last_line(output: str) -> str:
    """The last words of a program."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "it said nothing"


@dataclass(frozen=True)
class _Call:
    name: str
    count: int
    unit: str
    kernels: int


def _calls(output: str) -> Iterator[_Call]:
    for line in output.splitlines():
        if found := _CALLED.search(line.strip()):
            loss, shape, dtypes, count, unit, kernels = found.groups()
            yield _Call(f"{loss} {shape} {dtypes}", int(count), unit, int(kernels))


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


def _number(kernel: dict[str, str], metric: str) -> float:
    try:
        return float(kernel[metric].replace(",", ""))
    except (KeyError, ValueError):  # "n/a": the chip has no such counter
        return float("nan")
