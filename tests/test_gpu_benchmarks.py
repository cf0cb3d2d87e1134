# SPDX-License-Identifier: Apache-2.0
"""The GPU half of the benchmark harness, as far as it runs without a GPU."""

import dataclasses
import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cases import BATCH_CASES, KD_LOSS, PLAIN_BATCH_CASES, PLAIN_CASES, BenchRow, Geometry
from torch_cases import TORCH_CASES

import fastkd
from benchmarks import ROOT, accuracy, gpu_bench, gpu_facts, gpu_measure
from benchmarks.accuracy import errors, sliced_errors
from benchmarks.gpu_bench import Journal, measured
from benchmarks.gpu_calls import PROFILED, profiled_calls, small_calls
from benchmarks.gpu_measure import DeviceLostError, Meters, find_gpu_jobs, in_turn, measure_on_gpu
from benchmarks.gpu_timing import (
    Ceilings,
    Rotation,
    event_clock,
    host_seconds,
    input_sets,
    measure_ceilings,
)
from benchmarks.gpu_tools import PROFILED_KERNELS, _calls
from benchmarks.measure import Job
from benchmarks.memory import peak_tensor_bytes
from benchmarks.peers import serves
from benchmarks.providers import make_function, make_step, make_steps, with_gradient
from benchmarks.report import render_markdown, render_summary, save
from benchmarks.results import ON_GPU, Results, results_from_json, to_json
from benchmarks.timing import CPU_CLOCK

SMALL_JOB = Job(KD_LOSS, BenchRow(Geometry((8, 10)), torch.float32))
MAPS_JOB = Job(KD_LOSS, BenchRow(Geometry((2, 5, 3, 4), 1), torch.bfloat16))
BATCH_JOBS = [
    Job(case, BenchRow(dataclasses.replace(case.geometry, teacher=None), torch.float32))
    for case in (*PLAIN_BATCH_CASES, *TORCH_CASES)
]


def meters(settle: Callable[[], None] = lambda: None) -> Meters:
    """A CPU's, in place of a GPU's."""
    return Meters("cpu", 4096, CPU_CLOCK, peak_tensor_bytes, lambda _call: 5e-5, settle)


def measure(job: Job, providers: tuple[str, ...] = ("fastkd", "eager")) -> gpu_measure.Row:
    return measure_on_gpu(job, meters(), rounds=2, providers=providers, progress=lambda _: None)


@pytest.fixture(scope="module")
def results() -> Results:
    device = {"gpu": "Chip 1000", "multiprocessors": 100, "l2_mib": 50.0, "gpu_memory_gib": 80.0}
    device |= {"cpu": "Some CPU", "cores": 16, "capability": 90}
    versions = dict.fromkeys(
        ("torch", "python", "compiler", "libc", "fastkd", "fastkd_cuda_archs", "driver", "nvcc"),
        "1.0",
    ) | {"torch_cuda": "13.0", "triton": "3.6", "liger": "0.8"}
    row = measure(SMALL_JOB)
    figures = {
        "fastkd": dataclasses.replace(row.providers["fastkd"], median=1e-3),
        "eager": dataclasses.replace(row.providers["eager"], median=4e-3),
    }
    row = dataclasses.replace(
        row,
        ideal_bytes=1_500_000_000,
        others_busy=0.0,
        providers=figures,
        failures={"torch.compile": "out of memory"},
    )
    return Results(
        "today", "abc", device, versions, {ON_GPU: 3e12}, (row,), 2.5e12, {"tests": "ok"}
    )


# ---- time ----


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


# ---- rows ----


@pytest.mark.parametrize("job", [SMALL_JOB, MAPS_JOB, *BATCH_JOBS], ids=str)
def test_row_has_what_the_table_needs(job: Job) -> None:
    row = measure(job)
    assert (row.threads, row.rounds, row.failures) == (ON_GPU, 2, {})
    assert row.input_sets == input_sets(row.ideal_bytes, 4096) > 1
    assert set(row.providers) == {"fastkd", "eager"}
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


