# SPDX-License-Identifier: Apache-2.0
"""The tables, and the recorded files."""

import csv
import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.providers import PROVIDERS
from benchmarks.results import BUSY, Figures, Results, Row, to_json

_SHORT = {"fastkd": "fastkd", "eager": "eager", "torch.compile": "compile"}
NOTHING = "-"


def save(results: Results, folder: Path, slug: str) -> list[Path]:
    """Write the JSON, CSV and Markdown files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{slug}.{suffix}" for suffix in ("json", "csv", "md")]
    paths[0].write_text(json.dumps(to_json(results), indent=1) + "\n", encoding="utf-8")
    _write_csv(results, paths[1])
    paths[2].write_text(render_markdown(results), encoding="utf-8")
    return paths


def render_markdown(results: Results) -> str:
    """The run in words and tables."""
    parts = [_heading(results)]
    key = lambda row: (row.loss, row.label)  # noqa: E731
    for (loss, label), group in itertools.groupby(results.rows, key):
        rows = tuple(group)
        options = ", ".join(f"{name}={value!r}" for name, value in rows[0].options.items())
        parts.append(f"### {loss}, case {label} ({options})")
        parts.append(_time_table(rows, results))
        weighed = [row for row in rows if _is_weighed(row)]
        if weighed:
            parts.append("Peak extra memory, in student-sized [N, C] tensors, and errors:")
            parts.append(_memory_table(weighed))
    return "\n\n".join(parts) + "\n"


def _heading(results: Results) -> str:
    device, versions = results.device, results.versions
    caches = ", ".join(f"{level} {size}" for level, size in device["caches"].items())
    copies = "; ".join(
        f"{rate / 1e9:.1f} GB/s on {_count(threads, 'thread')}"
        for threads, rate in sorted(results.copy_bandwidth.items())
    )
    return "\n".join(
        (
            f"{device['cpu']}, {_count(device['cores'], 'core')}, {caches or 'caches unknown'}, "
            f"{device['memory_gib']} GiB, huge pages: {device['huge_pages']}. "
            f"fastkd {versions['fastkd']} ({versions['fastkd_cpu_build']}), "
            f"torch {versions['torch']}, Python {versions['python']}, {versions['compiler']}, "
            f"{versions['libc']}. Commit {results.commit}, {results.date}.",
            "",
            "Forward and backward: median [quartiles] of interleaved rounds. "
            "Ratios: of the medians. "
            "GB/s: bytes that any implementation must move / time of fastkd; "
            f"a torch copy reads and writes {copies}.",
        )
    )


def _time_table(rows: Sequence[Row], results: Results) -> str:
    providers = _present(rows)
    others = [name for name in providers if name != "fastkd"] if "fastkd" in providers else []
    header = ["logits", "dtype", "threads", *providers]
    header += [f"vs {_SHORT[name]}" for name in others]
    header += ["GB/s", "of copy", "rounds"]
    body = []
    for row in rows:
        line = [row.name + (" †" if row.is_disturbed else ""), row.dtype, str(row.threads)]
        line += [_timespan(row.providers[name]) for name in providers]
        line += [_ratio(row.ratio(name)) for name in others]
        rate = row.bandwidth
        if rate is None:
            line += [NOTHING, NOTHING]
        else:
            line += [f"{rate / 1e9:.2f}", f"{rate / results.copy_bandwidth[row.threads]:.0%}"]
        body.append([*line, str(row.rounds)])
    note = (
        f"\n\n† not fit to be quoted: other work used more than {BUSY:.0%} of the CPUs meanwhile."
        if any(row.is_disturbed for row in rows)
        else ""
    )
    return format_table(header, body, left=2) + note


def render_summary(results: Results) -> str:
    """The table that README shows: the most threads, medians only."""
    rows = [row for row in results.rows if row.threads == max(results.threads)]
    providers = _present(rows)
    others = [name for name in providers if name != "fastkd"]
    header = ["logits", "dtype", *providers, *(f"vs {_SHORT[name]}" for name in others)]
    body = []
    for row in rows:
        line = [row.name + (" †" if row.is_disturbed else ""), row.dtype]
        line += [time_text(row.providers[name].median) for name in providers]
        body.append([*line, *(_ratio(row.ratio(name)) for name in others)])
    return format_table(header, body, left=2)


def _memory_table(rows: Sequence[Row]) -> str:
    providers = _present(rows)
    header = ["logits", "dtype", "[N, C]"]
    for what in ("memory", "loss error", "gradient error"):
        header += [f"{what}: {_SHORT[name]}" for name in providers]
    body, sampled = [], False
    for row in rows:
        figures = [row.providers[name] for name in providers]
        mark = "" if row.error_shape is None else " *"
        sampled |= bool(mark)
        line = [row.name, row.dtype, byte_text(row.student_bytes)]
        line += [f"{(each.peak_bytes or 0) / row.student_bytes:.2f}" for each in figures]
        line += [f"{each.loss_error:.1e}{mark}" for each in figures]
        line += [f"{each.grad_error:.1e}{mark}" for each in figures]
        body.append(line)
    note = "\n\n\\* on fewer rows of the same length, to bound the cost of float64."
    return format_table(header, body, left=2) + (note if sampled else "")


def format_table(header: Sequence[str], body: Iterable[Sequence[str]], left: int) -> str:
    """A Markdown table whose columns line up in a terminal too; the first `left` flush left."""
    lines = [list(header), *(list(line) for line in body)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]

    def padded(line: Sequence[str]) -> str:
        cells = (
            cell.ljust(width) if index < left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        return f"| {' | '.join(cells)} |"

    rule = (
        "-" * (width + 2) if index < left else "-" * (width + 1) + ":"
        for index, width in enumerate(widths)
    )
    return "\n".join([padded(lines[0]), f"|{'|'.join(rule)}|", *map(padded, lines[1:])])


def time_text(seconds: float) -> str:
    """Three digits and a unit."""
    for factor, unit in ((1e6, "µs"), (1e3, "ms"), (1.0, "s")):
        if seconds * factor < 999.5:
            return f"{_three_digits(seconds * factor)} {unit}"
    return f"{seconds:.0f} s"


def byte_text(count: float) -> str:
    """Three digits and a decimal unit."""
    for factor, unit in ((1.0, "B"), (1e3, "kB"), (1e6, "MB")):
        if count / factor < 999.5:
            return f"{_three_digits(count / factor)} {unit}"
    return f"{_three_digits(count / 1e9)} GB"


def _three_digits(value: float) -> str:
    decimals = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{decimals}f}"


def _timespan(figures: Figures) -> str:
    text = time_text(figures.median)
    factor = {"µs": 1e6, "ms": 1e3, "s": 1.0}[text.split()[1]]
    low, high = (_three_digits(seconds * factor) for seconds in (figures.q25, figures.q75))
    return f"{text} [{low}, {high}]"


def _ratio(ratio: float | None) -> str:
    assert ratio is not None
    return f"{ratio:.3g}" if ratio >= 1 else f"**{ratio:.2f} slower**"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _present(rows: Sequence[Row]) -> list[str]:
    return [name for name in PROVIDERS if name in rows[0].providers]


def _is_weighed(row: Row) -> bool:
    return all(figures.grad_error is not None for figures in row.providers.values())


def _write_csv(results: Results, path: Path) -> None:
    """One line per row and provider; lengths in seconds and bytes."""
    records = [
        _csv_record(row, name) | {"copy_bytes_per_second": results.copy_bandwidth[row.threads]}
        for row in results.rows
        for name in row.providers
    ]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(records[0]))
        writer.writeheader()
        writer.writerows(records)


def _csv_record(row: Row, provider: str) -> dict[str, Any]:
    record = to_json(row)
    figures = record.pop("providers")[provider]
    for name in ("shape", "error_shape"):
        record[name] = "x".join(map(str, record[name] or ()))
    record["options"] = json.dumps(record["options"])
    return {**record, "provider": provider, **figures, "time_over_fastkd": row.ratio(provider)}
