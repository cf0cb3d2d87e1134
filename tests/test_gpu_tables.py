# SPDX-License-Identifier: Apache-2.0
"""Tables, files and the command of the benchmarks for GPUs."""

import dataclasses
import json
from pathlib import Path

import pytest
from gpu_jobs import BATCH_JOBS, MAPS_JOB, SMALL_JOB, measure, meters

from benchmarks import gpu_bench, gpu_facts, gpu_measure, gpu_report
from benchmarks.gpu_measure import DeviceLostError
from benchmarks.gpu_timing import Ceilings
from benchmarks.report import render_markdown, render_summary, save
from benchmarks.results import ON_GPU, Results, results_from_json, to_json


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


def test_command_prints_and_records(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    results: Results,
) -> None:
    monkeypatch.setattr(gpu_facts, "facts", lambda: results.device)
    monkeypatch.setattr(gpu_facts, "gpu_versions", lambda: results.versions)
    monkeypatch.setattr(gpu_bench, "gpu_meters", meters)
    monkeypatch.setattr(gpu_bench, "gpu_jobs", lambda *_: (SMALL_JOB, MAPS_JOB))
    monkeypatch.setattr(gpu_bench, "measure_ceilings", lambda *_, **__: Ceilings(3e12, 2e12))
    journal = tmp_path / "logs" / "journal"
    settings = ["--output", str(tmp_path), "--journal", str(journal), "--rounds", "2"]
    settings += ["--providers", "fastkd,eager"]
    assert gpu_bench.main(settings) == 0
    printed = capsys.readouterr().out
    assert "8x10 fp32: fastkd, eager, time, errors, " in printed
    assert "| 2x5x3x4 dim=1" in printed
    record = results_from_json(json.loads((tmp_path / "chip-1000.json").read_text()))
    assert [row.shape for row in record.rows] == [(8, 10), (2, 5, 3, 4)]
    assert record.copy_bandwidth == {ON_GPU: 3e12}
    assert (tmp_path / "chip-1000.md").exists()
    assert "| 8x10 " in journal.with_suffix(".txt").read_text()

    def lost(*_: object, **__: object) -> gpu_measure.Row:
        raise DeviceLostError("fastkd: an illegal memory access was encountered")

    monkeypatch.setattr(gpu_bench, "measure_on_gpu", lost)
    assert gpu_bench.main(settings) == gpu_bench.LOST
    assert gpu_bench.main([*settings, "--resume"]) == gpu_bench.LOST  # the second row's turn
    assert gpu_bench.main([*settings, "--resume"]) == 0
    record = results_from_json(json.loads((tmp_path / "chip-1000.json").read_text()))
    assert [row.failures for row in record.rows] == [
        dict.fromkeys(("fastkd", "eager"), "hung or faulted (begin)") for _ in range(2)
    ]


def test_recorded_gpu_file_is_read_back_whole(results: Results) -> None:
    assert results_from_json(json.loads(json.dumps(to_json(results)))) == results
    assert results.is_gpu


def test_a_compiler_on_the_cpu_does_not_spoil_what_a_gpu_times(results: Results) -> None:
    (row,) = results.rows
    busy = dataclasses.replace(row, others_busy=0.9)
    assert busy.is_disturbed  # a short row: its calls wait for the CPU
    figures = {
        name: dataclasses.replace(each, host_seconds=None) for name, each in row.providers.items()
    }
    assert not dataclasses.replace(busy, providers=figures).is_disturbed
    assert dataclasses.replace(busy, providers=figures, threads=1).is_disturbed


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


def test_checks_become_part_of_the_results(results: Results, tmp_path: Path) -> None:
    pytest.importorskip("benchmarks.plot", reason="matplotlib draws")
    save(dataclasses.replace(results, checks={}), tmp_path, "chip")
    checks = tmp_path / "checks.json"
    checks.write_text(json.dumps({"values": "ok (9 s)"}), encoding="utf-8")
    assert gpu_report.main([str(tmp_path / "chip.json"), "--checks", str(checks)]) == 0
    kept = results_from_json(json.loads((tmp_path / "chip.json").read_text()))
    assert kept.checks == {"values": "ok (9 s)"}
    assert "* values: ok" in (tmp_path / "chip.md").read_text()
    assert (tmp_path / "chip.png").exists()
    assert "fastkd fp32: loss error at most" in gpu_report.render_rates(kept)


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
