# SPDX-License-Identifier: Apache-2.0
"""Every CUDA kernel on the emulator: every order of threads, every alignment."""

from typing import Any

import pytest
import torch
from cases import DECOUPLED_KD_LOSS, KD_LOSS, LOGIT_CASES, Geometry, Inputs, LossCase
from conftest import EMULATOR_RUNS_HERE, NO_EMULATOR, emulated_cuda
from test_values import BF16, F16, F32, assert_matches_truth, value_and_grad
from torch import Tensor

import fastkd

pytestmark = pytest.mark.skipif(not EMULATOR_RUNS_HERE, reason=NO_EMULATOR)

ORDERS: dict[str, dict[str, Any]] = {
    "round-robin": {"order": "round_robin"},
    "greedy": {"order": "greedy", "lazy_copies": True},
    "reversed": {"order": "reversed"},
    "random-1": {"order": "random", "seed": 1, "lazy_copies": True},
    "random-2": {"order": "random", "seed": 2},
}

# Kernel, chip, logits: the ends of what plan() gives it, odd and whole class counts.
KERNELS = [
    ("lanes8", 90, Geometry((70, 2))),
    ("lanes8", 75, Geometry((37, 10))),
    ("lanes8", 90, Geometry((9, 100))),
    ("lanes8", 90, Geometry((5, 256))),
    ("warp16", 75, Geometry((6, 257))),
    ("warp16", 90, Geometry((5, 512))),
    ("warp32", 90, Geometry((5, 1000))),
    ("warp32", 75, Geometry((3, 1023))),
    ("block", 90, Geometry((2, 1025))),
    ("block", 75, Geometry((2, 8192))),
    ("cluster", 90, Geometry((2, 8193))),
    ("cluster", 120, Geometry((2, 50257))),
    ("cluster", 100, Geometry((1, 131072))),
    ("shared", 90, Geometry((1, 131073))),
    ("shared", 90, Geometry((1, 262144))),
    ("shared", 120, Geometry((1, 65600))),
    ("streamed_block", 80, Geometry((2, 8193))),
    ("streamed_block", 86, Geometry((1, 100003))),
    ("columns", 90, Geometry((3, 10, 4, 4), 1)),
    ("columns", 75, Geometry((2, 19, 5, 7), 1)),
    ("columns", 90, Geometry((1, 150, 9, 15), 1)),
    ("columns_streamed", 90, Geometry((1, 200, 7, 9), 1)),
]
MIXED_KERNELS = [
    ("streamed_lanes", Geometry((37, 10))),
    ("streamed_lanes", Geometry((5, 1000))),
    ("streamed_block", Geometry((2, 2501))),
    ("columns_streamed", Geometry((2, 19, 5, 7), 1)),
]
SMOOTHED = next(case for case in LOGIT_CASES if case.label == "t3.5-smoothed")
WEIGHTED = next(case for case in LOGIT_CASES if case.label == "t4-smoothed-rows")
DECOUPLED_HARD = next(case for case in LOGIT_CASES if case.label == "t3-hard-rows")


def kernel_ids(value: object) -> str:
    return str(value).removeprefix("torch.")


@pytest.fixture(params=ORDERS)
def order(request: pytest.FixtureRequest) -> dict[str, Any]:
    return ORDERS[request.param]


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=kernel_ids)
@pytest.mark.parametrize("case", [KD_LOSS, SMOOTHED, WEIGHTED], ids=str)
@pytest.mark.parametrize(("kernel", "capability", "geometry"), KERNELS, ids=kernel_ids)
def test_every_kernel_in_every_order(
    order: dict[str, Any],
    kernel: str,
    capability: int,
    geometry: Geometry,
    case: LossCase,
    dtype: torch.dtype,
) -> None:
    inputs = case.make_inputs(geometry, dtype)
    with emulated_cuda(capability=capability, **order) as module:
        assert_matches_truth(case, inputs)
        assert kernel in module.launched()


@pytest.mark.parametrize(("kernel", "capability", "geometry"), KERNELS, ids=kernel_ids)
def test_every_kernel_hides_the_label_in_every_order(
    order: dict[str, Any], kernel: str, capability: int, geometry: Geometry
) -> None:
    with emulated_cuda(capability=capability, **order) as module:
        for case, dtype in ((DECOUPLED_KD_LOSS, F32), (DECOUPLED_HARD, BF16)):
            assert_matches_truth(case, case.make_inputs(geometry, dtype))
        assert kernel in module.launched()


