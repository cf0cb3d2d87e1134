# SPDX-License-Identifier: Apache-2.0
"""Measure every loss on a GPU, print the table and record it.

A kernel that faults takes its process with it, and one that hangs must be killed: each row is
kept as soon as it is known, and a run with --resume goes on behind the row that ended the last one.

--providers measures some providers only, so that fastkd's time is known of every row before
anything slow is asked for. A later run with --resume and others measures what a row has once more
beside them: all times of a row are of the same rounds.
"""

import argparse
import dataclasses
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

# Before torch is loaded: its profiler else writes into the table.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

import fastkd
from benchmarks import ROOT, gpu_facts, machine
from benchmarks.command_line import exit_with
from benchmarks.commands import commit
from benchmarks.gpu_measure import (
    DeviceLostError,
    Meters,
    dry_meters,
    gpu_meters,
    measure_on_gpu,
    new_row,
    words_of,
)
from benchmarks.gpu_report import render_rates
from benchmarks.gpu_rows import find_gpu_jobs, gpu_jobs
from benchmarks.gpu_timing import Ceilings, measure_ceilings
from benchmarks.journal import Journal
from benchmarks.measure import Job
from benchmarks.peers import PEERS, peer_versions, serves
from benchmarks.providers import PROVIDERS
from benchmarks.report import save
from benchmarks.results import ON_GPU, Results, Row, to_json

LOST = 3  # exit status: the device faulted, start again with --resume
ROUNDS, DRY_ROUNDS = 21, 2
DRY_BYTES = 1 << 16  # of the buffers that are copied in a dry run
GPU_PROVIDERS = (*PROVIDERS, *PEERS)
OTHERS = {*GPU_PROVIDERS} - {"fastkd"}  # a row is measured again without them
HUNG = "hung or faulted"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_bench", description=__doc__)
    parser.add_argument("--rows", default="", metavar="TEXT", help="only rows with TEXT in them")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument(
        "--providers", type=_providers, default=GPU_PROVIDERS, metavar="A[,B]",
        help=f"of {','.join(GPU_PROVIDERS)} (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--until", type=float, default=math.inf, metavar="TIME", help="begin no row after time()"
    )
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "gpu-bench")
    parser.add_argument("--journal", type=Path, default=ROOT / "build" / "gpu-bench.jsonl")
    parser.add_argument("--resume", action="store_true", help="go on behind the last journal")
    parser.add_argument("--dry-run", action="store_true", help="tiny rows on the CPU")
    options = parser.parse_args(arguments)
    jobs = gpu_jobs(options.rows, options.dry_run)
    if not jobs:
        names = "\n  ".join(str(job) for job in find_gpu_jobs())
        parser.error(f"--rows {options.rows!r} matches no row of:\n  {names}")
    chip = gpu_facts.dry_facts() if options.dry_run else gpu_facts.facts()
    if "problem" in chip:
        print(f"gpu_bench: {chip['problem']}", file=sys.stderr)
        return 1
    results, slug = empty_results(chip), gpu_facts.slug(chip["gpu"])
    journal = GpuJournal(options.journal, options.resume)
    meters = dry_meters() if options.dry_run else gpu_meters()
    rounds = DRY_ROUNDS if options.dry_run else options.rounds
    try:
        if journal.ceilings is None:
            size = {"size": DRY_BYTES} if options.dry_run else {}
            found = measure_ceilings(rounds, clock=meters.clock, device=meters.device, **size)
            journal.keep_ceilings(found)
            meters.settle()
        for _ in measured(jobs, meters, journal, rounds, options.until, options.providers):
            # After every row: what ends this process does not take the rows before.
            known = filled(results, journal, jobs)
            save(known, options.output, slug)
            options.journal.with_suffix(".txt").write_text(render_rates(known), encoding="utf-8")
    except DeviceLostError as error:
        print(f"gpu_bench: the GPU is lost: {error}", flush=True)
        return LOST
    print(f"\n{render_rates(filled(results, journal, jobs))}", flush=True)
    return 0


def _providers(text: str) -> tuple[str, ...]:
    unknown = sorted(set(text.split(",")) - {*GPU_PROVIDERS})
    if unknown:
        raise argparse.ArgumentTypeError(f"must be among {', '.join(GPU_PROVIDERS)}, got {unknown}")
    return tuple(text.split(","))


