# SPDX-License-Identifier: Apache-2.0
"""The tables, and the recorded files."""

import csv
import itertools
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers import PEERS
from benchmarks.providers import PROVIDERS
from benchmarks.results import BUSY, ON_GPU, Figures, Results, Row, to_json

_SHORT = {"torch.compile": "compile"}
NOTHING = "-"
MOST_WORDS = 24  # of a failure, in a cell


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
    parts += [words for words in (host_words(results), _check_words(results)) if words]
    return "\n\n".join(parts) + "\n"


def _heading(results: Results) -> str:
    versions = results.versions
    return "\n".join(
        (
            f"{_gpu_words(results) if results.is_gpu else _cpu_words(results)} "
            f"torch {versions['torch']}, Python {versions['python']}, {versions['compiler']}, "
            f"{versions['libc']}. Commit {results.commit}, {results.date}.",
            "",
            "Forward and backward: median [quartiles] of interleaved rounds. "
            "Ratios: of the medians. "
            "GB/s: bytes that any implementation must move / time of fastkd; "
            f"{copy_words(results)}.",
        )
    )


def _cpu_words(results: Results) -> str:
    device, versions = results.device, results.versions
    caches = ", ".join(f"{level} {size}" for level, size in device["caches"].items())
    return (
        f"{device['cpu']}, {_count(device['cores'], 'core')}, {caches or 'caches unknown'}, "
        f"{device['memory_gib']} GiB, huge pages: {device['huge_pages']}. "
        f"fastkd {versions['fastkd']} ({versions['fastkd_cpu_build']}),"
    )


def _gpu_words(results: Results) -> str:
    device, versions = results.device, results.versions
    peers = "".join(f"{name} {versions[name]}, " for name in PEERS if name in versions)
    return (
        f"{device['gpu']}, {device['multiprocessors']} multiprocessors, L2 {device['l2_mib']} MiB, "
        f"{device['gpu_memory_gib']} GiB; {device['cpu']}, {_count(device['cores'], 'core')}. "
        f"fastkd {versions['fastkd']} (CUDA, {versions['fastkd_cuda_archs']}), "
        f"driver {versions['driver']}, CUDA {versions['torch_cuda']}, "
        f"Triton {versions['triton']}, nvcc {versions['nvcc']}, {peers}".rstrip()
    )


def copy_words(results: Results) -> str:
    """The rates of a copy."""
    if results.is_gpu:
        (rate,), add = results.copy_bandwidth.values(), results.add_bandwidth or 0.0
        return (
            f"torch's copy (one read, one write) moves {rate / 1e9:.0f} GB/s, "
            f"its addition (two reads, one write) {add / 1e9:.0f} GB/s"
        )
    copies = "; ".join(
        f"{rate / 1e9:.1f} GB/s on {_count(threads, 'thread')}"
        for threads, rate in sorted(results.copy_bandwidth.items())
    )
    return f"a torch copy reads and writes {copies}"


def _time_table(rows: Sequence[Row], results: Results) -> str:
    providers = _present(rows)
    others = _others(providers)
    header = ["logits", "dtype", *([] if results.is_gpu else ["threads"]), *providers]
    header += [f"vs {_SHORT.get(name, name)}" for name in others]
    header += ["GB/s", "of copy", "rounds"]
    body = []
    for row in rows:
        line = [row.name + (" †" if row.is_disturbed else ""), row.dtype]
        line += [] if results.is_gpu else [str(row.threads)]
        line += [_cell(row, name, _timespan) for name in providers]
        line += [_ratio(row.ratio(name)) for name in others]
        body.append([*line, *_rate_cells(row, results), str(row.rounds)])
    note = (
        f"\n\n† not fit to be quoted: other work used more than {BUSY:.0%} of the CPUs meanwhile."
        if any(row.is_disturbed for row in rows)
        else ""
    )
    return format_table(header, body, left=2) + note


