# SPDX-License-Identifier: Apache-2.0
"""The micro level, where Python and dispatch cost more than the arithmetic.

Each test runs its call once, as a smoke test. To time them:
    python -m pytest tests/test_micro_benchmark.py --benchmark-only
"""

import pytest
import torch
from cases import KD_LOSS, PLAIN_BATCH_CASES, Geometry, Inputs, LossCase
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

SMALL = (Geometry((1, 10)), Geometry((8, 10)), Geometry((128, 10)), Geometry((32, 100)))
CALLS = [
    *((KD_LOSS, geometry) for geometry in SMALL),
    *((case, case.geometry) for case in PLAIN_BATCH_CASES),
]
small_calls = pytest.mark.parametrize(
    ("case", "geometry"), CALLS, ids=[f"{case}-{geometry}" for case, geometry in CALLS]
)


@pytest.mark.benchmark(group="forward and backward")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@small_calls
def test_small_call_runs(
    benchmark: BenchmarkFixture,
    request: pytest.FixtureRequest,
    case: LossCase,
    geometry: Geometry,
    dtype: torch.dtype,
) -> None:
    benchmark.disabled = not request.config.getoption("benchmark_only")
    inputs = case.make_inputs(geometry, dtype, dtype)
    student = inputs.tensors[0].requires_grad_()

    def forward_and_backward() -> Tensor:
        return torch.autograd.grad(case.run(inputs), student)[0]

    grad = benchmark(forward_and_backward)
    assert grad.shape == student.shape
    assert grad.dtype == dtype
    assert grad.isfinite().all()


@pytest.mark.benchmark(group="forward under no_grad")
@small_calls
def test_small_call_runs_without_gradients(
    benchmark: BenchmarkFixture,
    request: pytest.FixtureRequest,
    case: LossCase,
    geometry: Geometry,
) -> None:
    benchmark.disabled = not request.config.getoption("benchmark_only")
    inputs: Inputs = case.make_inputs(geometry)
    with torch.no_grad():
        loss = benchmark(case.run, inputs)
    assert loss.isfinite().all()
