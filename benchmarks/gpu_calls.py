# SPDX-License-Identifier: Apache-2.0
"""A few calls of every loss on a GPU, for compute-sanitizer and for ncu to look at.

    python -m benchmarks.gpu_calls small     one tiny call of each kernel and way to read memory
    python -m benchmarks.gpu_calls profile   large calls, between profiler start and stop

Prints a line for each call, which `gpu_tools` reads.
"""

import sys
from collections.abc import Iterator

import torch
from cases import CASES, Geometry, Inputs, LossCase

from benchmarks.providers import make_function, make_step, with_gradient

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16

# One for each kernel of csrc/cuda/plan.h; the last two columns are sliced off where it says so.
SMALL = (
    (Geometry((9, 7)), BF16, BF16, False),
    (Geometry((9, 7)), BF16, F32, False),
    (Geometry((5, 300)), F32, F32, True),
    (Geometry((5, 1000)), F16, F16, False),
    (Geometry((3, 1501)), BF16, BF16, False),
    (Geometry((3, 1500)), F32, BF16, True),
    (Geometry((2, 9000)), BF16, BF16, True),
    (Geometry((2, 50257)), F16, F16, False),
    (Geometry((1, 140000)), BF16, BF16, False),
    (Geometry((1, 140001)), BF16, BF16, False),
    (Geometry((2, 19, 5, 7), 1), BF16, BF16, False),
    (Geometry((1, 250, 5, 7), 1), F32, F32, False),
)
# A warp a row, a block a row, a cluster a row: 6 bytes of DRAM traffic an element at best.
PROFILED = (
    (Geometry((65536, 1000)), BF16, BF16, False),
    (Geometry((16384, 8192)), BF16, BF16, False),
    (Geometry((2048, 128256)), BF16, BF16, False),
)
CALLED = "called"


def main() -> int:
    """Run the command."""
    profiling = sys.argv[1:] == ["profile"]
    for case, geometry, inputs in calls(PROFILED if profiling else SMALL, "cuda", profiling):
        step = make_step(case, with_gradient(inputs), make_function(case, "fastkd"))
        if profiling:
            step()
            torch.cuda.synchronize()
            torch.cuda.profiler.start()  # type: ignore[no-untyped-call]
        loss, grad = step()
        torch.cuda.synchronize()
        if profiling:
            torch.cuda.profiler.stop()  # type: ignore[no-untyped-call]
        dtypes = "/".join(str(t.dtype).removeprefix("torch.") for t in inputs.tensors)
        print(CALLED, case.loss, geometry, dtypes, grad.numel(), flush=True)
        assert loss.isfinite().item(), f"{case} at {geometry} gives {loss.item()}"
    return 0


def calls(
    shapes: tuple[tuple[Geometry, torch.dtype, torch.dtype, bool], ...],
    device: str,
    large: bool = False,
) -> Iterator[tuple[LossCase, Geometry, Inputs]]:
    """Cases with inputs. Small ones come from the CPU, so that only our kernels are looked at."""
    for case in (case for case in CASES if case.gpu_bench_rows):
        for geometry, student_dtype, teacher_dtype, sliced in shapes:
            place = device if large else "cpu"
            inputs = case.make_inputs(geometry, student_dtype, teacher_dtype, device=place)
            inputs = inputs.on(device)
            if sliced:
                inputs = Inputs(tuple(_sliced(t) for t in inputs.tensors), inputs.keywords)
                inputs.keywords["target"].clamp_(max=geometry.classes - 3)
            yield case, geometry, inputs


def _sliced(logits: torch.Tensor) -> torch.Tensor:
    return logits[..., :-2]


if __name__ == "__main__":
    sys.exit(main())
