# SPDX-License-Identifier: Apache-2.0
"""Extra memory: the gradient in the student's dtype plus a little per row, and nothing else."""

import pytest
import torch
from cases import PLAIN_CASES, Geometry, Inputs, LossCase

from benchmarks.memory import peak_resident_bytes, peak_tensor_bytes


def gradient_of(case: LossCase, inputs: Inputs, factor: float) -> torch.Tensor:
    """One forward and backward."""
    student = inputs.tensors[0].detach().requires_grad_()
    loss = case.run(Inputs((student, *inputs.tensors[1:]), inputs.keywords))
    return torch.autograd.grad(loss * factor, student)[0]


@pytest.mark.parametrize("factor", [1.0, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "geometry", [Geometry((512, 4000)), Geometry((4, 21, 200, 200), 1)], ids=str
)
@pytest.mark.parametrize("case", PLAIN_CASES, ids=str)
def test_forward_and_backward_hold_one_gradient(
    backend: str, case: LossCase, geometry: Geometry, dtype: torch.dtype, factor: float
) -> None:
    inputs = case.make_inputs(geometry, dtype)
    gradient = inputs.tensors[0].nbytes
    rows = inputs.keywords["target"].numel()
    peak = peak_tensor_bytes(lambda: gradient_of(case, inputs, factor))
    assert gradient <= peak <= gradient + 16 * rows + 4096


@pytest.mark.parametrize("case", PLAIN_CASES, ids=str)
def test_the_kernel_holds_no_buffers_of_its_own(backend: str, case: LossCase) -> None:
    # 256 MB of logits a side: a hidden copy would show in the resident set.
    inputs = case.make_inputs(Geometry((8192, 8192)))
    gradient = inputs.tensors[0].nbytes
    peak = peak_resident_bytes(lambda: gradient_of(case, inputs, 1.0))
    if peak is None:
        pytest.skip("the kernel of this system does not tell the peak resident set")
    assert peak <= 1.05 * gradient + 2**22
