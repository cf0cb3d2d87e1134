# SPDX-License-Identifier: Apache-2.0
"""Measure every loss on a GPU, print the table, record it and draw it.

A kernel that faults takes its process with it, and one that hangs must be killed: each row is
kept as soon as it is known, and a run with --resume goes on behind the row that ended the last one.
"""

import argparse
import dataclasses
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

# Before torch is loaded: its profiler else writes into the table.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

import fastkd
from benchmarks import ROOT, gpu_facts, machine
from benchmarks.command_line import exit_with
from benchmarks.gpu_measure import (
    DeviceLostError,
    Meters,
    find_gpu_jobs,
    gpu_meters,
    in_turn,
    measure_on_gpu,
    new_row,
    words_of,
)
from benchmarks.gpu_timing import Ceilings, measure_ceilings
from benchmarks.journal import Journal
from benchmarks.measure import Job
from benchmarks.peers import PEERS, peer_versions
from benchmarks.providers import PROVIDERS
from benchmarks.report import render_markdown, save
from benchmarks.results import ON_GPU, Results, Row

LOST = 3  # exit status: the device faulted, start again with --resume
ROUNDS = 21
GPU_PROVIDERS = (*PROVIDERS, *PEERS)
OTHERS = {*GPU_PROVIDERS} - {"fastkd"}  # a row is measured again without them
HUNG = "hung or faulted"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_bench", description=__doc__)
    parser.add_argument("--rows", default="", metavar="TEXT", help="only rows with TEXT in them")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument(
        "--until", type=float, default=math.inf, metavar="TIME", help="begin no row after time()"
    )
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--journal", type=Path, default=ROOT / "build" / "gpu-bench.jsonl")
    parser.add_argument("--resume", action="store_true", help="go on behind the last journal")
    options = parser.parse_args(arguments)
    jobs = find_gpu_jobs(options.rows)
    if not jobs:
        names = "\n  ".join(str(job) for job in find_gpu_jobs())
        parser.error(f"--rows {options.rows!r} matches no row of:\n  {names}")
    problem = gpu_facts.facts().get("problem")
    if problem:
        print(f"gpu_bench: {problem}", file=sys.stderr)
        return 1
    results, slug = empty_results(), gpu_facts.slug(gpu_facts.gpu()["gpu"])
    journal = GpuJournal(options.journal, options.resume)
    try:
        for _ in measured(in_turn(jobs), gpu_meters(), journal, options.rounds, options.until):
            # After every row: what ends this process does not take the rows before.
            save(filled(results, journal, jobs), options.output, slug)
    except DeviceLostError as error:
        print(f"gpu_bench: the GPU is lost: {error}", flush=True)
        return LOST
    results = filled(results, journal, jobs)
    print(f"\n{render_markdown(results)}", flush=True)
    try:
        from benchmarks.plot import draw  # noqa: PLC0415 - matplotlib may be missing
    except ImportError as error:
        print(f"no picture: {error}")
    else:
        draw(results, options.output, slug)
    return 0


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
        self.ceilings = next(
            (Ceilings(**each["ceilings"]) for each in self.records if "ceilings" in each), None
        )

    def begin(self, job: Job) -> None:
        """A row is being measured: if the process ends now, it was this row's fault."""
        self.write({"begun": str(job)})

    def stage(self, job: Job, stage: str) -> None:
        """A provider's turn, or a later stage, that may be at fault."""
        self.write({"stage": stage, "of": str(job)})

    def keep_ceilings(self, ceilings: Ceilings) -> None:
        """The rates of torch's own kernels are known."""
        self.ceilings = ceilings
        self.write({"ceilings": {"copy": ceilings.copy, "add": ceilings.add}})


def measured(
    jobs: Sequence[Job], meters: Meters, journal: GpuJournal, rounds: int, until: float
) -> Iterator[Row]:
    """Measure the ceilings and the rows that the journal lacks."""
    if journal.ceilings is None:
        journal.keep_ceilings(measure_ceilings(clock=meters.clock, device=meters.device))
        meters.settle()
    for job in jobs:
        name = str(job)
        if name in journal.rows:
            continue
        ended = journal.ended.get(name, [])
        if set(ended) - OTHERS:
            row = new_row(job, failures={"fastkd": f"{HUNG} ({ended[-1]})"})
        elif time.time() < until:
            row = _measure_one(job, meters, journal, rounds, ended)
        else:
            print(f"no time left for {name}", flush=True)
            continue
        journal.keep(name, row)
        yield row


def _measure_one(
    job: Job, meters: Meters, journal: GpuJournal, rounds: int, without: Sequence[str]
) -> Row:
    begin = time.monotonic()
    print(f"{job}:", end=" ", flush=True)
    journal.begin(job)

    def progress(stage: str) -> None:
        print(stage, end=", ", flush=True)
        journal.stage(job, stage)

    providers = [name for name in GPU_PROVIDERS if name not in without]
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


def empty_results() -> Results:
    """What a run is, before its first row."""
    versions = {
        **machine.versions(),
        **gpu_facts.gpu_versions(),
        **peer_versions(),
        "fastkd_cuda_archs": fastkd.info()["cuda"] or "none: the reference ran",
    }
    device = {**gpu_facts.gpu(), **machine.device()}
    return Results(machine.date(), machine.commit(), device, versions, {ON_GPU: math.nan}, ())


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
