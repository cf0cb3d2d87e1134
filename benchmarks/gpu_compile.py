# SPDX-License-Identifier: Apache-2.0
"""Compile the eager code of some rows, for Inductor's cache: python -m benchmarks.gpu_compile.

torch.compile takes 5 to 15 s for a row (a guess), most of it on one core. Several of these
processes share its cache on disk, where the benchmark finds what they have compiled.
"""

import argparse
import time
from collections.abc import Sequence

import torch

from benchmarks.command_line import exit_with
from benchmarks.gpu_measure import words_of
from benchmarks.gpu_rows import gpu_jobs
from benchmarks.measure import Job
from benchmarks.providers import make_function, make_step


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_compile", description=__doc__)
    parser.add_argument("--rows", default="", metavar="TEXT", help="only rows with TEXT in them")
    parser.add_argument("--part", type=int, nargs=2, default=(0, 1), metavar=("I", "N"))
    parser.add_argument("--until", type=float, required=True, metavar="TIME")
    parser.add_argument("--dry-run", action="store_true", help="tiny rows on the CPU")
    options = parser.parse_args(arguments)
    part, parts = options.part
    for job in gpu_jobs(options.rows, options.dry_run)[part::parts]:
        if time.time() > options.until:
            break
        begin = time.monotonic()
        print(f"{job}:", end=" ", flush=True)
        words = compile_one(job, "cpu" if options.dry_run else "cuda")
        print(f"{words} ({time.monotonic() - begin:.1f} s)", flush=True)
    return 0


def compile_one(job: Job, device: str) -> str:
    """Compile forward and backward of a row; "compiled", or why that failed."""
    geometry, dtype = job.bench_row.geometry, job.bench_row.dtype
    try:
        function = make_function(job.case, "torch.compile")
        inputs = job.case.make_inputs(geometry, dtype, dtype, device=device).with_gradient()
        make_step(job.case, inputs, function)()
    except Exception as error:  # the benchmark will meet it too, and say so
        return words_of(error)
    finally:
        if device == "cuda":
            torch.cuda.empty_cache()  # for the other processes
    return "compiled"


if __name__ == "__main__":
    exit_with(main)
