# SPDX-License-Identifier: Apache-2.0
"""Which rows the benchmarks have, and what each needs."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmark_jobs import BEYOND_EAGER, SMALL_JOB, small_job
from cases import CASES, Geometry, LossCase
from linear_cases import LINEAR_KD_LOSS, four_products
from torch.utils.flop_counter import FlopCounterMode
from torch_cases import TORCH_CASES

import fastkd
from benchmarks import machine
from benchmarks.journal import Journal
from benchmarks.mapped import is_wanted
from benchmarks.measure import MAPPED_SHAPES, Job, find_jobs, measure
from benchmarks.results import Row
from benchmarks.run import Settings, run
from benchmarks.tables import STYLES

BENCHED = [case for case in (*CASES, *TORCH_CASES) if case.bench_rows]


@pytest.mark.parametrize("case", BENCHED, ids=str)
def test_eager_code_is_the_same_loss(case: LossCase) -> None:
    """Else its time says nothing."""
    for geometry in {shrunk(row.geometry) for row in case.bench_rows}:
        inputs = case.make_inputs(geometry).to(torch.float64).with_gradient()
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


@pytest.mark.parametrize("case", BENCHED, ids=str)
def test_floor_is_of_a_kind_that_shows_it(case: LossCase) -> None:
    assert (case.floor is not None) == bool(STYLES[case.family.kind].floor)


def test_floor_of_layers_is_their_four_products() -> None:
    rows, width, classes = 6, 5, 11
    inputs = LINEAR_KD_LOSS.make_inputs(Geometry((rows, classes), width=width))
    call = four_products(inputs)
    with FlopCounterMode(display=False) as counter:
        found = call()
    assert counter.get_total_flops() == 4 * 2 * rows * width * classes
    student = inputs.with_gradient()
    hidden, weight = student.leaves
    (hidden @ weight.t()).square().sum().div(2).backward()  # whose gradient are the logits
    torch.testing.assert_close(found, (hidden.grad, weight.grad))


def test_every_public_loss_is_benched() -> None:
    assert {case.loss for case in BENCHED} == set(fastkd.functional.__all__)


@pytest.mark.parametrize("case", BENCHED, ids=str)
def test_gpu_rows_come_with_rows(case: LossCase) -> None:
    assert case.gpu_bench_rows


def test_rows_are_found_by_a_part_of_their_name() -> None:
    names = [str(job) for job in find_jobs("512x32000")]
    assert names
    assert all("512x32000" in name for name in names)
    assert not find_jobs("no such row")


def test_mapped_shapes_are_rows() -> None:
    shapes = {job.bench_row.geometry.shape for job in find_jobs() if is_wanted(job)}
    assert shapes == set(MAPPED_SHAPES)


def test_row_tells_why_a_provider_is_not_asked() -> None:
    job = small_job(BEYOND_EAGER, (12, 8))
    threads = torch.get_num_threads()
    row = measure(job, threads=threads, rounds=1, providers=("fastkd", "eager"))
    assert set(row.providers) == {"fastkd"}
    assert row.failures == {"eager": "N^3 tensors of 275 GB"}
    alone = measure(job, threads=threads, rounds=1, providers=("eager",))
    assert not alone.providers


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Measures no copy, nor what the tests beside this one do, and leaves torch its threads."""
    monkeypatch.setattr("benchmarks.run.copy_bandwidth", lambda: 20e9)
    monkeypatch.setattr(machine.OtherWork, "share", lambda self: 0.0)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("quick")
def test_rows_may_ask_for_the_most_threads_only(tmp_path: Path) -> None:
    few, all_counts = small_job(BEYOND_EAGER, (8, 4)), SMALL_JOB
    settings = Settings((1, 2), 1, ("fastkd",))
    found = run((few, all_counts), settings, Journal(tmp_path / "journal", resume=False))
    assert [(row.loss, row.threads) for row in found.rows] == [
        ("rkd_loss", 2),
        ("kd_loss", 2),
        ("kd_loss", 1),
    ]


@pytest.mark.usefixtures("quick")
def test_a_run_goes_on_where_it_was_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, settings = tmp_path / "journal", Settings((1,), 1, ("fastkd",))
    monkeypatch.setattr(machine, "commit", lambda: "abc")
    jobs = small_job(BEYOND_EAGER, (8, 4)), SMALL_JOB
    measured: list[Job] = []

    def stops_at_the_second(job: Job, **options: Any) -> Row:
        if measured:
            raise KeyboardInterrupt
        measured.append(job)
        return measure(job, **options)

    monkeypatch.setattr("benchmarks.run.measure", stops_at_the_second)
    journal = Journal(path, resume=False)
    settings.begin(journal)
    with pytest.raises(KeyboardInterrupt):
        run(jobs, settings, journal)
    with path.open("a") as file:
        file.write('{"job": "torn')
    monkeypatch.setattr("benchmarks.run.measure", measure)
    again = Journal(path, resume=True)
    settings.begin(again)
    with pytest.raises(ValueError, match="expected the journal's rounds, 1, got 2"):
        Settings((1,), 2, ("fastkd",)).begin(again)
    (kept,) = again.rows.values()
    found = run(jobs, settings, again)
    assert found.rows[0] is kept
    assert found.checks == {"resumed": "1 row of a run before"}
    assert list(Journal(path, resume=True).rows.values()) == list(found.rows)
    monkeypatch.setattr(machine, "commit", lambda: "abc-dirty")
    with pytest.raises(ValueError, match="expected the journal's commit, abc, got abc-dirty"):
        settings.begin(Journal(path, resume=True))
    assert not Journal(path, resume=False).rows


@pytest.mark.usefixtures("quick")
def test_what_other_work_disturbed_is_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, settings = tmp_path / "journal", Settings((1,), 1, ("fastkd",))
    jobs = small_job(BEYOND_EAGER, (8, 4)), SMALL_JOB
    shares = iter((0.0, 0.5, 0.0))
    monkeypatch.setattr(machine.OtherWork, "share", lambda self: next(shares))
    first = run(jobs, settings, Journal(path, resume=False))
    assert [row.others_busy for row in first.rows] == [0.0, 0.5]
    again = run(jobs, settings, Journal(path, resume=True))
    assert [row.others_busy for row in again.rows] == [0.0, 0.0]
    assert again.rows[0] == first.rows[0]
    assert list(Journal(path, resume=True).rows.values()) == list(again.rows)
    one = run(jobs[1:], settings, Journal(path, resume=True))
    assert one.checks == {"resumed": "1 row of a run before"}


@pytest.mark.parametrize("text", ["precious\n", "[1]\n", "a table of one line", "\n", "\xff\n"])
@pytest.mark.parametrize("resume", [False, True])
def test_a_file_that_is_no_journal_stays(tmp_path: Path, text: str, resume: bool) -> None:
    path = tmp_path / "results.csv"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"results.csv: expected a journal of a benchmark, got"):
        Journal(path, resume)
    assert path.read_bytes() == text.encode("latin-1")
