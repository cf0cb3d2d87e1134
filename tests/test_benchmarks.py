# SPDX-License-Identifier: Apache-2.0
"""The benchmark harness: its measures on known examples, its tables and files."""

import csv
import dataclasses
import json
import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from cases import CASES, KD_LOSS, Geometry, LossCase
from torch import Tensor
from torch_cases import TORCH_CASES

pytest.importorskip("matplotlib", reason="benchmarks draw with matplotlib")
pytest.importorskip("tqdm", reason="benchmarks show their progress with tqdm")

ROOT = Path(__file__).resolve().parents[1]
# At the end: an installed fastkd must not be hidden by the source tree beside benchmarks/.
sys.path.append(str(ROOT))

import fastkd  # noqa: E402
from benchmarks import machine, timing  # noqa: E402
from benchmarks.accuracy import MOST_ELEMENTS, error_geometry, errors  # noqa: E402
from benchmarks.mapped import is_wanted, measure_mapped  # noqa: E402
from benchmarks.measure import MAPPED_SHAPES, Job, find_jobs, measure  # noqa: E402
from benchmarks.memory import peak_resident_bytes, peak_tensor_bytes  # noqa: E402
from benchmarks.plot import draw  # noqa: E402
from benchmarks.providers import make_steps, with_gradient  # noqa: E402
from benchmarks.report import render_markdown, render_summary  # noqa: E402
from benchmarks.results import Results, Row, results_from_json, to_json  # noqa: E402
from benchmarks.run import main, run  # noqa: E402
from benchmarks.text import byte_text, format_table, nanoseconds_text, time_text  # noqa: E402

linux = pytest.mark.skipif(platform.system() != "Linux", reason="reads Linux's /proc")
glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="sets glibc's allocator")
BENCHED = [case for case in (*CASES, *TORCH_CASES) if case.bench_rows]
SMALL_JOB = next(job for job in find_jobs() if " 8x10 " in str(job))
BEYOND_EAGER = "rkd_loss-mean 4096x256"


@pytest.fixture(scope="module")
def results() -> Results:
    threads = torch.get_num_threads()
    row = measure(SMALL_JOB, threads=threads, rounds=3, providers=("fastkd", "eager"))
    row = dataclasses.replace(row, others_busy=0.0)
    return Results(
        machine.date(),
        machine.commit(),
        machine.device(),
        machine.versions(),
        {threads: 20e9},
        (row,),
    )


# What is compared


@pytest.mark.parametrize("case", BENCHED, ids=str)
def test_eager_code_is_the_same_loss(case: LossCase) -> None:
    """Else its time says nothing."""
    for geometry in {shrunk(row.geometry) for row in case.bench_rows}:
        inputs = with_gradient(case.make_inputs(geometry).to(torch.float64))
        assert case.eager is not None
        eager = case.eager(*case.arguments(inputs), **inputs.keywords, **case.options)
        truth = case.run_reference(inputs)
        # PKT's authors add eps to the norms too.
        torch.testing.assert_close(eager, truth, rtol=1e-6, atol=0, msg=f"differs at {geometry}")


def shrunk(geometry: Geometry) -> Geometry:
    return dataclasses.replace(geometry, shape=tuple(min(size, 12) for size in geometry.shape))


@pytest.mark.parametrize("case", BENCHED, ids=str)
def test_benched_case_has_what_the_table_needs(case: LossCase) -> None:
    assert case.eager is not None
    assert case.ideal_bytes is not None
    assert case.ideal_bytes(case.make_inputs(shrunk(case.bench_rows[0].geometry))) > 0


def test_every_public_loss_is_benched() -> None:
    assert {case.loss for case in BENCHED} == set(fastkd.functional.__all__)


@pytest.mark.parametrize("case", BENCHED, ids=str)
def test_gpu_rows_come_with_rows(case: LossCase) -> None:
    assert case.gpu_bench_rows


def small_job(name: str, shape: tuple[int, ...]) -> Job:
    """A row of a benchmark, made small."""
    job = next(job for job in find_jobs() if name in str(job))
    geometry = dataclasses.replace(job.bench_row.geometry, shape=shape)
    return Job(job.case, dataclasses.replace(job.bench_row, geometry=geometry))


def test_rows_are_found_by_a_part_of_their_name() -> None:
    names = [str(job) for job in find_jobs("512x32000")]
    assert names
    assert all("512x32000" in name for name in names)
    assert not find_jobs("no such row")


def test_mapped_shapes_are_rows() -> None:
    shapes = {job.bench_row.geometry.shape for job in find_jobs() if is_wanted(job)}
    assert shapes == set(MAPPED_SHAPES)


# Time


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


# Memory


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


# Error


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


# Losses of pairs and triplets


def test_row_tells_why_a_provider_is_not_asked() -> None:
    job = small_job(BEYOND_EAGER, (12, 8))
    threads = torch.get_num_threads()
    row = measure(job, threads=threads, rounds=1, providers=("fastkd", "eager"))
    assert set(row.providers) == {"fastkd"}
    assert row.failures == {"eager": "N^3 tensors of 275 GB"}
    alone = measure(job, threads=threads, rounds=1, providers=("eager",))
    assert not alone.providers


