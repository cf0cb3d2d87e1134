# SPDX-License-Identifier: Apache-2.0
"""One row of a GPU's table. What fails is recorded, and the rest goes on."""

import dataclasses
import functools
import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from cases import CASES, Inputs

from benchmarks import machine
from benchmarks.accuracy import sliced_errors
from benchmarks.gpu_timing import Rotation, event_clock, host_seconds, input_sets
from benchmarks.measure import DTYPE_NAMES, Job, Progress, time_figures
from benchmarks.memory import peak_gpu_bytes
from benchmarks.peers import PEERS, serves
from benchmarks.providers import Step, make_function, make_step, with_gradient
from benchmarks.results import ON_GPU, Figures, Row
from benchmarks.timing import Call, Clock, interleave, plan_rounds, warm_up

# Of the student's logits: below it the CPU sets the pace, and its time is measured too.
HOST_BYTES = 1 << 16
MOST_SECONDS = 3.0  # a call that takes longer is not repeated

Found = TypeVar("Found")


class DeviceLostError(Exception):
    """A kernel faulted: the GPU answers no more in this process."""


@dataclass(frozen=True)
class Meters:
    """What measures on a GPU; tests put simpler ones in its place."""

    device: str
    l2_bytes: int
    clock: Clock
    peak_bytes: Callable[[Call], int]
    host_seconds: Callable[[Call], float]
    settle: Callable[[], None]  # waits, gives free memory back; raises where the GPU is lost


def gpu_meters() -> Meters:
    """Those of the current GPU."""

    def settle() -> None:
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()

    chip = torch.cuda.get_device_properties(torch.cuda.current_device())
    return Meters("cuda", chip.L2_cache_size, event_clock(), peak_gpu_bytes, host_seconds, settle)


def find_gpu_jobs(wanted: str = "") -> tuple[Job, ...]:
    """Every case's rows for a GPU that have `wanted` in their name."""
    jobs = (Job(case, row) for case in CASES for row in case.gpu_bench_rows)
    return tuple(job for job in jobs if wanted in str(job))


def measure_on_gpu(
    job: Job,
    meters: Meters,
    *,
    rounds: int,
    providers: Sequence[str],
    progress: Progress,
) -> Row:
    """Time, memory and error of each provider."""
    ideal_bytes, inputs = _make_inputs(job, meters)
    failures: dict[str, str] = {}
    steps: dict[str, Step] = {}
    calls: dict[str, Rotation] = {}
    costs: dict[str, float] = {}

    def prepare(name: str) -> bool:
        function = make_function(job.case, name)
        each = [make_step(job.case, one, function) for one in inputs]
        rotation = Rotation(each)
        cost = warm_up({name: rotation}, meters.clock)[name]
        if cost > MOST_SECONDS:
            raise TimeoutError(f"{cost:.0f} s a call")
        costs[name], steps[name], calls[name] = cost, each[0], rotation
        return True

    for name in providers:
        if name not in PEERS or serves(name, job.case, job.bench_row):
            progress(name)
            attempt(failures, name, functools.partial(prepare, name), meters)
    progress("time")
    others = machine.OtherWork()
    rounds = plan_rounds(rounds, max(costs.values(), default=0.0))
    timings = interleave(calls, costs, rounds, clock=meters.clock)
    others_busy = others.share()
    for rotation in calls.values():
        rotation.forget()
    progress("errors")
    figures = {name: time_figures(timing) for name, timing in timings.items()}
    checked = _add_checks(job, meters, inputs[0], steps, figures, failures)
    return new_row(
        job,
        rounds=rounds,
        ideal_bytes=ideal_bytes,
        error_shape=(checked, *job.bench_row.geometry.shape[1:]),
        others_busy=others_busy,
        providers=figures,
        failures=failures,
        input_sets=len(inputs),
    )


def new_row(
    job: Job,
    *,
    failures: dict[str, str],
    rounds: int = 0,
    ideal_bytes: int = 0,
    error_shape: tuple[int, ...] | None = None,
    others_busy: float | None = None,
    providers: Mapping[str, Figures] = {},
    input_sets: int = 1,
) -> Row:
    """The row of a job; by default of one that failed."""
    case, geometry = job.case, job.bench_row.geometry
    return Row(
        loss=case.loss,
        label=case.label,
        options=dict(case.options),
        shape=geometry.shape,
        dim=geometry.dim,
        dtype=DTYPE_NAMES[job.bench_row.dtype],
        threads=ON_GPU,
        mapped=False,
        rounds=rounds,
        ideal_bytes=ideal_bytes,
        student_bytes=job.student_bytes,
        error_shape=None if error_shape == geometry.shape else error_shape,
        others_busy=others_busy,
        providers=dict(providers),
        failures=failures,
        input_sets=input_sets,
    )


def attempt(
    failures: dict[str, str], name: str, act: Callable[[], Found], meters: Meters
) -> Found | None:
    """What `act` gives, or None and a note why a provider can't."""
    try:
        return act()
    except torch.OutOfMemoryError:
        failures[name] = "out of memory"
    except Exception as error:  # a peer or a compiler may raise anything
        failures[name] = words_of(error)
    # Only now: the exception's frames held the tensors.
    try:
        meters.settle()
    except Exception as lost:
        raise DeviceLostError(f"{name}: {failures[name]}") from lost
    return None


def words_of(error: Exception) -> str:
    """An error in a line."""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"[:200]


def _make_inputs(job: Job, meters: Meters) -> tuple[int, list[Inputs]]:
    """Bytes that one call must move, and as many sets of inputs as outgrow the L2 cache."""
    case, geometry, dtype = job.case, job.bench_row.geometry, job.bench_row.dtype
    assert case.ideal_bytes is not None, f"{case} does not count its bytes"
    inputs: list[Inputs] = []
    ideal_bytes = wanted = 1
    while len(inputs) < wanted:
        seed = len(inputs)
        made = case.make_inputs(geometry, dtype, dtype, seed, device=meters.device)
        inputs.append(with_gradient(made))
        ideal_bytes = case.ideal_bytes(inputs[0])
        wanted = input_sets(ideal_bytes, meters.l2_bytes)
    return ideal_bytes, inputs


def _add_checks(
    job: Job,
    meters: Meters,
    inputs: Inputs,
    steps: Mapping[str, Step],
    figures: dict[str, Figures],
    failures: dict[str, str],
) -> int:
    """Add memory, errors and the CPU's time; how much of the first dimension the errors cover."""
    covered = job.bench_row.geometry.shape[0]
    for name, step in steps.items():

        def check(step: Step = step) -> tuple[int, float, float, int]:
            peak = meters.peak_bytes(step)
            found, size = sliced_errors(job.case, inputs, {"": step})
            return peak, *found[""], size

        found = attempt(failures, name, check, meters)
        if found is None:
            continue
        peak, loss_error, grad_error, covered = found
        figures[name] = dataclasses.replace(
            figures[name],
            peak_bytes=peak,
            loss_error=loss_error,
            grad_error=grad_error,
            host_seconds=meters.host_seconds(step) if job.student_bytes <= HOST_BYTES else None,
        )
    return covered