def test_the_first_row_of_every_loss_comes_first() -> None:
    jobs = find_gpu_jobs()
    turns = in_turn(jobs)
    assert sorted(map(str, turns)) == sorted(map(str, jobs))
    losses = len({job.case.loss for job in jobs})
    assert len({job.case.loss for job in turns[:losses]}) == losses
    assert [job for job in turns if job.case.loss == "kd_loss"] == [
        job for job in jobs if job.case.loss == "kd_loss"
    ]


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
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_bench, "GPU_PROVIDERS", ("fastkd", "eager"))
    path = tmp_path / "journal"
    first = Journal(path, resume=False)
    first.keep_ceilings(Ceilings(3e12, 2e12))
    first.begin(MAPS_JOB)  # and then the process was gone
    journal = Journal(path, resume=True)
    rows = list(measured((MAPS_JOB, SMALL_JOB), meters(), journal, 1, time.time() + 60))
    assert [row.failures for row in rows] == [{"fastkd": "hung or faulted (begin)"}, {}]
    again = Journal(path, resume=True)
    assert again.ceilings == Ceilings(3e12, 2e12)
    assert again.rows == journal.rows
    assert not list(measured((MAPS_JOB, SMALL_JOB), meters(), again, 1, time.time() + 60))
    fresh = Journal(path, resume=False)
    fresh.keep_ceilings(Ceilings(3e12, 2e12))
    fresh.begin(SMALL_JOB)
    fresh.stage(SMALL_JOB, "fastkd")
    fresh.stage(SMALL_JOB, "eager")  # whose fault was the end
    (row,) = measured((SMALL_JOB,), meters(), Journal(path, resume=True), 1, time.time() + 60)
    assert set(row.providers) == {"fastkd"}
    assert row.failures == {"eager": "hung or faulted"}
    fresh = Journal(path, resume=False)
    fresh.keep_ceilings(Ceilings(3e12, 2e12))
    assert not list(measured((SMALL_JOB,), meters(), fresh, 1, time.time() - 1))
    assert "no time left" in capsys.readouterr().out


def test_command_prints_and_records(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    results: Results,
) -> None:
    monkeypatch.setattr(gpu_facts, "facts", dict)
    monkeypatch.setattr(gpu_facts, "gpu", lambda: results.device)
    monkeypatch.setattr(gpu_facts, "gpu_versions", lambda: results.versions)
    monkeypatch.setattr(gpu_bench, "gpu_meters", meters)
    monkeypatch.setattr(gpu_bench, "GPU_PROVIDERS", ("fastkd", "eager"))
    monkeypatch.setattr(gpu_bench, "find_gpu_jobs", lambda _: (SMALL_JOB, MAPS_JOB))
    monkeypatch.setattr(gpu_bench, "measure_ceilings", lambda **_: Ceilings(3e12, 2e12))
    journal = tmp_path / "logs" / "journal"
    settings = ["--output", str(tmp_path), "--journal", str(journal), "--rounds", "2"]
    assert gpu_bench.main(settings) == 0
    printed = capsys.readouterr().out
    assert "8x10 fp32: fastkd, eager, time, errors, " in printed
    assert "| 2x5x3x4 dim=1" in printed
    record = results_from_json(json.loads((tmp_path / "chip-1000.json").read_text()))
    assert [row.shape for row in record.rows] == [(8, 10), (2, 5, 3, 4)]
    assert record.copy_bandwidth == {ON_GPU: 3e12}
    assert (tmp_path / "chip-1000.md").exists()

    def lost(*_: object, **__: object) -> gpu_measure.Row:
        raise DeviceLostError("fastkd: an illegal memory access was encountered")

    monkeypatch.setattr(gpu_bench, "measure_on_gpu", lost)
    assert gpu_bench.main(settings) == gpu_bench.LOST
    assert gpu_bench.main([*settings, "--resume"]) == gpu_bench.LOST  # the second row's turn
    assert gpu_bench.main([*settings, "--resume"]) == 0
    record = results_from_json(json.loads((tmp_path / "chip-1000.json").read_text()))
    assert [row.failures for row in record.rows] == 2 * [{"fastkd": "hung or faulted (begin)"}]


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
        loss, grad = make_step(call.case, with_gradient(call.inputs), function)()
        assert loss.isfinite()
        assert grad.isfinite().all()
        counts[str(call.case)] = counts.get(str(call.case), 0) + 1
        assert list(_calls(f"called {call.words}"))
    assert set(counts) == {str(case) for case in (KD_LOSS, *BATCH_CASES)}
    assert min(counts[str(case)] for case in PLAIN_CASES) >= 5


