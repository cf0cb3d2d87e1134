# SPDX-License-Identifier: Apache-2.0
"""Rows of the benchmarks for GPUs, measured on a CPU in its place."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cases import (
    BATCH_CASES,
    KD_LOSS,
    PLAIN_BATCH_CASES,
    PLAIN_CASES,
    PLAIN_LOGIT_CASES,
    BenchRow,
    Geometry,
)
from gpu_jobs import BATCH_JOBS, MAPS_JOB, SMALL_JOB, measure, meters

import fastkd
from benchmarks import accuracy, gpu_measure
from benchmarks.accuracy import errors, sliced_errors
from benchmarks.gpu_bench import GpuJournal, measured
from benchmarks.gpu_calls import row_call, small_calls
from benchmarks.gpu_measure import DeviceLostError, measure_on_gpu
from benchmarks.gpu_rows import by_worth, dry_jobs, find_gpu_jobs
from benchmarks.gpu_timing import Ceilings, input_sets
from benchmarks.gpu_tools import _calls
from benchmarks.measure import Job
from benchmarks.peers import serves
from benchmarks.providers import make_function, make_step, make_steps
from benchmarks.results import ON_GPU


@pytest.mark.parametrize("job", [SMALL_JOB, MAPS_JOB, *BATCH_JOBS], ids=str)
def test_row_has_what_the_table_needs(job: Job) -> None:
    row = measure(job)
    assert (row.threads, row.rounds, row.failures) == (ON_GPU, 2, {})
    assert row.input_sets == input_sets(row.ideal_bytes, 4096) > 1
    assert set(row.providers) == {"fastkd", "eager"}
    assert (row.floor is None) == (job.case.floor is None)
    for figures in row.providers.values():
        assert 0 < figures.q25 <= figures.median <= figures.q75
        assert figures.host_seconds == 5e-5
        assert figures.peak_bytes is not None
        assert figures.peak_bytes >= row.student_bytes
        assert figures.grad_error is not None
        assert figures.grad_error < 1e-2


def test_rows_for_a_gpu_are_many_and_fit_its_memory() -> None:
    jobs = find_gpu_jobs()
    assert {job.case.loss for job in jobs} == set(fastkd.functional.__all__)
    assert len(jobs) >= 40
    assert len({str(job) for job in jobs}) == len(jobs)
    # Inputs, eager's five and a half tensors, and the gradients that are kept.
    assert max(10 * job.student_bytes for job in jobs) < 60e9


def test_rows_that_tell_most_come_first() -> None:
    jobs = find_gpu_jobs()
    ordered = by_worth(jobs)
    assert sorted(map(str, ordered)) == sorted(map(str, jobs))
    classes = [128256, 32000, 8192, 1000, 50257, 100, 262144, 19, 150]
    first = [(job.case, job.bench_row.dtype, job.bench_row.geometry.classes) for job in ordered]
    assert first[:9] == [(KD_LOSS, torch.bfloat16, each) for each in classes]
    assert first[9:18] == [(KD_LOSS, torch.float32, each) for each in classes]
    assert str(ordered[18]) == "rkd_loss-mean 1024x256 fp32"
    cases = {str(job.case) for job in jobs}
    assert {str(job.case) for job in ordered[: 18 + len(cases) + 1]} == cases


def test_a_dry_run_has_a_tiny_row_of_each_kind() -> None:
    jobs = dry_jobs()
    kinds = [job.case.family.kind for job in jobs]
    assert sorted(kinds) == ["features", "layers", "logits", "relations"]
    assert max(max(job.bench_row.geometry.shape) for job in jobs) <= 8


def test_errors_of_triplets_are_taken_on_fewer_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    (case,) = (case for case in PLAIN_BATCH_CASES if case.loss == "rkd_angle_loss")
    monkeypatch.setattr(accuracy, "MOST_NUMBERS", 5 * 8**2 * (8 + 4))
    row = measure(Job(case, BenchRow(Geometry((32, 4)), torch.float32)))
    assert row.shape == (32, 4)
    assert row.error_shape == (8, 4)
    assert (row.kind, row.work_unit, row.work_count) == ("relations", "triplet", 32**3)
    for figures in row.providers.values():
        assert figures.grad_error is not None
        assert figures.grad_error < 1e-4


def test_a_peer_is_not_required() -> None:
    assert not serves("liger", KD_LOSS, MAPS_JOB.bench_row)  # it has no class dimension
    assert "liger" not in measure(SMALL_JOB, ("fastkd", "eager", "liger")).failures or serves(
        "liger", KD_LOSS, SMALL_JOB.bench_row
    )


def test_a_floor_that_fails_is_recorded() -> None:
    def too_large(_: object) -> Callable[[], object]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    row = measure(Job(dataclasses.replace(KD_LOSS, floor=too_large), SMALL_JOB.bench_row))
    assert row.floor is None
    assert row.over_floor is None
    assert row.failures == {"floor": "out of memory"}
    assert set(row.providers) == {"fastkd", "eager"}


def test_a_provider_that_fails_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(case: object, name: str) -> Callable[..., torch.Tensor]:
        function = make_function(KD_LOSS, "eager" if name == "hungry" else "fastkd")

        def hungry(*arguments: object, **keywords: object) -> torch.Tensor:
            if name == "hungry":
                raise torch.OutOfMemoryError("CUDA out of memory")
            if name == "broken":
                raise ValueError("first line\nsecond line")
            return function(*arguments, **keywords)

        return hungry

    monkeypatch.setattr(gpu_measure, "make_function", make)
    row = measure(SMALL_JOB, ("fastkd", "hungry", "broken"))
    assert set(row.providers) == {"fastkd"}
    assert row.failures == {"hungry": "out of memory", "broken": "ValueError: first line"}

    def lost() -> None:
        raise RuntimeError("an illegal memory access was encountered")

    with pytest.raises(DeviceLostError, match="broken: ValueError"):
        measure_on_gpu(
            SMALL_JOB, meters(lost), rounds=1, providers=("broken",), progress=lambda _: None
        )


def test_a_run_goes_on_behind_the_row_that_ended_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = ("fastkd", "eager")
    path = tmp_path / "journal"
    first = GpuJournal(path, resume=False)
    first.keep_ceilings(Ceilings(3e12, 2e12))
    first.begin(MAPS_JOB)  # and then the process was gone
    journal = GpuJournal(path, resume=True)
    rows = list(measured((MAPS_JOB, SMALL_JOB), meters(), journal, 1, time.time() + 60, both))
    assert [row.failures for row in rows] == [
        dict.fromkeys(both, "hung or faulted (begin)"),
        {},
    ]
    again = GpuJournal(path, resume=True)
    assert again.ceilings == Ceilings(3e12, 2e12)
    assert again.rows == journal.rows
    assert not list(measured((MAPS_JOB, SMALL_JOB), meters(), again, 1, time.time() + 60, both))
    fresh = GpuJournal(path, resume=False)
    fresh.keep_ceilings(Ceilings(3e12, 2e12))
    fresh.begin(SMALL_JOB)
    fresh.stage(SMALL_JOB, "fastkd")
    fresh.stage(SMALL_JOB, "eager")  # whose fault was the end
    (row,) = measured(
        (SMALL_JOB,), meters(), GpuJournal(path, resume=True), 1, time.time() + 60, both
    )
    assert set(row.providers) == {"fastkd"}
    assert row.failures == {"eager": "hung or faulted"}
    fresh = GpuJournal(path, resume=False)
    fresh.keep_ceilings(Ceilings(3e12, 2e12))
    assert not list(measured((SMALL_JOB,), meters(), fresh, 1, time.time() - 1, both))
    assert "no time left" in capsys.readouterr().out


@pytest.mark.parametrize("most", [1 << 24, 100, 17])
@pytest.mark.parametrize("geometry", [Geometry((23, 10)), Geometry((5, 6, 2, 3), 1)], ids=str)
def test_errors_on_slices_are_the_errors(geometry: Geometry, most: int) -> None:
    inputs = KD_LOSS.make_inputs(geometry)
    steps = make_steps(KD_LOSS, inputs, ("fastkd", "eager"))
    whole = errors(KD_LOSS, inputs, steps)
    sliced, size = sliced_errors(KD_LOSS, inputs, steps, most)
    assert 1 <= size <= geometry.shape[0]
    for name, (loss_error, grad_error) in sliced.items():
        assert loss_error == pytest.approx(whole[name][0], abs=1e-12)
        assert grad_error <= 1e-6
        if size == geometry.shape[0]:
            assert grad_error == pytest.approx(whole[name][1], abs=1e-12)


def test_calls_for_the_tools_run() -> None:
    counts: dict[str, int] = {}
    for call in small_calls("cpu"):
        function = make_function(call.case, "fastkd")
        loss, grad = make_step(call.case, call.inputs.with_gradient(), function)()
        assert loss.isfinite()
        assert grad.isfinite().all()
        counts[str(call.case)] = counts.get(str(call.case), 0) + 1
        assert list(_calls(f"called {call.words}"))
    assert set(counts) == {str(case) for case in (*PLAIN_LOGIT_CASES, *BATCH_CASES)}
    assert min(counts[str(case)] for case in PLAIN_CASES) >= 5


def test_a_row_is_called_for_the_tools() -> None:
    for job in dry_jobs():
        call = row_call(job, "cpu")
        assert call.words.startswith(f"{job.case.loss} {job.bench_row.geometry} ")


def test_a_later_run_adds_providers(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    first = GpuJournal(path, resume=False)
    (row,) = measured((SMALL_JOB,), meters(), first, 1, time.time() + 60, ("fastkd",))
    assert set(row.providers) == {"fastkd"}
    second = GpuJournal(path, resume=True)
    (row,) = measured((SMALL_JOB,), meters(), second, 1, time.time() + 60, ("fastkd", "eager"))
    assert set(row.providers) == {"fastkd", "eager"}
    third = GpuJournal(path, resume=True)
    assert third.rows[str(SMALL_JOB)] == row
    assert third.records[-1]["kernel"] is True
    assert not list(measured((SMALL_JOB,), meters(), third, 1, time.time() + 60, ("eager",)))
    third.begin(SMALL_JOB)
    third.stage(SMALL_JOB, "time")  # where a later process ended
    last = GpuJournal(path, resume=True)
    asked = ("fastkd", "torch.compile")
    (row,) = measured((SMALL_JOB,), meters(), last, 1, time.time() + 60, asked)
    assert set(row.providers) == {"fastkd", "eager"}
    assert row.failures == {"torch.compile": "hung or faulted (time)"}
