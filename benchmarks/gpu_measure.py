# SPDX-License-Identifier: Apache-2.0
"""One row of a GPU's table. What fails is recorded, and the rest goes on."""

import dataclasses
import functools
import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from cases import Inputs, LossCase
from torch import Tensor

from benchmarks import machine
from benchmarks.accuracy import error_geometry, errors, is_batch_mean, sliced_errors
from benchmarks.gpu_timing import Rotation, event_clock, host_seconds, input_sets
from benchmarks.measure import Job, Progress, facts_of, time_figures
from benchmarks.memory import peak_gpu_bytes, peak_tensor_bytes
from benchmarks.peers import PEERS, serves
from benchmarks.providers import FLOOR, Step, make_function, make_step
from benchmarks.results import ON_GPU, Figures, Row
from benchmarks.timing import CPU_CLOCK, Call, Clock, interleave, plan_rounds, warm_up

# Of the student's tensor: below it the CPU sets the pace, and its time is measured too.
HOST_BYTES = 1 << 16
MOST_SECONDS = 3.0  # a call that takes longer is not repeated

Found = TypeVar("Found")
Function = Callable[..., Tensor]


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


def dry_meters() -> Meters:
    """A CPU's in their place, to try the benchmark out where there is no GPU."""

    def nothing() -> None:
        pass

    host = functools.partial(host_seconds, synchronize=nothing)
    return Meters("cpu", 4096, CPU_CLOCK, peak_tensor_bytes, host, nothing)


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
    functions: dict[str, Function] = {}
    steps: dict[str, Step] = {}
    calls: dict[str, Rotation] = {}
    costs: dict[str, float] = {}

    def prepare(name: str, each: Sequence[Call]) -> None:
        rotation = Rotation(each)
        rotation()  # compiles
        cost = warm_up({name: rotation}, meters.clock)[name]
        if cost > MOST_SECONDS:
            raise TimeoutError(f"{cost:.0f} s a call")
        costs[name], calls[name] = cost, rotation

    def prepare_provider(name: str) -> None:
        function = make_function(job.case, name)
        each = [make_step(job.case, one, function) for one in inputs]
        prepare(name, each)
        functions[name], steps[name] = function, each[0]

    def prepare_floor(floor: Callable[[Inputs], Call]) -> None:
        prepare(FLOOR, [floor(one) for one in inputs])

    for name in providers:
        if name not in PEERS or serves(name, job.case, job.bench_row):
            progress(name)
            attempt(failures, name, functools.partial(prepare_provider, name), meters)
    if job.case.floor is not None:
        progress(FLOOR)
        attempt(failures, FLOOR, functools.partial(prepare_floor, job.case.floor), meters)
    progress("time")
    others = machine.OtherWork()
    rounds = plan_rounds(rounds, max(costs.values(), default=0.0))
    timings = interleave(calls, costs, rounds, clock=meters.clock)
    others_busy = others.share()
    for rotation in calls.values():
        rotation.forget()
    progress("errors")
    figures = {name: time_figures(timing) for name, timing in timings.items()}
    floor = figures.pop(FLOOR, None)
    _add_memory(job, meters, steps, figures, failures)
    checked = _add_errors(job, meters, inputs[0], steps, functions, figures, failures)
    return new_row(
        job,
        rounds=rounds,
        ideal_bytes=ideal_bytes,
        error_shape=checked,
        others_busy=others_busy,
        providers=figures,
        failures=failures,
        input_sets=len(inputs),
        floor=floor,
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
    floor: Figures | None = None,
) -> Row:
    """The row of a job; by default of one that failed."""
    return Row(
        **facts_of(job),
        threads=ON_GPU,
        mapped=False,
        rounds=rounds,
        ideal_bytes=ideal_bytes,
        error_shape=None if error_shape == job.bench_row.geometry.shape else error_shape,
        others_busy=others_busy,
        providers=dict(providers),
        failures=failures,
        input_sets=input_sets,
        floor=floor,
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
        inputs.append(made.with_gradient())
        ideal_bytes = case.ideal_bytes(inputs[0])
        wanted = input_sets(ideal_bytes, meters.l2_bytes)
    return ideal_bytes, inputs


def _add_memory(
    job: Job,
    meters: Meters,
    steps: Mapping[str, Step],
    figures: dict[str, Figures],
    failures: dict[str, str],
) -> None:
    """Add memory, and the CPU's time."""
    for name, step in steps.items():
        peak = attempt(failures, name, functools.partial(meters.peak_bytes, step), meters)
        if peak is not None:
            figures[name] = dataclasses.replace(
                figures[name],
                peak_bytes=peak,
                host_seconds=meters.host_seconds(step) if job.student_bytes <= HOST_BYTES else None,
            )


def _add_errors(
    job: Job,
    meters: Meters,
    inputs: Inputs,
    steps: Mapping[str, Step],
    functions: Mapping[str, Function],
    figures: dict[str, Figures],
    failures: dict[str, str],
) -> tuple[int, ...]:
    """Add errors; the shape that they cover."""
    case, geometry, dtype = job.case, job.bench_row.geometry, job.bench_row.dtype
    covered = geometry.shape
    if not is_batch_mean(case.options):
        fewer = error_geometry(case, geometry)
        covered = fewer.shape
        if fewer != geometry:
            made = case.make_inputs(fewer, dtype, dtype, device=meters.device)
            inputs = made.with_gradient()
            steps = {name: make_step(case, inputs, functions[name]) for name in steps}
    for name, step in steps.items():
        check = functools.partial(_errors, case, inputs, step)
        found = attempt(failures, name, check, meters)
        if found is None:
            continue
        loss_error, grad_error, rows = found
        covered = (rows, *covered[1:])
        figures[name] = dataclasses.replace(
            figures[name], loss_error=loss_error, grad_error=grad_error
        )
    return covered


def _errors(case: LossCase, inputs: Inputs, step: Step) -> tuple[float, float, int]:
    """Of loss and gradient, and how much of the first dimension the gradient's covers."""
    if is_batch_mean(case.options):
        found, rows = sliced_errors(case, inputs, {"": step})
    else:
        found, rows = errors(case, inputs, {"": step}), len(inputs.tensors[0])
    return *found[""], rows
