# SPDX-License-Identifier: Apache-2.0
"""Time of calls, taken turn by turn."""

import contextlib
import gc
import math
import random
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch

SAMPLE_SECONDS = 5e-3  # shorter calls are repeated: the clock and a stray interrupt vanish in it
WARM_UP_SECONDS = 0.1
# A call longer than this gets fewer rounds: a third of them, but this many at least; then few.
SLOW_SECONDS, SLOW_ROUNDS = 0.5, 7
VERY_SLOW_SECONDS, VERY_SLOW_ROUNDS = 4.0, 3
# Calls shorter than this are led in by an untimed one, so that no provider pays for what the
# one before it did to the caches and to the allocator.
LEAD_IN_SECONDS = 50e-3
COPY_BYTES = 1 << 28  # of each buffer: far larger than any last-level cache

Call = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Seconds per call, one figure a round."""

    seconds: tuple[float, ...]
    calls: int
    page_faults: float  # per call

    def quartiles(self) -> tuple[float, float, float]:
        """First quartile, median, third quartile."""
        if len(self.seconds) == 1:
            return (self.seconds[0],) * 3
        first, middle, third = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return first, middle, third


@dataclass(frozen=True)
class Clock:
    """How the calls of a device are timed."""

    # Seconds and page faults of some calls in a row.
    sample: Callable[[Call, int], tuple[float, int]]
    sample_seconds: float  # shorter calls are repeated


@contextlib.contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Hold the garbage collector off while something is timed."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _sample(call: Call, repeats: int) -> tuple[float, int]:
    with no_garbage_collection():
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        begin = time.perf_counter()
        for _ in range(repeats):
            call()
        elapsed = time.perf_counter() - begin
        return elapsed, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults


CPU_CLOCK = Clock(_sample, SAMPLE_SECONDS)


def warm_up(calls: Mapping[str, Call], clock: Clock = CPU_CLOCK) -> dict[str, float]:
    """Run each call for a while, which fills caches; the seconds of its fastest run."""
    return {name: _warm_up(call, clock) for name, call in calls.items()}


def interleave(
    calls: Mapping[str, Call],
    costs: Mapping[str, float],
    rounds: int,
    progress: Callable[[str], None] | None = None,
    clock: Clock = CPU_CLOCK,
) -> dict[str, Timing]:
    """Time every call once a round, in an order shuffled anew each round.

    A first round is not counted: in it the calls get used to each other's leavings in the heap.
    Where a call is very slow that is left out.
    """
    repeats = {name: max(1, math.ceil(clock.sample_seconds / costs[name])) for name in calls}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    faults = dict.fromkeys(calls, 0)
    order = list(calls)
    shuffle = random.Random(0).shuffle
    first = 1 if max(costs.values(), default=0.0) > VERY_SLOW_SECONDS else 0
    for turn in range(first, rounds + 1):
        if progress is not None:
            progress(f"round {turn} of {rounds}")
        shuffle(order)
        for name in order:
            if costs[name] < LEAD_IN_SECONDS:
                calls[name]()
            elapsed, faulted = clock.sample(calls[name], repeats[name])
            if turn == 0:
                continue
            seconds[name].append(elapsed / repeats[name])
            faults[name] += faulted
    return {
        name: Timing(tuple(seconds[name]), repeats[name], faults[name] / rounds / repeats[name])
        for name in calls
    }


def plan_rounds(rounds: int, slowest: float) -> int:
    """Fewer rounds where a call takes long."""
    if slowest > VERY_SLOW_SECONDS:
        return min(rounds, VERY_SLOW_ROUNDS)
    return rounds if slowest <= SLOW_SECONDS else min(rounds, max(SLOW_ROUNDS, rounds // 3))


def copy_bandwidth(rounds: int = 15) -> float:
    """Bytes read plus bytes written per second by a torch copy between two mapped buffers."""
    source = torch.ones(COPY_BYTES, dtype=torch.uint8).view(torch.float32)
    target = torch.ones_like(source)
    calls: dict[str, Call] = {"copy": lambda: target.copy_(source)}
    timing = interleave(calls, warm_up(calls), rounds)["copy"]
    return 2 * COPY_BYTES / timing.quartiles()[1]


def _warm_up(call: Call, clock: Clock) -> float:
    begin = time.perf_counter()
    fastest, _ = clock.sample(call, 1)
    if fastest > VERY_SLOW_SECONDS:
        return fastest
    while True:
        fastest = min(fastest, clock.sample(call, 1)[0])
        if time.perf_counter() - begin > WARM_UP_SECONDS:
            return fastest
