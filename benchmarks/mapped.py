# SPDX-License-Identifier: Apache-2.0
"""Rows in a process of their own whose freed memory stays mapped.

A fresh gradient's pages are mapped at their first touch, which for large rows takes longer than
the arithmetic. Programs whose allocator keeps memory do not pay it, so such rows are shown both
ways; all providers run under the same allocator settings.
"""

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

from benchmarks.measure import MAPPED_SHAPES, Job, find_jobs, measure
from benchmarks.memory import keep_freed_memory_mapped
from benchmarks.results import Row

# Tensors like the student: the inputs, eager's five, as many holes, and room to spare.
STUDENTS_MAPPED = 24


def is_wanted(job: Job) -> bool:
    """Whether the row is shown both ways."""
    return job.bench_row.geometry.shape in MAPPED_SHAPES


def measure_mapped(job: Job, threads: int, rounds: int, providers: Sequence[str]) -> Row | None:
    """The row's times in mapped memory; None where the allocator is not glibc's."""
    # A fresh process: an allocator can't be set back, and fork would copy this one's heap.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as process:
        return process.submit(_measure_here, str(job), threads, rounds, tuple(providers)).result()


def _measure_here(
    job_name: str, threads: int, rounds: int, providers: tuple[str, ...]
) -> Row | None:
    (job,) = (job for job in find_jobs() if str(job) == job_name)
    if not keep_freed_memory_mapped(STUDENTS_MAPPED * job.student_bytes):
        return None
    return measure(
        job, threads=threads, rounds=rounds, providers=providers, mapped=True, only_time=True
    )
