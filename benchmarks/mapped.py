# SPDX-License-Identifier: Apache-2.0
"""Rows in a process of their own whose freed memory stays mapped.

A fresh gradient's pages are mapped at their first touch, which for large rows takes longer than
the arithmetic. Programs whose allocator keeps memory do not pay it, so such rows are shown both
ways; all providers run under the same allocator settings.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence

from benchmarks import ROOT
from benchmarks.measure import MAPPED_SHAPES, Job, find_jobs, measure
from benchmarks.memory import keep_freed_memory_mapped
from benchmarks.results import Row, row_from_json, to_json


def is_wanted(job: Job) -> bool:
    """Whether the row is shown both ways."""
    return job.bench_row.geometry.shape in MAPPED_SHAPES


def measure_mapped(job: Job, threads: int, rounds: int, providers: Sequence[str]) -> Row | None:
    """The row's times in mapped memory; None where the allocator is not glibc's."""
    command = [sys.executable, "-m", "benchmarks.mapped", str(job), str(threads), str(rounds)]
    done = subprocess.run(
        [*command, *providers], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    values = json.loads(done.stdout.splitlines()[-1])
    return None if values is None else row_from_json(values)


def main() -> int:
    """Measure one row and print it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job")
    parser.add_argument("threads", type=int)
    parser.add_argument("rounds", type=int)
    parser.add_argument("providers", nargs="+")
    arguments = parser.parse_args()
    if not keep_freed_memory_mapped():
        print("null")
        return 0
    (job,) = (job for job in find_jobs() if str(job) == arguments.job)
    row = measure(
        job,
        threads=arguments.threads,
        rounds=arguments.rounds,
        providers=arguments.providers,
        mapped=True,
        only_time=True,
    )
    print(json.dumps(to_json(row)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
