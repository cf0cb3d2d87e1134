# SPDX-License-Identifier: Apache-2.0
"""Rows of the benchmarks for GPUs, and meters of a CPU to measure them with."""

import dataclasses
from collections.abc import Callable

import torch
from cases import KD_LOSS, PLAIN_BATCH_CASES, BenchRow, Geometry
from torch_cases import TORCH_CASES

from benchmarks import gpu_measure
from benchmarks.gpu_measure import Meters, dry_meters, measure_on_gpu
from benchmarks.measure import Job

SMALL_JOB = Job(KD_LOSS, BenchRow(Geometry((8, 10)), torch.float32))
MAPS_JOB = Job(KD_LOSS, BenchRow(Geometry((2, 5, 3, 4), 1), torch.bfloat16))
BATCH_JOBS = [
    Job(case, BenchRow(dataclasses.replace(case.geometry, teacher=None), torch.float32))
    for case in (*PLAIN_BATCH_CASES, *TORCH_CASES)
]


def meters(settle: Callable[[], None] = lambda: None) -> Meters:
    """A CPU's, in place of a GPU's."""
    return dataclasses.replace(dry_meters(), host_seconds=lambda _call: 5e-5, settle=settle)


def measure(job: Job, providers: tuple[str, ...] = ("fastkd", "eager")) -> gpu_measure.Row:
    return measure_on_gpu(job, meters(), rounds=2, providers=providers, progress=lambda _: None)
