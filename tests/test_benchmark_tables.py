# SPDX-License-Identifier: Apache-2.0
"""The benchmarks' tables, files and command."""

import csv
import dataclasses
import json
import platform
from pathlib import Path

import pytest
import torch
from benchmark_jobs import BEYOND_EAGER, ROOT, SMALL_JOB, small_job

from benchmarks import machine
from benchmarks.commands import commit
from benchmarks.measure import measure
from benchmarks.plot import draw
from benchmarks.report import render_markdown, render_summary, save
from benchmarks.results import Results, Row, results_from_json, to_json
from benchmarks.run import main
from benchmarks.text import byte_text, format_table, nanoseconds_text, time_text


@pytest.fixture(scope="module")
def results() -> Results:
    threads = torch.get_num_threads()
    row = measure(SMALL_JOB, threads=threads, rounds=3, providers=("fastkd", "eager"))
    row = dataclasses.replace(row, others_busy=0.0)
    return Results(
        machine.date(),
        commit(),
        machine.device(),
        machine.versions(),
        {threads: 20e9},
        (row,),
    )


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
    assert [path.name for path in paths] == ["all.png", "all-layers-relations-features.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_table_of_layers_tells_what_their_products_take(results: Results, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    job = small_job("linear_kd_loss", (12, 8))
    row = measure(job, threads=threads, rounds=2, providers=("fastkd", "eager"))
    assert row.name == "12x128x8"
    assert row.floor is not None
    assert row.providers.keys() == {"fastkd", "eager"}
    floor = dataclasses.replace(row.floor, median=row.providers["fastkd"].median / 1.25)
    row = dataclasses.replace(row, floor=floor, others_busy=0.0)
    mixed = dataclasses.replace(results, rows=(*results.rows, row))
    text = render_markdown(mixed)
    assert "Products alone: the matrix products" in text
    assert "in student-sized [N, V] logits" in text
    for table in (text, render_summary(mixed)):
        line = next(line for line in table.splitlines() if line.startswith("| 12x128x8"))
        assert f"{time_text(floor.median)} |" in line
        assert "| 1.25 |" in " ".join(line.split())
        headers = [line for line in table.splitlines() if "vs eager" in line]
        assert ["products alone | fastkd / products" in each for each in headers] == [False, True]
    alone = measure(job, threads=threads, rounds=1, providers=("eager",), only_time=True)
    assert alone.over_floor is None
    assert results_from_json(json.loads(json.dumps(to_json(mixed)))) == mixed
    paths = save(mixed, tmp_path, "all")
    with paths[1].open(newline="") as file:
        floors = [line["floor_median"] for line in csv.DictReader(file)]
    assert floors == ["", "", str(floor.median), str(floor.median)]
    drawn = draw(mixed, tmp_path, "all")
    assert [path.read_bytes()[:4] for path in drawn] == [b"\x89PNG"] * 2


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
    folder, journal = tmp_path / "results", tmp_path / "journal"
    arguments = ["--rows", " 8x10 ", "--rounds", "2", "--providers", "eager,fastkd"]
    arguments += ["--output", str(folder), "--journal", str(journal)]
    threads = torch.get_num_threads()
    try:
        assert main([*arguments, "--threads", "1,2"]) == 0
        with pytest.raises(SystemExit):
            main([*arguments, "--threads", "2", "--resume"])
    finally:
        torch.set_num_threads(threads)
    told = capsys.readouterr()
    assert "| 8x10" in told.out
    assert "--resume: expected the journal's threads, [1, 2], got [2]" in told.err
    files = {path.suffix: path for path in folder.iterdir()}
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
