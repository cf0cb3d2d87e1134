# SPDX-License-Identifier: Apache-2.0
"""Measure every loss, print the tables, record them and draw them.

A run that is cut off has lost one row at most: with --resume the next goes on where it was, and
measures again what other work disturbed.
"""

import argparse
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# Before torch is loaded: its profiler, which weighs memory, else writes into the progress bar.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

import torch
from tqdm import tqdm

from benchmarks import ROOT, machine
from benchmarks.command_line import exit_with
from benchmarks.commands import commit
from benchmarks.journal import Journal
from benchmarks.mapped import is_wanted, measure_mapped
from benchmarks.measure import Job, Progress, find_jobs, measure
from benchmarks.plot import draw
from benchmarks.providers import PROVIDERS
from benchmarks.report import render_markdown, save
from benchmarks.results import Results, Row
from benchmarks.text import count_text
from benchmarks.timing import copy_bandwidth

JOURNAL = ROOT / "build" / "bench.jsonl"
REDRAW_SECONDS = 0.5  # of the progress bar: drawing it takes CPU time too


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = _parser()
    options = parser.parse_args(arguments)
    jobs = find_jobs(options.rows)
    if not jobs:
        names = "\n  ".join(str(job) for job in find_jobs())
        parser.error(f"--rows {options.rows!r} matches no row of:\n  {names}")
    settings = Settings(options.threads, options.rounds, options.providers)
    path = options.journal or (JOURNAL if options.save or options.resume else None)
    try:
        journal = Journal(path, options.resume)
        settings.begin(journal)
    except ValueError as error:
        parser.error(str(error))
    results = run(jobs, settings, journal)
    print(f"\n{render_markdown(results)}")
    if options.save:
        slug = machine.slug(results.threads)
        paths = save(results, options.output, slug)
        if "fastkd" in options.providers and len(options.providers) > 1:
            paths += draw(results, options.output, slug)
        print("\n".join(f"wrote {_shown(path)}" for path in paths))
    return 0


@dataclass(frozen=True)
class Settings:
    """How every row is measured."""

    threads: Sequence[int]
    rounds: int
    providers: Sequence[str]

    def begin(self, journal: Journal) -> None:
        """Note in a new journal how rows are measured; ValueError if an old one's were not so."""
        mine = {
            "cpu": machine.cpu_model(),
            "commit": commit(),
            "versions": machine.versions(),
            "threads": list(self.threads),
            "rounds": self.rounds,
            "providers": list(self.providers),
        }
        if not journal.records:
            journal.write(mine)
            return
        for name, value in mine.items():
            theirs = journal.records[0].get(name)
            if theirs != value:
                raise ValueError(f"--resume: expected the journal's {name}, {theirs}, got {value}")
        if "dirty" in str(mine["commit"]):
            raise ValueError("--resume: files differ from the commit, so rows may be of other code")


def run(jobs: Sequence[Job], settings: Settings, journal: Journal) -> Results:
    """Measure the rows at every thread count, or at the largest where they ask for no more."""
    device, versions, revision = machine.device(), machine.versions(), commit()
    threads = settings.threads
    known = {name: row for name, row in journal.rows.items() if not row.is_disturbed}
    kept = 0
    copies: dict[int, float] = {}
    rows: list[Row] = []
    jobs_of = {
        count: [job for job in jobs if count == max(threads) or not job.bench_row.most_threads_only]
        for count in threads
    }
    total = sum(len(some) + sum(map(is_wanted, some)) for some in jobs_of.values())
    with tqdm(total=total, unit="row", smoothing=0) as bar:
        for count in threads:
            torch.set_num_threads(count)
            bar.set_description(f"{count} threads, copy bandwidth")
            copies[count] = copy_bandwidth()
            for job in jobs_of[count]:
                bar.set_description(f"{count} threads, {job}")
                for mapped in (False, True) if is_wanted(job) else (False,):
                    name = f"{count} threads, {job}{', mapped' if mapped else ''}"
                    row = known.get(name)
                    kept += row is not None
                    if row is None:
                        row = _measure(job, count, mapped, settings, _progress(bar))
                        if row is not None:
                            journal.keep(name, row)
                    rows.extend([] if row is None else [row])
                    bar.update()
    checks = {"resumed": f"{count_text(kept, 'row')} of a run before"} if kept else {}
    ordered = _in_table_order(rows, jobs)
    return Results(machine.date(), revision, device, versions, copies, ordered, checks=checks)


def _measure(
    job: Job, threads: int, mapped: bool, settings: Settings, progress: Progress
) -> Row | None:
    rounds, providers = settings.rounds, settings.providers
    if mapped:
        progress("mapped memory")
        return measure_mapped(job, threads, rounds, providers)
    return measure(
        job,
        threads=threads,
        rounds=rounds,
        providers=providers,
        only_time=threads != max(settings.threads),
        progress=progress,
    )


def _progress(bar: tqdm) -> Progress:
    drawn = 0.0

    def show(stage: str) -> None:
        nonlocal drawn
        now = time.monotonic()
        if now - drawn > REDRAW_SECONDS:
            drawn = now
            bar.set_postfix_str(stage)

    return show


def _in_table_order(rows: Sequence[Row], jobs: Sequence[Job]) -> tuple[Row, ...]:
    """By thread count within each case, most threads first; else as measured."""
    cases = list(dict.fromkeys((job.case.loss, job.case.label) for job in jobs))
    return tuple(sorted(rows, key=lambda row: (cases.index((row.loss, row.label)), -row.threads)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument(
        "--rows", default="", metavar="TEXT[,TEXT]", help="only rows with TEXT in the name"
    )
    parser.add_argument(
        "--rounds", type=_positive, default=25, help="timed rounds; fewer where calls take > 0.5 s"
    )
    parser.add_argument(
        "--threads",
        type=_positives,
        default=(torch.get_num_threads(),),
        metavar="N[,N]",
        help="thread counts, each measured (default: torch's)",
    )
    parser.add_argument(
        "--providers",
        type=_providers,
        default=PROVIDERS,
        metavar="A[,B]",
        help=f"of {','.join(PROVIDERS)}",
    )
    parser.add_argument(
        "--output", type=Path, default=ROOT / "benchmarks" / "results", metavar="DIR"
    )
    parser.add_argument(
        "--journal",
        type=Path,
        metavar="FILE",
        help=f"rows as they come (default: {JOURNAL.relative_to(ROOT)}, with --no-save none)",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="measure only what the last run's journal lacks, and what other work disturbed",
    )
    parser.add_argument("--no-save", dest="save", action="store_false", help="print only")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, got {text!r}")
    return int(text)


def _positives(text: str) -> tuple[int, ...]:
    return tuple(sorted({_positive(part) for part in text.split(",")}))


def _providers(text: str) -> tuple[str, ...]:
    names = text.split(",")
    unknown = [name for name in names if name not in PROVIDERS]
    if unknown:
        raise argparse.ArgumentTypeError(
            f"must be among {', '.join(PROVIDERS)}, got {', '.join(unknown)!r}"
        )
    return tuple(name for name in PROVIDERS if name in names)


def _shown(path: Path) -> str:
    resolved = path.resolve()
    return str(resolved.relative_to(ROOT) if resolved.is_relative_to(ROOT) else path)


if __name__ == "__main__":
    exit_with(main)
