# SPDX-License-Identifier: Apache-2.0
"""Calls of the CUDA kernels on the emulator: targets, counts and sums in device memory."""

from typing import Any

import pytest
import torch
from cases import KD_LOSS, Geometry
from test_cuda_kernels import WEIGHTED, kernel_ids
from test_values import F16, F32, assert_matches_truth
from tolerance import LOSS_FLOOR

import fastkd


@pytest.mark.parametrize("bad", [37, -1, 2**40, -(2**62)])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("as_map", [False, True], ids=["rows", "maps"])
def test_a_target_out_of_range_poisons_its_row(
    emulated: Any, as_map: bool, alpha: float, bad: int
) -> None:
    shape = (2, 37, 10) if as_map else (20, 37)
    student = torch.randn(shape, requires_grad=True)
    teacher = torch.randn(shape)
    target = torch.randint(37, (2, 10) if as_map else (20,))
    target.flatten()[13] = bad
    loss = fastkd.kd_loss(student, teacher, target, alpha=alpha, dim=1, reduction="none")
    loss.sum().backward()
    assert student.grad is not None
    bad_row = torch.arange(20).reshape(target.shape) == 13
    assert loss.isnan().equal(bad_row)
    assert student.grad.isnan().any(1).equal(bad_row)


def test_a_bad_target_leaves_the_gradient_of_other_rows(emulated: Any) -> None:
    student = torch.randn(3, 5, requires_grad=True)
    fastkd.kd_loss(student, torch.randn(3, 5), torch.tensor([1, 5, 2])).backward()
    assert student.grad is not None
    assert student.grad.isnan().any(1).tolist() == [False, True, False]


@pytest.mark.parametrize("dtype", [torch.int64, F32, torch.float64], ids=kernel_ids)
def test_num_items_may_stay_on_the_device(emulated: Any, dtype: torch.dtype) -> None:
    inputs = KD_LOSS.make_inputs(Geometry((6, 10)), F16)
    student, teacher = inputs.tensors
    count = torch.tensor(9, dtype=dtype)
    results = []
    for num_items in (9, count):
        leaf = student.clone().requires_grad_()
        loss = fastkd.kd_loss(leaf, teacher, inputs.keywords["target"], num_items=num_items)
        count.zero_()  # read when the loss was computed, not when its gradient is
        loss.backward()
        count.fill_(9)
        results.append((loss.detach(), leaf.grad))
    assert results[0][0].equal(results[1][0])
    assert results[0][1].equal(results[1][1])


@pytest.mark.parametrize("dtype", [torch.int64, torch.float64], ids=kernel_ids)
def test_double_backward_divides_by_the_count_that_the_loss_had(
    emulated: Any, dtype: torch.dtype
) -> None:
    inputs = KD_LOSS.make_inputs(Geometry((6, 10)))
    grads = []
    for changed in (False, True):
        count = torch.tensor(9, dtype=dtype)
        leaf = inputs.tensors[0].clone().requires_grad_()
        loss = fastkd.kd_loss(leaf, inputs.tensors[1], inputs.keywords["target"], num_items=count)
        if changed:
            count.fill_(1)
        grads += torch.autograd.grad(loss, leaf, create_graph=True)
    assert grads[0].equal(grads[1])


# The last has more pieces of a gradient than blocks are launched for.
@pytest.mark.parametrize("shape", [(300, 3), (40, 37), (7, 2100), (2, 3, 50), (40, 3001)], ids=str)
@pytest.mark.parametrize("dtype", [F32, F16], ids=kernel_ids)
def test_a_factor_for_each_row(emulated: Any, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    inputs = WEIGHTED.make_inputs(Geometry(shape), dtype)
    assert_matches_truth(WEIGHTED, inputs)


@pytest.mark.parametrize(
    ("num_items", "expected"), [(0, 0.0), (-1, float("nan")), (float("inf"), float("nan"))]
)
def test_a_denominator_on_the_device_that_is_no_count(
    emulated: Any, num_items: float, expected: float
) -> None:
    student = torch.randn(4, 10, requires_grad=True)
    loss = fastkd.kd_loss(student, torch.randn(4, 10), num_items=torch.tensor(num_items))
    loss.backward()
    torch.testing.assert_close(
        loss.detach(), torch.tensor(expected), equal_nan=True, rtol=0, atol=0
    )
    torch.testing.assert_close(
        student.grad, torch.full((4, 10), expected), equal_nan=True, rtol=0, atol=0
    )


@pytest.mark.parametrize("rows", [1, 16384, 16385, 40000])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_sums_over_many_rows(emulated: Any, rows: int, reduction: str) -> None:
    student, teacher = torch.randn(2, rows, 3)
    target = torch.randint(3, (rows,))
    weight = torch.rand(rows)
    arguments = {"sample_weight": weight, "reduction": reduction}
    loss = fastkd.kd_loss(student, teacher, target, **arguments)
    truth = fastkd.reference.kd_loss(student.double(), teacher.double(), target, **arguments)
    torch.testing.assert_close(loss.double(), truth, rtol=LOSS_FLOOR, atol=0)
    launched = emulated.launched()
    assert ("combine_losses" in launched) == (rows > 16384)
    assert ("combine_census" in launched) == (rows > 16384 and reduction == "mean")


def test_launches_are_few(emulated: Any) -> None:
    """What a call costs the host: the sums are launched only where they are needed."""
    student, teacher = torch.randn(2, 8, 10)
    target = torch.randint(10, (8,))

    def launches(**options: Any) -> list[str]:
        emulated.launched()
        fastkd.kd_loss(student, teacher, **options)
        launched: list[str] = emulated.launched()
        return launched

    assert launches(reduction="none") == ["lanes8"]
    assert launches() == ["lanes8", "sum_losses"]
    assert launches(target=target, reduction="batchmean") == ["lanes8", "sum_losses"]
    assert launches(target=target) == ["take_census", "lanes8", "sum_losses"]
