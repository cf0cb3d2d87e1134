# SPDX-License-Identifier: Apache-2.0
"""Time on a GPU: events around queued work, buffers rotated past the L2 cache, and the ceilings."""

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import torch

from benchmarks.timing import Call, Clock, interleave, no_garbage_collection, warm_up

# The least work between two events: many times their resolution of half a microsecond, and of
# what the first launch takes to reach the GPU.
SAMPLE_SECONDS = 1e-3
# Inputs of a row together, in L2 caches; few sets suffice where the rows are large.
L2_CACHES = 4
MOST_SETS = 32
CEILING_BYTES = 1 << 29  # of each buffer
CEILING_SETS = 3
HOST_CALLS = 200


class Event(Protocol):
    """Of torch.cuda.Event what is used here."""

    def record(self) -> None: ...

    def synchronize(self) -> None: ...

    def elapsed_time(self, end: "Event", /) -> float: ...  # milliseconds


def new_event() -> Event:
    """An event that keeps the time."""
    return cast("Event", torch.cuda.Event(enable_timing=True))  # type: ignore[no-untyped-call]


def event_clock(make_event: Callable[[], Event] = new_event) -> Clock:
    """Times what calls queue.

    The clock starts when the GPU gets to the first event. What is queued before it, such as the
    untimed call that leads a sample in, hides the way of the first launch.
    """

    def sample(call: Call, repeats: int) -> tuple[float, int]:
        begin, end = make_event(), make_event()
        with no_garbage_collection():
            begin.record()
            for _ in range(repeats):
                call()
            end.record()
            end.synchronize()
        return begin.elapsed_time(end) * 1e-3, 0

    return Clock(sample, SAMPLE_SECONDS)


class Rotation:
    """Calls that take turns, each with inputs of its own; a result lives until its turn is back.

    So that neither inputs nor gradients are found in the L2 cache.
    """

    def __init__(self, calls: Sequence[Call]) -> None:
        self._turns = itertools.cycle(enumerate(calls))
        self._kept: list[object] = [None] * len(calls)

    def __call__(self) -> None:
        turn, call = next(self._turns)
        self._kept[turn] = call()

    def forget(self) -> None:
        """Let go of the results."""
        self._kept = [None] * len(self._kept)


def input_sets(ideal_bytes: int, l2_bytes: int) -> int:
    """How many sets of inputs and gradients are together far larger than the L2 cache."""
    return min(MOST_SETS, max(1, math.ceil(L2_CACHES * l2_bytes / ideal_bytes)))


@dataclass(frozen=True)
class Ceilings:
    """Bytes read and written per second by torch's own elementwise kernels."""

    copy: float  # b = a
    add: float  # c = a + b, the pattern of a loss: two reads, one write


def measure_ceilings(
    rounds: int = 20, clock: Clock | None = None, size: int = CEILING_BYTES, device: str = "cuda"
) -> Ceilings:
    """The rates beside which those of the losses stand."""
    sets = [
        [torch.ones(size // 4, device=device).mul_(part) for part in (1.0, 2.0, 3.0)]
        for _ in range(CEILING_SETS)
    ]

    def copy_of(a: torch.Tensor, c: torch.Tensor) -> Call:
        return lambda: c.copy_(a)

    def sum_of(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> Call:
        return lambda: torch.add(a, b, out=c)

    calls: dict[str, Call] = {
        "copy": Rotation([copy_of(a, c) for a, _, c in sets]),
        "add": Rotation([sum_of(*each) for each in sets]),
    }
    clock = event_clock() if clock is None else clock
    found = interleave(calls, warm_up(calls, clock), rounds, clock=clock)
    seconds = {name: timing.quartiles()[1] for name, timing in found.items()}
    return Ceilings(2 * size / seconds["copy"], 3 * size / seconds["add"])


def host_seconds(call: Call, synchronize: Callable[[], None] | None = None) -> float:
    """Time of the CPU to queue one call, the GPU's time not counted; best of three runs."""
    wait = torch.cuda.synchronize if synchronize is None else synchronize
    fastest = math.inf
    for _ in range(3):
        wait()
        with no_garbage_collection():
            begin = time.perf_counter()
            for _ in range(HOST_CALLS):
                call()
            fastest = min(fastest, (time.perf_counter() - begin) / HOST_CALLS)
    wait()
    return fastest