def test_table_of_triplets_tells_their_time(results: Results, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    rows = [
        measure(small_job(name, shape), threads=threads, rounds=1, providers=("fastkd", "eager"))
        for name, shape in (
            (BEYOND_EAGER, (12, 8)),
            ("pkt_loss", (12, 8)),
            ("fsp_loss", (2, 3, 4, 4)),
        )
    ]
    timed = dataclasses.replace(rows[0].providers["fastkd"], median=12**3 * 2.5e-9)
    rows[0] = dataclasses.replace(rows[0], providers={"fastkd": timed})
    rows = [dataclasses.replace(row, others_busy=0.0) for row in rows]
    mixed = dataclasses.replace(results, rows=(*results.rows, *rows))
    summary = render_summary(mixed)
    headers = [line for line in summary.splitlines() if "vs eager" in line]
    assert [header.split()[1] for header in headers] == ["logits", "loss", "features"]
    assert ["time for each" in header for header in headers] == [False, True, False]
    (line,) = (line for line in summary.splitlines() if line.startswith("| rkd_loss"))
    assert line.endswith("| 2.50 ns/triplet |")
    assert "| N^3 tensors of 275 GB |" in line
    assert "ns/pair |" in summary
    text = render_markdown(mixed)
    assert text.count("### ") == 3
    assert "Peak extra memory, in MiB" in text
    assert "* kd_loss: temperature=4.0" in text
    assert results_from_json(json.loads(json.dumps(to_json(mixed)))) == mixed
    paths = draw(mixed, tmp_path, "all")
    assert [path.name for path in paths] == ["all.png", "all-relations-features.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_rows_may_ask_for_the_most_threads_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.run.copy_bandwidth", lambda: 20e9)
    few, all_counts = small_job(BEYOND_EAGER, (8, 4)), SMALL_JOB
    threads = torch.get_num_threads()
    try:
        found = run((few, all_counts), (1, 2), 1, ("fastkd",))
    finally:
        torch.set_num_threads(threads)
    assert [(row.loss, row.threads) for row in found.rows] == [
        ("rkd_loss", 2),
        ("kd_loss", 2),
        ("kd_loss", 1),
    ]


# Tables and files


def test_row_holds_all_figures(results: Results) -> None:
    (row,) = results.rows
    assert row.rounds == 3
    assert row.ideal_bytes == 3 * row.student_bytes == 3 * 8 * 10 * 4
    for figures in row.providers.values():
        assert 0 < figures.q25 <= figures.median <= figures.q75
        assert figures.peak_bytes is not None
        assert figures.peak_bytes >= row.student_bytes
        assert figures.grad_error is not None
        assert figures.grad_error < 1e-6


def test_recorded_file_is_read_back_whole(results: Results) -> None:
    assert results_from_json(json.loads(json.dumps(to_json(results)))) == results


def test_table_marks_what_is_slower(results: Results) -> None:
    (row,) = results.rows
    ours, eager = row.providers["fastkd"], row.providers["eager"]
    slow = {"fastkd": dataclasses.replace(ours, median=2 * eager.median), "eager": eager}
    text = render_markdown(
        dataclasses.replace(results, rows=(dataclasses.replace(row, providers=slow),))
    )
    assert "**0.50 slower**" in text
    assert "slower" not in render_markdown(
        dataclasses.replace(results, rows=(_timed(row, ours=1.0, eager=3.0),))
    )


def _timed(row: Row, ours: float, eager: float) -> Row:
    medians = {"fastkd": ours, "eager": eager}
    return dataclasses.replace(
        row,
        providers={
            name: dataclasses.replace(figures, median=medians[name])
            for name, figures in row.providers.items()
        },
    )


def test_table_marks_rows_timed_beside_other_work(results: Results) -> None:
    (row,) = results.rows
    assert "†" not in render_markdown(results)
    disturbed = dataclasses.replace(results, rows=(dataclasses.replace(row, others_busy=0.3),))
    assert "8x10 †" in render_markdown(disturbed)
    assert "not fit to be quoted" in render_markdown(disturbed)


def test_table_columns_line_up() -> None:
    assert format_table(["name", "n"], [["a", "1"], ["long one", "100"]], left=1) == (
        "| name     |   n |\n"
        "|----------|----:|\n"
        "| a        |   1 |\n"
        "| long one | 100 |"
    )  # fmt: skip


def test_figures_have_three_digits_and_a_unit() -> None:
    assert [time_text(s) for s in (3.456e-5, 9.996e-4, 0.0123, 2)] == [
        "34.6 µs",
        "1.00 ms",
        "12.3 ms",
        "2.00 s",
    ]
    assert [byte_text(n) for n in (320, 65.5e6, 1.2e9)] == ["320 B", "65.5 MB", "1.20 GB"]
    assert [nanoseconds_text(s) for s in (3.14e-10, 2.5e-9, 1.234e-7)] == [
        "0.314 ns",
        "2.50 ns",
        "123 ns",
    ]


def test_command_prints_and_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--rows", " 8x10 ", "--rounds", "2", "--threads", "1,2"]
    threads = torch.get_num_threads()
    try:
        assert main([*arguments, "--providers", "eager,fastkd", "--output", str(tmp_path)]) == 0
    finally:
        torch.set_num_threads(threads)
    assert "| 8x10" in capsys.readouterr().out
    files = {path.suffix: path for path in tmp_path.iterdir()}
    assert set(files) == {".json", ".csv", ".md", ".png"}
    assert files[".png"].read_bytes().startswith(b"\x89PNG")
    record = results_from_json(json.loads(files[".json"].read_text()))
    assert [row.threads for row in record.rows] == [2, 1]
    with files[".csv"].open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["provider"] for line in lines] == ["fastkd", "eager"] * 2
    for name in (".json", ".csv", ".md"):
        text = files[name].read_text()
        assert platform.node() not in text
        assert str(ROOT) not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rows", "7x7"], "matches no row of"),
        (["--rounds", "0"], "whole number from 1 on, got '0'"),
        (["--threads", "1,x"], "whole number from 1 on, got 'x'"),
        (
            ["--providers", "fastkd,liger"],
            "must be among fastkd, eager, torch.compile, got 'liger'",
        ),
    ],
)
def test_wrong_option_is_explained(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err
