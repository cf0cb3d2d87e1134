# SPDX-License-Identifier: Apache-2.0
"""The rows of a GPU's table, those first that tell most: a run may be cut off at any time."""

import dataclasses
from collections.abc import Iterator, Sequence

import torch
from cases import KD_LOSS, BenchRow

from benchmarks.measure import BENCH_CASES, Job

# Classes of kd_loss: language models, a cluster and a block a row, ImageNet, a vocabulary of odd
# size, a warp a row, the longest rows; then maps of few and of many classes.
FIRST_CLASSES = (128256, 32000, 8192, 1000, 50257, 100, 262144, 19, 150)
FIRST_RELATIONS = ("rkd_loss", 1024)  # and its batch size
DRY_SIZE = 8  # of no dimension more than this in a dry run


def find_gpu_jobs(wanted: str = "") -> tuple[Job, ...]:
    """Every case's rows for a GPU that have `wanted` in their name, as they stand in the table."""
    jobs = (Job(case, row) for case in BENCH_CASES for row in case.gpu_bench_rows)
    return tuple(job for job in jobs if wanted in str(job))


def by_worth(jobs: Sequence[Job]) -> list[Job]:
    """kd_loss in bf16, in fp32, rkd_loss; then of every case its first row, its second, ...

    The rows of kd_loss that are not among the first come with the rest.
    """
    seen: dict[str, int] = {}
    places = {}
    for job in jobs:
        turn = seen.setdefault(str(job.case), 0)
        seen[str(job.case)] += 1
        places[str(job)] = _place(job) or (3, turn)
    return sorted(jobs, key=lambda job: places[str(job)])


def _place(job: Job) -> tuple[int, int] | None:
    """The place of a row that comes before the rest."""
    geometry = job.bench_row.geometry
    if job.case == KD_LOSS and geometry.classes in FIRST_CLASSES:
        half = job.bench_row.dtype == torch.bfloat16
        return 0 if half else 1, FIRST_CLASSES.index(geometry.classes)
    return (2, 0) if (job.case.loss, geometry.shape[0]) == FIRST_RELATIONS else None


def dry_jobs(wanted: str = "") -> tuple[Job, ...]:
    """Of each kind of loss one row, made tiny."""
    return tuple(_dry_jobs(by_worth(find_gpu_jobs(wanted))))


def _dry_jobs(jobs: Sequence[Job]) -> Iterator[Job]:
    seen = set()
    for job in jobs:
        if job.case.family.kind not in seen:
            seen.add(job.case.family.kind)
            yield dataclasses.replace(job, bench_row=_shrunk(job.bench_row))


def _shrunk(row: BenchRow) -> BenchRow:
    shape = tuple(min(size, DRY_SIZE) for size in row.geometry.shape)
    width = None if row.geometry.width is None else DRY_SIZE
    small = dataclasses.replace(row.geometry, shape=shape, width=width)
    return dataclasses.replace(row, geometry=small)


def gpu_jobs(wanted: str, dry_run: bool) -> list[Job]:
    """The rows to measure, in the order to measure them in."""
    return [*dry_jobs(wanted)] if dry_run else by_worth(find_gpu_jobs(wanted))
