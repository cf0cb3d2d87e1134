# SPDX-License-Identifier: Apache-2.0
"""How the benchmarks take time on a GPU, on a CPU in its place."""

import dataclasses
import time
from collections.abc import Callable

import pytest

from benchmarks.gpu_timing import (
    Ceilings,
    Rotation,
    event_clock,
    host_seconds,
    input_sets,
    measure_ceilings,
)


class FakeEvents:
    """Events on a clock that the calls push."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> "FakeEvents.Event":
        return FakeEvents.Event(self)

    def work(self, milliseconds: float) -> None:
        self.now += milliseconds

    class Event:
        def __init__(self, clock: "FakeEvents") -> None:
            self.clock, self.at = clock, -1.0

        def record(self) -> None:
            self.at = self.clock.now

        def synchronize(self) -> None:
            assert self.at >= 0, "waited for an event that was not recorded"

        def elapsed_time(self, end: "FakeEvents.Event") -> float:
            return end.at - self.at


def test_events_time_what_stands_between_them() -> None:
    events = FakeEvents()
    events.work(7.0)
    seconds, faults = event_clock(events).sample(lambda: events.work(0.25), 8)
    assert (seconds, faults) == (0.002, 0)


def test_calls_take_turns_and_keep_their_results() -> None:
    results = [[0], [1], [2]]
    rotation = Rotation([lambda each=each: each for each in results])
    for _ in range(4):
        rotation()
    assert rotation._kept == results
    rotation.forget()
    assert rotation._kept == [None] * 3


@pytest.mark.parametrize(
    ("ideal", "sets"), [(960, 32), (20 << 20, 10), (200 << 20, 1), (4 << 30, 1)]
)
def test_inputs_together_are_far_larger_than_the_cache(ideal: int, sets: int) -> None:
    assert input_sets(ideal, 50 << 20) == sets


def test_ceilings_count_what_is_read_and_written() -> None:
    events = FakeEvents()
    clock = event_clock(events)

    def sample(call: Callable[[], object], repeats: int) -> tuple[float, int]:
        call()
        events.work(0)
        return 1e-3 * repeats, clock.sample(lambda: None, 1)[1]

    fixed = dataclasses.replace(clock, sample=sample)
    found = measure_ceilings(2, fixed, size=4096, device="cpu")
    assert found == Ceilings(copy=2 * 4096 / 1e-3, add=3 * 4096 / 1e-3)


def test_host_time_is_that_of_one_call() -> None:
    waits: list[int] = []
    seconds = host_seconds(lambda: time.sleep(1e-4), lambda: waits.append(1))
    assert 1e-4 <= seconds < 5e-3
    assert len(waits) == 4
