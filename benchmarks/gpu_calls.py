# SPDX-License-Identifier: Apache-2.0
"""A few calls of every loss on a GPU, for compute-sanitizer and for ncu to look at.

    python -m benchmarks.gpu_calls small         one tiny call of each kernel and way to read memory
    python -m benchmarks.gpu_calls profile ROW   a row of the benchmark, by its name, between
                                                 profiler start and stop

Prints a line for each call, which `gpu_tools` reads.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from cases import BATCH_CASES, PLAIN_CASES, PLAIN_LOGIT_CASES, Geometry, Inputs, LossCase
from loss_case import Kind

from benchmarks.command_line import exit_with
from benchmarks.gpu_rows import gpu_jobs
from benchmarks.measure import Job
from benchmarks.providers import Step, make_function, make_step

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
CALLED = "called"


def _sliced(logits: torch.Tensor) -> torch.Tensor:
    return logits[..., :-2]


def _channels_last(features: torch.Tensor) -> torch.Tensor:
    return features.contiguous(memory_format=torch.channels_last)


def _with_gaps(features: torch.Tensor) -> torch.Tensor:
    return features.repeat_interleave(2, -1)[..., ::2]


@dataclass(frozen=True)
class Small:
    """A tiny call."""

    geometry: Geometry
    student: torch.dtype
    teacher: torch.dtype
    layout: Callable[[torch.Tensor], torch.Tensor] = torch.Tensor.contiguous


# The plain case of a loss runs all of its kind, cases with options only the first.
SMALL: dict[Kind, tuple[Small, ...]] = {
    # One for each kernel of csrc/cuda/plan.h.
    "logits": (
        Small(Geometry((9, 7)), BF16, BF16),
        Small(Geometry((9, 7)), BF16, F32),
        Small(Geometry((5, 300)), F32, F32, _sliced),
        Small(Geometry((5, 1000)), F16, F16),
        Small(Geometry((3, 1501)), BF16, BF16),
        Small(Geometry((3, 1500)), F32, BF16, _sliced),
        Small(Geometry((2, 9000)), BF16, BF16, _sliced),
        Small(Geometry((2, 50257)), F16, F16),
        Small(Geometry((1, 140000)), BF16, BF16),
        Small(Geometry((1, 140001)), BF16, BF16),
        Small(Geometry((2, 19, 5, 7), 1), BF16, BF16),
        Small(Geometry((1, 250, 5, 7), 1), F32, F32),
    ),
    # Tables of one tile and of several, ragged; of large tiles; one example, one feature.
    "relations": (
        Small(Geometry((9, 21), teacher=(9, 33)), F32, F32),
        Small(Geometry((70, 65)), F16, BF16),
        Small(Geometry((261, 5), teacher=(261, 7)), F32, F32),
        Small(Geometry((1, 3)), F32, F32),
        Small(Geometry((33, 1)), F32, F32),
    ),
    # Channels apart and together, with whole vectors and without; elements apart.
    "features": (
        Small(Geometry((2, 5, 3, 4), 1, (2, 3, 3, 4)), F32, F32),
        Small(Geometry((3, 70, 8, 8), 1), BF16, BF16),
        Small(Geometry((2, 21, 5, 9), 1), F16, F32),
        Small(Geometry((2, 72, 5, 9), 1), BF16, F16, _channels_last),
        Small(Geometry((2, 21, 5, 9), 1), F32, BF16, _channels_last),
        Small(Geometry((2, 5, 3, 4), 1), F32, F32, _with_gaps),
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_calls", description=__doc__)
    parser.add_argument("what", choices=("small", "profile"))
    parser.add_argument("row", nargs="?", help="of profile: the name of a row")
    parser.add_argument("--dry-run", action="store_true", help="a CPU, a tiny row, no profiler")
    options = parser.parse_args(arguments)
    profiling = options.what == "profile"
    if profiling != (options.row is not None):
        parser.error("profile takes the name of a row, and small takes none")
    if profiling:
        jobs = {str(job): job for job in gpu_jobs("", options.dry_run)}
        if options.row not in jobs:
            names = "\n  ".join(jobs)
            parser.error(f"there is no row {options.row!r}, there is:\n  {names}")
    device = "cpu" if options.dry_run else "cuda"
    calls = iter([row_call(jobs[options.row], device)]) if profiling else small_calls(device)
    for call in calls:
        function = make_function(call.case, "fastkd")
        step = make_step(call.case, call.inputs.with_gradient(), function)
        loss, *_ = profile(step) if profiling and not options.dry_run else step()
        print(CALLED, call.words, flush=True)
        assert loss.isfinite().item(), f"{call.words} gives {loss.item()}"
    return 0


def profile(step: Step) -> tuple[torch.Tensor, ...]:
    """A second call, which the profiler sees."""
    step()
    torch.cuda.synchronize()
    torch.cuda.profiler.start()  # type: ignore[no-untyped-call]
    found = step()
    torch.cuda.synchronize()
    torch.cuda.profiler.stop()  # type: ignore[no-untyped-call]
    return found


@dataclass(frozen=True)
class Call:
    """Of fastkd's loss."""

    case: LossCase
    geometry: Geometry
    inputs: Inputs

    @property
    def words(self) -> str:
        """Loss, shape, dtypes; how many of what it is done for."""
        dtypes = "/".join(str(t.dtype).removeprefix("torch.") for t in self.inputs.tensors)
        unit, count = "element", self.inputs.tensors[0].numel()
        if self.case.work is not None:
            unit, count = self.case.work.unit, self.case.work.count(self.geometry)
        return f"{self.case.loss} {self.geometry} {dtypes} {count} {unit}"


def small_calls(device: str) -> Iterator[Call]:
    """Their inputs come from the CPU, so that only our kernels are looked at."""
    for case in (*PLAIN_LOGIT_CASES, *BATCH_CASES):
        of_kind = SMALL[case.family.kind]
        for small in of_kind if case in PLAIN_CASES else of_kind[:1]:
            made = case.make_inputs(small.geometry, small.student, small.teacher).on(device)
            inputs = replace(made, tensors=tuple(map(small.layout, made.tensors)))
            if small.layout is _sliced:
                last = small.geometry.classes - 3
                inputs.keywords["target"].clamp_(max=last)
                for values, indices in zip(inputs.tensors[1:], inputs.tensors[2:], strict=False):
                    values.masked_fill_(indices > last, -torch.inf)  # of a top-k teacher
            yield Call(case, small.geometry, inputs)


def row_call(job: Job, device: str) -> Call:
    """A row of the benchmark, made on the device."""
    geometry, dtype = job.bench_row.geometry, job.bench_row.dtype
    inputs = job.case.make_inputs(geometry, dtype, dtype, device=device)
    return Call(job.case, geometry, inputs)


if __name__ == "__main__":
    exit_with(main)