def render_summary(results: Results, rates: bool = False) -> str:
    """The table that README shows: the most threads, medians only."""
    rows = [row for row in results.rows if row.threads == max(results.threads)]
    providers = _present(rows)
    others = _others(providers)
    header = ["logits", "dtype", *providers]
    header += [f"vs {_SHORT.get(name, name)}" for name in others]
    header += ["GB/s", "of copy"] if rates else []
    body = []
    for row in rows:
        line = [row.name + (" †" if row.is_disturbed else ""), row.dtype]
        line += [_cell(row, name, lambda figures: time_text(figures.median)) for name in providers]
        line += [_ratio(row.ratio(name)) for name in others]
        body.append([*line, *(_rate_cells(row, results) if rates else ())])
    return format_table(header, body, left=2)


def host_words(results: Results) -> str:
    """What short calls cost the CPU, where a GPU was measured."""
    parts = []
    for row in results.rows:
        times = [
            f"{name} {time_text(figures.host_seconds)}"
            for name, figures in row.providers.items()
            if figures.host_seconds is not None
        ]
        parts += [f"{row.name} {row.dtype}: {', '.join(times)}"] if times else []
    return f"Time of the CPU to queue one call: {'; '.join(parts)}." if parts else ""


def _check_words(results: Results) -> str:
    lines = [f"* {name}: {words}" for name, words in results.checks.items()]
    return "\n".join(["The other checks of this run:", "", *lines]) if lines else ""


def _others(providers: Sequence[str]) -> list[str]:
    return [name for name in providers if name != "fastkd"] if "fastkd" in providers else []


def _cell(row: Row, provider: str, text: Callable[[Figures], str]) -> str:
    if provider in row.providers:
        return text(row.providers[provider])
    return row.failures.get(provider, NOTHING)[:MOST_WORDS]


def _rate_cells(row: Row, results: Results) -> list[str]:
    rate = row.bandwidth
    if rate is None:
        return [NOTHING, NOTHING]
    digits = 0 if results.is_gpu else 2
    return [f"{rate / 1e9:.{digits}f}", f"{rate / results.copy_bandwidth[row.threads]:.0%}"]


def _memory_table(rows: Sequence[Row]) -> str:
    providers = _present(rows)
    header = ["logits", "dtype", "[N, C]"]
    for what in ("memory", "loss error", "gradient error"):
        header += [f"{what}: {_SHORT.get(name, name)}" for name in providers]
    body, sampled = [], False
    for row in rows:
        mark = "" if row.error_shape is None else " *"
        sampled |= bool(mark)
        line = [row.name, row.dtype, byte_text(row.student_bytes)]
        loss_mark = "" if row.threads == ON_GPU else mark  # a GPU's is summed over all rows
        for text in (
            lambda each, row=row: f"{(each.peak_bytes or 0) / row.student_bytes:.2f}",
            lambda each, mark=loss_mark: f"{each.loss_error:.1e}{mark}",
            lambda each, mark=mark: f"{each.grad_error:.1e}{mark}",
        ):
            line += [_cell(row, name, text) for name in providers]
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
    if ratio is None:
        return NOTHING
    return f"{ratio:.3g}" if ratio >= 1 else f"**{ratio:.2f} slower**"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _present(rows: Sequence[Row]) -> list[str]:
    known = {name for row in rows for name in (*row.providers, *row.failures)}
    return [name for name in (*PROVIDERS, *PEERS) if name in known]


def _is_weighed(row: Row) -> bool:
    return all(figures.grad_error is not None for figures in row.providers.values())


def _write_csv(results: Results, path: Path) -> None:
    """One line per row and provider; lengths in seconds and bytes."""
    records = [
        _csv_record(row, name) | {"copy_bytes_per_second": results.copy_bandwidth[row.threads]}
        for row in results.rows
        for name in row.providers
    ]
    if not records:
        return
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(records[0]))
        writer.writeheader()
        writer.writerows(records)


def _csv_record(row: Row, provider: str) -> dict[str, Any]:
    record = to_json(row)
    figures = record.pop("providers")[provider]
    for name in ("shape", "error_shape"):
        record[name] = "x".join(map(str, record[name] or ()))
    for name in ("options", "failures"):
        record[name] = json.dumps(record[name])
    return {**record, "provider": provider, **figures, "time_over_fastkd": row.ratio(provider)}
