# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks measure, on known examples: time, memory, errors."""

import dataclasses
import platform
import subprocess
import sys
import time

import pytest
import torch
from benchmark_jobs import BEYOND_EAGER, ROOT, SMALL_JOB
from cases import KD_LOSS, Geometry
from linear_cases import LINEAR_KD_LOSS
from torch import Tensor

from benchmarks import machine, timing
from benchmarks.accuracy import MOST_ELEMENTS, error_geometry, errors
from benchmarks.mapped import measure_mapped
from benchmarks.measure import find_jobs
from benchmarks.memory import peak_resident_bytes, peak_tensor_bytes
from benchmarks.providers import make_steps
from fastkd.ops import _layer_product

linux = pytest.mark.skipif(platform.system() != "Linux", reason="reads Linux's /proc")
glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="sets glibc's allocator")


def test_every_call_is_timed_once_a_round() -> None:
    calls: dict[str, timing.Call] = {
        "short": lambda: time.sleep(1e-3),
        "long": lambda: time.sleep(6e-3),
    }
    costs = timing.warm_up(calls)
    found = timing.interleave(calls, costs, rounds=4)
    assert [len(each.seconds) for each in found.values()] == [4, 4]
    assert found["long"].calls == 1
    assert 1 < found["short"].calls <= 5
    assert 1e-3 <= found["short"].quartiles()[1] < found["long"].quartiles()[1]


def test_quartiles_are_in_order() -> None:
    times = timing.Timing((4.0, 1.0, 3.0, 2.0, 5.0), 1, 0.0)
    assert times.quartiles() == (2.0, 3.0, 4.0)
    assert timing.Timing((7.0,), 1, 0.0).quartiles() == (7.0, 7.0, 7.0)


@pytest.mark.parametrize(
    ("rounds", "slowest", "planned"),
    [(25, 0.1, 25), (25, 0.6, 8), (10, 0.6, 7), (3, 0.6, 3), (25, 9.0, 3), (2, 9.0, 2)],
)
def test_slow_rows_get_fewer_rounds(rounds: int, slowest: float, planned: int) -> None:
    assert timing.plan_rounds(rounds, slowest) == planned


def test_very_slow_calls_are_not_repeated_in_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "VERY_SLOW_SECONDS", 1e-3)
    calls: list[int] = []

    def slow() -> None:
        calls.append(1)
        time.sleep(2e-3)

    costs = timing.warm_up({"slow": slow})
    assert len(calls) == 1
    clock = dataclasses.replace(timing.CPU_CLOCK, sample_seconds=1e-3)
    monkeypatch.setattr(timing, "LEAD_IN_SECONDS", 0.0)
    timing.interleave({"slow": slow}, costs, 2, clock=clock)
    assert len(calls) == 3


def test_other_work_is_what_the_machine_did_beyond_this_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine_seconds, own_seconds = iter((100.0, 102.5)), iter((10.0, 11.0))
    monkeypatch.setattr(machine, "_all_cpu_seconds", lambda: next(machine_seconds))
    monkeypatch.setattr(machine, "_own_cpu_seconds", lambda: next(own_seconds))
    monkeypatch.setattr(machine.time, "perf_counter", iter((0.0, 1.5)).__next__)
    monkeypatch.setattr(machine.os, "cpu_count", lambda: 2)
    assert machine.OtherWork().share() == 0.5


def test_peak_counts_what_is_alive_at_once() -> None:
    def overlap() -> list[Tensor]:
        first, second = torch.empty(1 << 18), torch.empty(1 << 18)
        del first
        return [second, torch.empty(1 << 17)]

    assert peak_tensor_bytes(lambda: torch.empty(3 << 20, dtype=torch.uint8)) == 3 << 20
    assert peak_tensor_bytes(overlap) == 2 << 20
    assert peak_tensor_bytes(lambda: None) == 0


@linux
def test_resident_peak_counts_touched_pages() -> None:
    touched = peak_resident_bytes(lambda: torch.ones(1 << 24))
    assert touched is not None
    assert touched == pytest.approx(1 << 26, rel=0.1)


@glibc
def test_freed_memory_stays_mapped_on_request() -> None:
    program = """
import resource, torch
from benchmarks.memory import keep_freed_memory_mapped
assert keep_freed_memory_mapped(1 << 28)
torch.ones(1 << 24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(1 << 24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 100  # of 16384 pages


@glibc
def test_mapped_row_is_timed_in_its_own_process() -> None:
    row = measure_mapped(SMALL_JOB, 1, 1, ["fastkd"])
    assert row is not None
    assert row.mapped
    assert row.name == "8x10, mapped"
    assert row.providers["fastkd"].peak_bytes is None


def test_large_rows_are_checked_on_fewer_rows() -> None:
    assert error_geometry(KD_LOSS, Geometry((8, 10))) == Geometry((8, 10))
    fewer = error_geometry(KD_LOSS, Geometry((256, 128256)))
    assert fewer.classes == 128256
    assert MOST_ELEMENTS // 2 < fewer.shape[0] * fewer.shape[1] <= MOST_ELEMENTS
    assert error_geometry(KD_LOSS, Geometry((32000, 1024), 0)).shape == (32000, 512)


@pytest.mark.parametrize(
    ("name", "checked"),
    [
        ("rkd_loss-mean 256x512", (256, 512)),
        ("rkd_loss-mean 512x512", (256, 512)),
        (BEYOND_EAGER, (256, 256)),
        ("pkt_loss-mean 256x512", (256, 512)),
    ],
)
def test_triplets_are_checked_on_as_many_rows_as_float64_can_hold(
    name: str, checked: tuple[int, ...]
) -> None:
    (job,) = find_jobs(name)
    assert error_geometry(job.case, job.bench_row.geometry).shape == checked


def test_error_is_relative_to_the_truth() -> None:
    case = SMALL_JOB.case
    inputs = case.make_inputs(Geometry((8, 10)))
    step = make_steps(case, inputs, ("fastkd",))["fastkd"]

    def twice() -> tuple[Tensor, Tensor]:
        loss, grad = step()
        return 2 * loss, 2 * grad

    found = errors(case, inputs, {"right": step, "twice": twice})
    assert max(found["right"]) < 1e-6
    assert found["twice"] == pytest.approx((1.0, 1.0), rel=1e-5)


@pytest.mark.parametrize("wrong", [1, 2])
def test_error_is_that_of_the_worst_gradient(wrong: int) -> None:
    inputs = LINEAR_KD_LOSS.make_inputs(LINEAR_KD_LOSS.geometry)
    step = make_steps(LINEAR_KD_LOSS, inputs, ("fastkd",))["fastkd"]

    def one_twice() -> tuple[Tensor, ...]:
        return tuple(value * (2 if place == wrong else 1) for place, value in enumerate(step()))

    found = errors(LINEAR_KD_LOSS, inputs, {"right": step, "wrong": one_twice})
    assert max(found["right"]) < 1e-6
    assert found["wrong"] == pytest.approx((found["right"][0], 1.0), rel=1e-5)


def test_memory_counts_every_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_layer_product, "_ONEDNN", None)  # whose products work in more
    inputs = LINEAR_KD_LOSS.make_inputs(Geometry((2, 500), width=300))
    step = make_steps(LINEAR_KD_LOSS, inputs, ("fastkd",))["fastkd"]
    gradients = sum(leaf.nbytes for leaf in inputs.leaves)
    # A chunk of logits a side, one of the hidden states' gradient, and a few numbers a row.
    chunks = 2 * 2 * 500 * 4 + 2 * 300 * 4
    assert gradients <= peak_tensor_bytes(step) <= gradients + chunks + 4096