@pytest.mark.parametrize("dtypes", [(BF16, F32), (F32, F16), (F16, BF16)], ids=kernel_ids)
@pytest.mark.parametrize(("kernel", "geometry"), MIXED_KERNELS, ids=kernel_ids)
def test_every_kernel_of_mixed_types_in_every_order(
    order: dict[str, Any], kernel: str, geometry: Geometry, dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    with emulated_cuda(capability=90, **order) as module:
        for case in (KD_LOSS, SMOOTHED, WEIGHTED, DECOUPLED_HARD):
            assert_matches_truth(case, case.make_inputs(geometry, *dtypes))
        assert kernel in module.launched()


@pytest.mark.parametrize("case", [KD_LOSS, WEIGHTED], ids=str)
@pytest.mark.parametrize(("kernel", "capability", "geometry"), KERNELS, ids=kernel_ids)
def test_the_order_of_threads_changes_no_bit(
    kernel: str, capability: int, geometry: Geometry, case: LossCase
) -> None:
    inputs = case.make_inputs(geometry, BF16)
    results = []
    for simulated in ORDERS.values():
        with emulated_cuda(capability=capability, **simulated):
            results.append(value_and_grad(case, inputs, False))
    for loss, grad in results[1:]:
        assert loss.equal(results[0][0])
        assert grad.equal(results[0][1])


@pytest.mark.parametrize("loss", ["rkd_loss", "pkt_loss", "cosine_similarity_loss"])
@pytest.mark.parametrize("apart", [1.0, 1e-6])
def test_the_order_of_threads_changes_no_bit_of_a_batch(loss: str, apart: float) -> None:
    """Two rows, apart or near: then angles are computed in double."""
    student, teacher = torch.randn(40, 10), torch.randn(40, 7)
    student[33] = student[2] + apart * torch.randn(10)
    results = []
    for simulated in ORDERS.values():
        with emulated_cuda(capability=90, **simulated):
            x = student.clone().requires_grad_()
            value: Tensor = getattr(fastkd, loss)(x, teacher)
            value.backward()  # type: ignore[no-untyped-call]
            results.append((value.detach(), x.grad))
    for value, grad in results[1:]:
        assert value.equal(results[0][0])
        assert grad is not None
        assert results[0][1] is not None
        assert grad.equal(results[0][1])


ROW_KERNELS = [
    ("lanes8", 21),
    ("lanes8", 96),
    ("warp16", 301),
    ("warp32", 1000),
    ("block", 1500),
    ("cluster", 8205),
    ("shared", 131100),
]


@pytest.mark.parametrize("dtype", [F32, BF16], ids=kernel_ids)
@pytest.mark.parametrize("left_out", range(9))
@pytest.mark.parametrize(("kernel", "classes"), ROW_KERNELS, ids=kernel_ids)
def test_rows_at_any_address_give_the_same_bits(
    kernel: str, classes: int, left_out: int, dtype: torch.dtype
) -> None:
    """Nine offsets are more than 16 bytes in either type; student, teacher, gradient differ."""
    inputs = SMOOTHED.make_inputs(Geometry((2, classes)), dtype)
    student, teacher = inputs.tensors

    def moved(logits: Tensor, by: int) -> Tensor:
        return torch.nn.functional.pad(logits, (by, 9 - by))[:, by : by + classes]

    with emulated_cuda(capability=90, order="greedy") as module:
        expected = value_and_grad(SMOOTHED, inputs, False)
        both = moved(student, left_out), moved(teacher, 8 - left_out)
        found = value_and_grad(SMOOTHED, Inputs(both, inputs.keywords), False)
        assert module.launched().count(kernel) == 2
    assert found[0].equal(expected[0])
    assert found[1].equal(expected[1])


@pytest.mark.parametrize(("kernel", "classes"), ROW_KERNELS, ids=kernel_ids)
def test_a_row_does_not_depend_on_its_place(kernel: str, classes: int) -> None:
    case = WEIGHTED
    inputs = case.make_inputs(Geometry((5, classes)), BF16)
    with emulated_cuda(capability=90, order="greedy"):
        loss, grad = value_and_grad(case, inputs, False, (1.0,))
        for row in range(5):
            alone = Inputs(
                tuple(t[row : row + 1].clone() for t in inputs.tensors),
                {k: v[row : row + 1] if isinstance(v, Tensor) else v
                 for k, v in inputs.keywords.items()},
            )  # fmt: skip
            row_loss, row_grad = value_and_grad(case, alone, False, (1.0,))
            assert row_loss.equal(loss[row : row + 1])
            assert row_grad.equal(grad[row : row + 1])
