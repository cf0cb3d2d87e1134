# SPDX-License-Identifier: Apache-2.0
"""Rows of the benchmarks for GPUs, and meters of a CPU to measure them with."""

import dataclasses
from collections.abc import Callable

import torch
from cases import KD_LOSS, PLAIN_BATCH_CASES, BenchRow, Geometry
from torch_cases import TORCH_CASES

from benchmarks import gpu_measure
from benchmarks.gpu_measure import Meters, measure_on_gpu
from benchmarks.measure import Job
from benchmarks.memory import peak_tensor_bytes
from benchmarks.timing import CPU_CLOCK

SMALL_JOB = Job(KD_LOSS, BenchRow(Geometry((8, 10)), torch.float32))
MAPS_JOB = Job(KD_LOSS, BenchRow(Geometry((2, 5, 3, 4), 1), torch.bfloat16))
BATCH_JOBS = [
    Job(case, BenchRow(dataclasses.replace(case.geometry, teacher=None), torch.float32))
    for case in (*PLAIN_BATCH_CASES, *TORCH_CASES)
]


def meters(settle: Callable[[], None] = lambda: None) -> Meters:
    """A CPU's, in place of a GPU's."""
    return Meters("cpu", 4096, CPU_CLOCK, peak_tensor_bytes, lambda _call: 5e-5, settle)


def measure(job: Job, providers: tuple[str, ...] = ("fastkd", "eager")) -> gpu_measure.Row:
    return measure_on_gpu(job, meters(), rounds=2, providers=providers, progress=lambda _: None)
