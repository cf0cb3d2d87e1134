# SPDX-License-Identifier: Apache-2.0
"""What a forward and backward hold: python tests/resident_memory.py prints it for all RUNS.

It needs its own process. In a heap that other tests have used, the allocator may keep a freed block
that is too small for the next buffer. Both blocks would then count.
"""

import ctypes
import json

import torch
from cases import KD_LOSS, PLAIN_PAIR_CASES, Geometry, Inputs, LossCase

from benchmarks.memory import peak_resident_bytes, peak_tensor_bytes

# The least sizes at which a hidden copy of one input stands out: 16 and 8 MB a side.
RUNS = (
    (KD_LOSS, Geometry((2048, 2048))),
    *((case, Geometry((32, 65536))) for case in PLAIN_PAIR_CASES),
)
_M_MMAP_THRESHOLD = -3  # glibc's malloc.h


def gradient_of(case: LossCase, inputs: Inputs, factor: float) -> torch.Tensor:
    """One forward and backward."""
    student = inputs.tensors[0].detach().requires_grad_()
    loss = case.run(Inputs((student, *inputs.tensors[1:]), inputs.keywords))
    return torch.autograd.grad(loss * factor, student)[0]


def measure(case: LossCase, geometry: Geometry) -> tuple[int, int | None]:
    """The peak in torch's tensors, and in the resident set, if the system reports that."""
    inputs = case.make_inputs(geometry)
    seen = peak_tensor_bytes(lambda: gradient_of(case, inputs, 1.0))
    # The least of a few: the system may bring back what it had taken from an input meanwhile.
    peaks = [peak_resident_bytes(lambda: gradient_of(case, inputs, 1.0)) for _ in range(8)]
    return seen, min((peak for peak in peaks if peak is not None), default=None)


def main() -> None:
    """Measure every run."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "gnu_get_libc_version"):  # large blocks go back to the system at once
        libc.mallopt(_M_MMAP_THRESHOLD, 1 << 20)
    print(json.dumps({str(case): measure(case, geometry) for case, geometry in RUNS}))


if __name__ == "__main__":
    main()
