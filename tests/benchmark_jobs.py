# SPDX-License-Identifier: Apache-2.0
"""Rows that the tests of the benchmarks measure."""

import dataclasses
import sys
from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="benchmarks draw with matplotlib")
pytest.importorskip("tqdm", reason="benchmarks show their progress with tqdm")
ROOT = Path(__file__).resolve().parents[1]
# At the end: an installed fastkd must not be hidden by the source tree beside benchmarks/.
sys.path.append(str(ROOT))

from benchmarks.measure import Job, find_jobs  # noqa: E402

SMALL_JOB = next(job for job in find_jobs() if " 8x10 " in str(job))
BEYOND_EAGER = "rkd_loss-mean 4096x256"


def small_job(name: str, shape: tuple[int, ...]) -> Job:
    """A row of a benchmark, made small."""
    job = next(job for job in find_jobs() if name in str(job))
    geometry = dataclasses.replace(job.bench_row.geometry, shape=shape)
    return Job(job.case, dataclasses.replace(job.bench_row, geometry=geometry))
