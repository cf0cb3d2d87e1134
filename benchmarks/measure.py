# SPDX-License-Identifier: Apache-2.0
"""One row of the table."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from cases import CASES, BenchRow, LossCase
from torch_cases import TORCH_CASES

from benchmarks import machine
from benchmarks.accuracy import error_geometry, errors
from benchmarks.memory import peak_resident_bytes, peak_tensor_bytes
from benchmarks.providers import FLOOR, Step, make_steps
from benchmarks.results import Figures, Row
from benchmarks.timing import Call, Timing, interleave, plan_rounds, warm_up

BENCH_CASES = (*CASES, *TORCH_CASES)
DTYPE_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
# Also measured in memory that is already mapped: the first touch of a fresh gradient is the
# largest single cost there.
MAPPED_SHAPES = ((512, 32000),)
# Below this, pages of the interpreter itself blur the resident set.
LEAST_RESIDENT_BYTES = 1 << 23

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Job:
    """A row to measure."""

    case: LossCase
    bench_row: BenchRow

    @property
    def student_bytes(self) -> int:
        """Size of the student's tensor; of its logits, where it is computed from hidden states."""
        row = self.bench_row
        return torch.Size(row.geometry.shape).numel() * row.dtype.itemsize

    def __str__(self) -> str:
        """What --rows looks into."""
        return f"{self.case} {self.bench_row.geometry} {DTYPE_NAMES[self.bench_row.dtype]}"


def find_jobs(wanted: str = "") -> tuple[Job, ...]:
    """Every case's rows that have `wanted`, or one of several words with commas, in their name."""
    jobs = (Job(case, row) for case in BENCH_CASES for row in case.bench_rows)
    return tuple(job for job in jobs if any(word in str(job) for word in wanted.split(",")))


def measure(
    job: Job,
    *,
    threads: int,
    rounds: int,
    providers: Sequence[str],
    mapped: bool = False,
    only_time: bool = False,
    progress: Progress | None = None,
) -> Row:
    """Time, and unless told otherwise also memory and error, of each provider that the row asks."""
    progress = progress or _keep_quiet
    torch.set_num_threads(threads)
    case, geometry, dtype = job.case, job.bench_row.geometry, job.bench_row.dtype
    inputs = case.make_inputs(geometry, dtype, dtype)
    assert case.ideal_bytes is not None, f"{case} does not count its bytes"
    ideal_bytes = case.ideal_bytes(inputs)
    failures = {name: why for name, why in job.bench_row.spared.items() if name in providers}
    asked = [name for name in providers if name not in failures]

    progress("compile")
    steps = make_steps(case, inputs, asked)
    calls: dict[str, Call] = {**steps}
    if case.floor is not None:
        calls[FLOOR] = case.floor(inputs)
    progress("warm-up")
    costs = warm_up(calls)
    others = machine.OtherWork()
    rounds = plan_rounds(rounds, max(costs.values(), default=0.0))
    timings = interleave(calls, costs, rounds, progress)
    others_busy = others.share()
    figures = {name: time_figures(timing) for name, timing in timings.items()}
    floor = figures.pop(FLOOR, None)
    error_shape = None
    if not only_time:
        progress("memory")
        _add_memory(figures, steps, large=job.student_bytes >= LEAST_RESIDENT_BYTES)
        progress("float64")
        fewer = error_geometry(case, geometry)
        if fewer != geometry:
            error_shape = fewer.shape
            inputs = case.make_inputs(fewer, dtype, dtype)
            steps = make_steps(case, inputs, asked)
        _add_errors(figures, errors(case, inputs, steps))
    return Row(
        **facts_of(job),
        threads=threads,
        mapped=mapped,
        rounds=rounds,
        ideal_bytes=ideal_bytes,
        error_shape=error_shape,
        others_busy=others_busy,
        providers=figures,
        failures=failures,
        floor=floor,
    )


def facts_of(job: Job) -> dict[str, Any]:
    """What a row says of its job, whatever was found."""
    case, geometry = job.case, job.bench_row.geometry
    return {
        "loss": case.loss,
        "label": case.label,
        "options": dict(case.options),
        "shape": geometry.shape,
        "dim": geometry.dim,
        "width": geometry.width,
        "dtype": DTYPE_NAMES[job.bench_row.dtype],
        "student_bytes": job.student_bytes,
        "kind": case.family.kind,
        "work_unit": "" if case.work is None else case.work.unit,
        "work_count": 0 if case.work is None else case.work.count(geometry),
    }


def _keep_quiet(_stage: str) -> None:
    pass


def time_figures(timing: Timing) -> Figures:
    q25, median, q75 = timing.quartiles()
    return Figures(median, q25, q75, timing.calls, timing.page_faults)


def _add_memory(figures: dict[str, Figures], steps: Mapping[str, Step], large: bool) -> None:
    for name, step in steps.items():
        figures[name] = dataclasses.replace(
            figures[name],
            peak_bytes=peak_tensor_bytes(step),
            resident_bytes=peak_resident_bytes(step) if large else None,
        )


def _add_errors(figures: dict[str, Figures], found: Mapping[str, tuple[float, float]]) -> None:
    for name, (loss_error, grad_error) in found.items():
        figures[name] = dataclasses.replace(
            figures[name], loss_error=loss_error, grad_error=grad_error
        )
