# SPDX-License-Identifier: Apache-2.0
"""A run in words and tables, and the recorded files."""

import csv
import json
from pathlib import Path
from typing import Any

from benchmarks.peers import PEERS
from benchmarks.results import Results, Row, to_json
from benchmarks.tables import (
    STYLES,
    by_kind,
    loss_names,
    memory_table,
    option_lines,
    summary_table,
    time_table,
)
from benchmarks.text import count_text, time_text


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
    for kind, rows in by_kind(results.rows):
        style = STYLES[kind]
        parts.append(f"### {style.title}")
        # A single loss is named here, several in a column.
        lines = option_lines(rows) or ([] if len(loss_names(rows)) > 1 else [rows[0].loss])
        parts += ["\n".join(f"* {line}" for line in lines)] if lines else []
        parts.append(time_table(rows, results))
        weighed = [row for row in rows if _is_weighed(row)]
        if weighed:
            parts.append(f"Peak extra memory, in {style.memory}, and errors:")
            parts.append(memory_table(weighed, results))
    parts += [words for words in (host_words(results), _check_words(results)) if words]
    return "\n\n".join(parts) + "\n"


def render_summary(results: Results, rates: bool = False) -> str:
    """The short tables, some rows of which README quotes: the most threads, medians only."""
    rows = [row for row in results.rows if row.threads == max(results.threads)]
    groups = by_kind(rows)
    parts = []
    for kind, group in groups:
        parts += [f"{STYLES[kind].title}:"] if len(groups) > 1 else []
        parts.append(summary_table(group, results, rates))
    return "\n\n".join(parts)


def _heading(results: Results) -> str:
    versions = results.versions
    per_unit = (
        " Time for each: of fastkd, for each of the N^2 pairs or N^3 triplets."
        if any(row.work_count for row in results.rows)
        else ""
    )
    floors = (
        " Products alone: the matrix products of forward and backward and nothing else."
        if any(row.floor is not None for row in results.rows)
        else ""
    )
    return "\n".join(
        (
            f"{_gpu_words(results) if results.is_gpu else _cpu_words(results)} "
            f"torch {versions['torch']}, Python {versions['python']}, {versions['compiler']}, "
            f"{versions['libc']}. Commit {results.commit}, {results.date}.",
            "",
            "Forward and backward: median [quartiles] of interleaved rounds. "
            "Ratios: of the medians. "
            "GB/s: bytes that any implementation must move / time of fastkd; "
            f"{copy_words(results)}.{per_unit}{floors}",
        )
    )


def _cpu_words(results: Results) -> str:
    device, versions = results.device, results.versions
    caches = ", ".join(f"{level} {size}" for level, size in device["caches"].items())
    return (
        f"{device['cpu']}, {count_text(device['cores'], 'core')}, {caches or 'caches unknown'}, "
        f"{device['memory_gib']} GiB, huge pages: {device['huge_pages']}. "
        f"fastkd {versions['fastkd']} ({versions['fastkd_cpu_build']}),"
    )


def _gpu_words(results: Results) -> str:
    device, versions = results.device, results.versions
    peers = "".join(f"{name} {versions[name]}, " for name in PEERS if name in versions)
    return (
        f"{device['gpu']}, {device['multiprocessors']} multiprocessors, L2 {device['l2_mib']} MiB, "
        f"{device['gpu_memory_gib']} GiB; {device['cpu']}, {count_text(device['cores'], 'core')}. "
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
        f"{rate / 1e9:.1f} GB/s on {count_text(threads, 'thread')}"
        for threads, rate in sorted(results.copy_bandwidth.items())
    )
    return f"a torch copy reads and writes {copies}"


def host_words(results: Results) -> str:
    """What short calls cost the CPU, where a GPU was measured."""
    names, parts = loss_names(results.rows), []
    for row in results.rows:
        times = [
            f"{name} {time_text(figures.host_seconds)}"
            for name, figures in row.providers.items()
            if figures.host_seconds is not None
        ]
        loss = f"{names[row.loss, row.label]} " if len(names) > 1 else ""
        parts += [f"{loss}{row.name} {row.dtype}: {', '.join(times)}"] if times else []
    return f"Time of the CPU to queue one call: {'; '.join(parts)}." if parts else ""


def _check_words(results: Results) -> str:
    lines = [f"* {name}: {words}" for name, words in results.checks.items()]
    return "\n".join(["The other checks of this run:", "", *lines]) if lines else ""


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
    figures, floor = record.pop("providers")[provider], record.pop("floor")
    record["floor_median"] = None if floor is None else floor["median"]
    for name in ("shape", "error_shape"):
        record[name] = "x".join(map(str, record[name] or ()))
    for name in ("options", "failures"):
        record[name] = json.dumps(record[name])
    return {**record, "provider": provider, **figures, "time_over_fastkd": row.ratio(provider)}
