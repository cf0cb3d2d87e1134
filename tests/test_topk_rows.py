# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernel of topk_kd_loss on the emulator: every order of threads, every alignment."""

import pytest
import torch
from cases import LOGIT_CASES, Geometry, Inputs, LossCase
from conftest import EMULATOR_RUNS_HERE, NO_EMULATOR, emulated_cuda
from test_cuda_kernels import ORDERS, kernel_ids
from test_values import BF16, F16, F32, assert_matches_truth, value_and_grad
from torch import Tensor

pytestmark = pytest.mark.skipif(not EMULATOR_RUNS_HERE, reason=NO_EMULATOR)

CASES = [case for case in LOGIT_CASES if case.loss == "topk_kd_loss"]
SMOOTHED = next(case for case in CASES if case.label == "t3-smoothed")
# A warp or two, a block and its neighbours, several vectors a thread.
CLASSES = [1, 10, 257, 1000, 1025, 9001, 50257]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=kernel_ids)
@pytest.mark.parametrize("classes", CLASSES)
def test_in_every_order(classes: int, dtype: torch.dtype, order: str) -> None:
    for case in CASES[:4]:
        with emulated_cuda(capability=90, **ORDERS[order]) as module:
            assert_matches_truth(case, case.make_inputs(Geometry((2, classes)), dtype))
            assert "topk_rows" in module.launched()


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("classes", [10, 1025])
def test_the_order_of_threads_changes_no_bit(classes: int, case: LossCase) -> None:
    inputs = case.make_inputs(Geometry((5, classes)), BF16)
    results = []
    for simulated in ORDERS.values():
        with emulated_cuda(capability=75, **simulated):
            results.append(value_and_grad(case, inputs, False))
    for loss, grad in results[1:]:
        assert loss.equal(results[0][0])
        assert grad.equal(results[0][1])


@pytest.mark.parametrize("dtype", [F32, BF16], ids=kernel_ids)
@pytest.mark.parametrize("left_out", range(9))
@pytest.mark.parametrize("classes", [21, 1500])
def test_rows_at_any_address_give_the_same_bits(
    classes: int, left_out: int, dtype: torch.dtype
) -> None:
    inputs = SMOOTHED.make_inputs(Geometry((2, classes)), dtype)
    student, *told = inputs.tensors

    def moved(logits: Tensor, by: int) -> Tensor:
        return torch.nn.functional.pad(logits, (by, 9 - by))[:, by : by + classes]

    elsewhere = Inputs((moved(student, left_out), *told), inputs.keywords)
    with emulated_cuda(capability=90, order="greedy"):
        expected = value_and_grad(SMOOTHED, inputs, False)
        found = value_and_grad(SMOOTHED, elsewhere, False)
    assert found[0].equal(expected[0])
    assert found[1].equal(expected[1])