class GpuJournal(Journal):
    """Beside the rows also what was begun, and torch's own rates."""

    def __init__(self, path: Path, resume: bool) -> None:
        super().__init__(path, resume)
        # Rows that were begun, and the stages in which earlier processes ended at them.
        self.ended: dict[str, list[str]] = {}
        for each in self.records:
            if "begun" in each:
                self.ended.setdefault(each["begun"], []).append("begin")
            if "stage" in each:
                self.ended[each["of"]][-1] = each["stage"]
            if "job" in each:  # an earlier run came to the end of this row
                self.ended.pop(each["job"], None)
        self.ceilings = next(
            (Ceilings(**each["ceilings"]) for each in self.records if "ceilings" in each), None
        )

    def begin(self, job: Job) -> None:
        """A row is being measured: if the process ends now, it was this row's fault."""
        self.write({"begun": str(job)})

    def stage(self, job: Job, stage: str) -> None:
        """A provider's turn, or a later stage, that may be at fault."""
        self.write({"stage": stage, "of": str(job)})

    def keep_row(self, job: Job, row: Row) -> None:
        """A row is known; and whether a kernel of ours does its work, for ncu."""
        self.rows[str(job)] = row
        self.write({"job": str(job), "row": to_json(row), "kernel": bool(job.case.kernels.forward)})

    def keep_ceilings(self, ceilings: Ceilings) -> None:
        """The rates of torch's own kernels are known."""
        self.ceilings = ceilings
        self.write({"ceilings": {"copy": ceilings.copy, "add": ceilings.add}})


def measured(
    jobs: Sequence[Job],
    meters: Meters,
    journal: GpuJournal,
    rounds: int,
    until: float,
    providers: Sequence[str] = GPU_PROVIDERS,
) -> Iterator[Row]:
    """Measure what the journal lacks of some providers, turn by turn with those that a row has."""
    for job in jobs:
        name = str(job)
        known = journal.rows.get(name) or new_row(job, failures={})
        new = [each for each in providers if _is_new(each, job, known)]
        if not new:
            continue
        ended = journal.ended.get(name, [])
        if set(ended) - OTHERS:
            row = new_row(job, failures=dict.fromkeys(new, f"{HUNG} ({ended[-1]})"))
        elif time.time() < until:
            asked = [each for each in GPU_PROVIDERS if each in new or each in known.providers]
            row = _measure_one(job, meters, journal, rounds, asked, ended)
        else:
            print(f"no time left for {name}", flush=True)
            continue
        row = _joined(known, row)
        journal.keep_row(job, row)
        yield row


def _is_new(provider: str, job: Job, known: Row) -> bool:
    """Whether a provider has the row's loss, and neither figures nor a failure in it."""
    has_it = provider not in PEERS or serves(provider, job.case, job.bench_row)
    return has_it and provider not in {**known.providers, **known.failures}


def _joined(known: Row, row: Row) -> Row:
    """What is known of a row after a later run: its times, or the earlier ones if it has none."""
    latest = row if row.providers else known
    return dataclasses.replace(latest, failures={**known.failures, **row.failures})


def _measure_one(
    job: Job,
    meters: Meters,
    journal: GpuJournal,
    rounds: int,
    asked: Sequence[str],
    without: Sequence[str],
) -> Row:
    begin = time.monotonic()
    print(f"{job}:", end=" ", flush=True)
    journal.begin(job)

    def progress(stage: str) -> None:
        print(stage, end=", ", flush=True)
        journal.stage(job, stage)

    providers = [name for name in asked if name not in without]
    try:
        row = measure_on_gpu(job, meters, rounds=rounds, providers=providers, progress=progress)
        row.failures.update(dict.fromkeys(without, HUNG))
    except DeviceLostError:
        raise
    except Exception as error:  # the other rows may fare better
        row = new_row(job, failures={"fastkd": words_of(error)})
    try:
        meters.settle()
    except Exception as lost:
        raise DeviceLostError(f"{job}: {row.failures}") from lost
    print(f"{time.monotonic() - begin:.1f} s {row.failures or ''}", flush=True)
    return row


def empty_results(chip: dict[str, Any]) -> Results:
    """What a run is, before its first row."""
    versions = {
        **machine.versions(),
        **gpu_facts.gpu_versions(),
        **peer_versions(),
        "fastkd_cuda_archs": fastkd.info()["cuda"] or "none: the reference ran",
    }
    sizes = {name: chip[name] for name in gpu_facts.SIZES}
    device = {**sizes, **machine.device()}
    return Results(machine.date(), commit(), device, versions, {ON_GPU: math.nan}, ())


def filled(results: Results, journal: GpuJournal, jobs: Sequence[Job]) -> Results:
    """The run so far."""
    assert journal.ceilings is not None
    return dataclasses.replace(
        results,
        rows=tuple(journal.rows[str(job)] for job in jobs if str(job) in journal.rows),
        copy_bandwidth={ON_GPU: journal.ceilings.copy},
        add_bandwidth=journal.ceilings.add,
    )


if __name__ == "__main__":
    exit_with(main)