def test_large_calls_for_the_tools_are_plain_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    small = [
        dataclasses.replace(each, geometry=dataclasses.replace(each.geometry, shape=shape))
        for each, shape in ((PROFILED[0], (2, 3)), (PROFILED[-2], (8, 2)), (PROFILED[-1], (2,) * 4))
    ]
    monkeypatch.setattr("benchmarks.gpu_calls.PROFILED", small)
    assert [call.words for call in profiled_calls("cpu")] == [
        "kd_loss 2x3 bfloat16/bfloat16 6 element 1",
        "rkd_loss 8x2 float32/float32 512 triplet 2",
        "attention_transfer_loss 2x2x2x2-dim1 bfloat16/bfloat16 16 element 3",
    ]
    for each in PROFILED:
        assert all(re.search(PROFILED_KERNELS, kernel) for kernel in each.kernels)


@pytest.mark.skipif(not (ROOT / "csrc").is_dir(), reason="the source tree is not beside the tests")
def test_profiled_kernels_are_in_the_sources() -> None:
    sources = (ROOT / "csrc" / "cuda").glob("*")
    text = "".join(path.read_text(encoding="utf-8") for path in sources)
    for each in PROFILED:
        assert [kernel for kernel in each.kernels if kernel not in text] == []


# ---- tables and files ----


def test_recorded_gpu_file_is_read_back_whole(results: Results) -> None:
    assert results_from_json(json.loads(json.dumps(to_json(results)))) == results
    assert results.is_gpu


def test_gpu_table_shows_the_share_of_a_copy(results: Results) -> None:
    summary = render_summary(results, rates=True)
    line = summary.splitlines()[-1]
    assert "1500 |     50%" in line  # 1.5 GB in 1 ms, where a copy moves 3000 GB/s
    assert "| out of memory |" in line
    assert " 4 |" in line  # times as fast as eager
    text = render_markdown(results)
    assert "threads" not in text
    assert "copy (one read, one write) moves 3000 GB/s" in text
    assert "addition (two reads, one write) 2500 GB/s" in text
    assert "Time of the CPU to queue one call: 8x10 fp32: fastkd 50.0 µs" in text
    assert "* tests: ok" in text
    assert "Chip 1000" in text


def test_a_gpu_row_without_figures_is_written_too(results: Results, tmp_path: Path) -> None:
    row = gpu_measure.new_row(SMALL_JOB, failures={"fastkd": "hung or faulted"})
    failed = dataclasses.replace(results, rows=(row,))
    paths = save(failed, tmp_path, "chip")
    assert "hung or faulted" in paths[2].read_text()
    assert results_from_json(json.loads(paths[0].read_text())) == failed
    both = dataclasses.replace(results, rows=(*results.rows, row))
    assert "hung or faulted" in render_summary(both, rates=True)


def test_gpu_picture_is_drawn(results: Results, tmp_path: Path) -> None:
    plot = pytest.importorskip("benchmarks.plot", reason="matplotlib draws")
    row = gpu_measure.new_row(SMALL_JOB, failures={"fastkd": "hung or faulted"})
    both = dataclasses.replace(results, rows=(*results.rows, row))
    failed = gpu_measure.new_row(BATCH_JOBS[0], failures={"fastkd": "hung or faulted"})
    both = dataclasses.replace(both, rows=(*both.rows, failed))
    paths = plot.draw(both, tmp_path, "chip")
    assert len(paths) == 2
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
