# SPDX-License-Identifier: Apache-2.0
"""Values of the losses that run on PyTorch's own operations: closed forms, published formulas."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

import fastkd
from fastkd import reference
from fastkd.reference.nst_loss import _by_channels, _by_positions

Shape = tuple[int, ...]


def test_logit_mse_by_hand() -> None:
    student = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 3.0]])
    teacher = torch.tensor([[1.0, 0.0, 2.0], [3.0, 3.0, 6.0]])
    rows = fastkd.logit_mse_loss(student, teacher, reduction="none")
    torch.testing.assert_close(rows, torch.tensor([5 / 3, 9.0]))
    centred = fastkd.logit_mse_loss(student, teacher, zero_mean=True, reduction="none")
    torch.testing.assert_close(centred, torch.tensor([2 / 3, 0.0]))
    weight = torch.tensor([3.0, 1.0])
    weighted = fastkd.logit_mse_loss(student, teacher, sample_weight=weight)
    assert weighted.item() == pytest.approx((3 * 5 / 3 + 9) / 4)


@pytest.mark.parametrize(("dim", "rows"), [(-1, (2, 3, 4)), (1, (2, 4, 5)), (-3, (2, 4, 5))])
@pytest.mark.parametrize("zero_mean", [False, True])
def test_logit_mse_is_the_mean_over_classes(dim: int, rows: Shape, zero_mean: bool) -> None:
    student, teacher = torch.randn(2, 2, 3, 4, 5)
    loss = fastkd.logit_mse_loss(student, teacher, dim=dim, zero_mean=zero_mean, reduction="none")
    if zero_mean:
        student, teacher = student - student.mean(dim, True), teacher - teacher.mean(dim, True)
    assert loss.shape == rows
    torch.testing.assert_close(loss, (student - teacher).square().mean(dim))


@pytest.mark.parametrize(
    ("reduction", "num_items", "expected"),
    [
        ("sum", None, 12.0),
        ("mean", None, 4.0),
        ("batchmean", None, 3.0),
        ("mean", 6, 2.0),
        ("mean", torch.tensor(24), 0.5),
        ("batchmean", 0, 0.0),
    ],
)
def test_logit_mse_reductions(
    reduction: str, num_items: int | Tensor | None, expected: float
) -> None:
    student = torch.full((4, 5), 2.0)
    loss = fastkd.logit_mse_loss(
        student,
        torch.zeros(4, 5),
        sample_weight=torch.tensor([1.0, 0.0, 0.5, 1.5]),
        reduction=reduction,
        num_items=num_items,
    )
    assert loss.item() == expected


@pytest.mark.parametrize("zero_mean", [False, True])
@pytest.mark.parametrize("where", [fastkd, reference], ids=["public", "reference"])
def test_rows_of_weight_0_may_hold_anything(zero_mean: bool, where: Any) -> None:
    student, teacher = torch.randn(2, 3, 4)
    weight = torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64)
    clean = where.logit_mse_loss(student, teacher, zero_mean=zero_mean, sample_weight=weight)
    student[1], teacher[1, :2] = math.nan, math.inf
    student.requires_grad_()
    loss = where.logit_mse_loss(student, teacher, zero_mean=zero_mean, sample_weight=weight)
    assert loss.item() == clean.item()
    (grad,) = torch.autograd.grad(loss, student)
    assert torch.equal(grad[1], torch.zeros(4))
    assert grad.isfinite().all()


@pytest.mark.parametrize("shape", [(0, 4), (2, 4)])
@pytest.mark.parametrize("reduction", ["mean", "sum", "batchmean"])
def test_no_row_that_counts_gives_0(shape: Shape, reduction: str) -> None:
    student = torch.full(shape, math.nan, requires_grad=True)
    loss = fastkd.logit_mse_loss(
        student, student.detach(), sample_weight=torch.zeros(shape[0]), reduction=reduction
    )
    assert loss.item() == 0
    loss.backward()
    assert torch.equal(student.grad, torch.zeros(shape))


def test_one_row_of_logits() -> None:
    assert fastkd.logit_mse_loss(torch.tensor([1.0, 5.0]), torch.zeros(2)).item() == 13


def limit_and_slope(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """What T^2 KL tends to, and T times what is missing, per row.

    KL(p || q) is the Bregman divergence of the cumulant generating function of the logits under the
    uniform distribution: (second cumulant of d) / (2 T^2) + (third cumulants) / (6 T^3) + ...
    """
    d = (student - teacher) - (student - teacher).mean(-1, True)
    t = teacher - teacher.mean(-1, True)
    return (d**2).mean(-1) / 2, ((d**3).mean(-1) + 3 * (t * d * d).mean(-1)) / 6


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_hot_soft_targets_tend_to_logit_matching(seed: int) -> None:
    # Hinton et al. 2015, section 2.1. The distance falls as 1 / T.
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, 4, 10, generator=generator, dtype=torch.float64)
    limit, slope = limit_and_slope(student + 3, teacher)
    half = fastkd.reference.logit_mse_loss(student + 3, teacher, zero_mean=True, reduction="none")
    torch.testing.assert_close(half / 2, limit)
    for temperature in (1e2, 1e3, 1e4):
        soft = reference.kd_loss(student + 3, teacher, temperature=temperature, reduction="none")
        missing = (soft - limit) * temperature
        assert (missing - slope).abs().max() < 30 / temperature


@pytest.mark.parametrize("temperature", [20.0, 50.0])
def test_warm_soft_targets_are_near_logit_matching(temperature: float) -> None:
    student, teacher = torch.randn(2, 64, 100)
    matching = fastkd.logit_mse_loss(student, teacher, zero_mean=True) / 2
    soft = fastkd.kd_loss(student, teacher, temperature=temperature)
    assert soft.item() == pytest.approx(matching.item(), rel=2 / temperature)


def test_hint_by_hand() -> None:
    student = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    teacher = torch.tensor([[1.0, 0.0], [3.0, 1.0]])
    values = {"mean": 13 / 4, "sum": 13.0, "batchmean": 13 / 2}
    for reduction, expected in values.items():
        assert fastkd.hint_loss(student, teacher, reduction=reduction).item() == expected


def test_half_of_batchmean_is_the_hint_loss_of_the_paper() -> None:
    student, teacher = torch.randn(2, 5, 3, 4, 4)
    paper = torch.stack(
        [(t - s).norm() ** 2 / 2 for s, t in zip(student, teacher, strict=True)]
    ).mean()
    ours = fastkd.hint_loss(student, teacher, reduction="batchmean") / 2
    torch.testing.assert_close(ours, paper)


def test_fsp_by_hand() -> None:
    # One example, one position more than one channel: G = f1 f2 / 2.
    first = torch.tensor([[[[1.0, 2.0]], [[0.0, 1.0]]]])  # two channels, two positions
    second = torch.tensor([[[[3.0, 1.0]]]])
    zeros = torch.zeros(1, 2, 1, 1), torch.zeros(1, 1, 3, 3)
    flow = torch.tensor([(3 + 2) / 2, 1 / 2])
    loss = fastkd.fsp_loss((first, second), zeros)
    torch.testing.assert_close(loss, flow.square().mean())
    twice = torch.cat((first, first)), torch.cat((second, second))
    two_zeros = torch.zeros(2, 2, 1, 1), torch.zeros(2, 1, 3, 3)
    torch.testing.assert_close(fastkd.fsp_loss(twice, two_zeros), loss)
    torch.testing.assert_close(fastkd.fsp_loss(twice, two_zeros, reduction="sum"), 2 * loss)


def fsp_as_published(first: Tensor, second: Tensor) -> Tensor:
    if first.shape[2] > second.shape[2]:
        first = functional.adaptive_avg_pool2d(first, second.shape[2:])
    elif first.shape[2] < second.shape[2]:
        second = functional.adaptive_avg_pool2d(second, first.shape[2:])
    return (first.unsqueeze(2) * second.unsqueeze(1)).mean((3, 4))


@pytest.mark.parametrize(("height", "other"), [(6, 6), (6, 3), (2, 6)])
def test_fsp_is_the_published_formula(height: int, other: int) -> None:
    def maps(channels: int, size: int) -> Tensor:
        return torch.randn(4, channels, size, size, dtype=torch.float64)

    student, teacher = (maps(3, height), maps(5, other)), (maps(3, 4), maps(5, 4))
    expected = (fsp_as_published(*student) - fsp_as_published(*teacher)).square().mean()
    torch.testing.assert_close(fastkd.fsp_loss(student, teacher), expected)
    torch.testing.assert_close(fastkd.fsp_loss(list(student), list(teacher)), expected)


def test_nst_by_hand() -> None:
    # One channel (1, 0) against the orthonormal (.6, .8), (.8, -.6): 1 + 1/2 - (.36 + .64).
    student = torch.tensor([[[[1.0, 0.0]]]])
    teacher = torch.tensor([[[[3.0, 4.0]], [[8.0, -6.0]]]])
    assert fastkd.nst_loss(student, teacher).item() == pytest.approx(0.5)


def nst_as_published(student: Tensor, teacher: Tensor) -> Tensor:
    """Builds [N, C, C, positions]."""
    student = functional.normalize(student.flatten(2), dim=2)
    teacher = functional.normalize(teacher.flatten(2), dim=2)

    def poly(a: Tensor, b: Tensor) -> Tensor:
        return (a.unsqueeze(1) * b.unsqueeze(2)).sum(-1).pow(2).mean()

    return poly(teacher, teacher) + poly(student, student) - 2 * poly(student, teacher)


@pytest.mark.parametrize("channels", [(3, 3), (3, 7), (20, 4), (1, 1), (64, 64)])
@pytest.mark.parametrize("size", [(4, 4), (1, 1), (7, 3)])
def test_nst_is_the_published_formula(channels: tuple[int, int], size: tuple[int, int]) -> None:
    student, teacher = (torch.randn(3, c, *size, dtype=torch.float64) for c in channels)
    student.requires_grad_()
    expected = nst_as_published(student, teacher)
    loss = fastkd.nst_loss(student, teacher)
    torch.testing.assert_close(loss, expected)
    (grad,) = torch.autograd.grad(loss, student)
    (expected_grad,) = torch.autograd.grad(expected, student)
    torch.testing.assert_close(grad, expected_grad)
    total = fastkd.nst_loss(student, teacher, reduction="sum")
    torch.testing.assert_close(total, 3 * expected)


def test_both_ways_of_nst_agree() -> None:
    student, teacher = (
        torch.randn(3, channels, 11, dtype=torch.float64).requires_grad_() for channels in (5, 8)
    )
    values, grads = [], []
    for way in (_by_channels, _by_positions):
        values.append(way(student, teacher))
        grads.append(torch.autograd.grad(values[-1], (student, teacher)))
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize(
    ("student_size", "teacher_size", "size"),
    [((8, 8), (4, 4), (4, 4)), ((4, 4), (6, 6), (4, 4)), ((8, 3), (4, 9), (4, 3))],
)
def test_nst_averages_down_to_the_smaller(
    student_size: Shape, teacher_size: Shape, size: Shape
) -> None:
    student, teacher = torch.randn(2, 5, *student_size), torch.randn(2, 3, *teacher_size)
    loss = fastkd.nst_loss(student, teacher, interpolate=True)
    pooled = (functional.adaptive_avg_pool2d(maps, size) for maps in (student, teacher))
    torch.testing.assert_close(loss, fastkd.nst_loss(*pooled))


@pytest.mark.parametrize("rank", [3, 5])
def test_nst_takes_maps_of_any_rank(rank: int) -> None:
    shape = (12,) if rank == 3 else (2, 3, 2)
    student, teacher = torch.randn(2, 2, 4, 12)
    expected = fastkd.nst_loss(student.unsqueeze(3), teacher.unsqueeze(3))
    loss = fastkd.nst_loss(student.view(2, 4, *shape), teacher.view(2, 4, *shape))
    torch.testing.assert_close(loss, expected)


class LargestTensor(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.elements = max(self.elements, result.numel())
        return result


@pytest.mark.parametrize("shape", [(2, 16, 12, 12), (2, 144, 4, 4)])
def test_nst_builds_nothing_larger_than_the_maps(shape: Shape) -> None:
    student, teacher = torch.randn(shape, requires_grad=True), torch.randn(shape)
    with LargestTensor() as largest:
        fastkd.nst_loss(student, teacher).backward()
    assert largest.elements == student.numel()


@pytest.mark.parametrize("scale", [1e-10, 1.0, 1e10])
@pytest.mark.parametrize("shape", [(2, 4, 5, 5), (2, 16, 2, 2)], ids=["channels", "positions"])
def test_nst_does_not_see_the_scale(shape: Shape, scale: float) -> None:
    student, teacher = torch.randn(2, *shape)
    loss = fastkd.nst_loss(scale * student, teacher / scale)
    torch.testing.assert_close(loss, fastkd.nst_loss(student, teacher))


@pytest.mark.parametrize("shape", [(2, 4, 5, 5), (2, 16, 2, 2)], ids=["channels", "positions"])
def test_maps_of_zeros_get_no_gradient(shape: Shape) -> None:
    student, teacher = torch.randn(2, *shape, dtype=torch.float64)
    student[0, 1] = teacher[1, 2] = 0
    student.requires_grad_()
    loss = fastkd.nst_loss(student, teacher)
    torch.testing.assert_close(loss, nst_as_published(student, teacher))
    (grad,) = torch.autograd.grad(loss, student, create_graph=True)
    assert grad.isfinite().all()
    assert torch.equal(grad[0, 1], torch.zeros_like(grad[0, 1]))
    (second,) = torch.autograd.grad(grad.square().sum(), student)
    assert second.isfinite().all()
    assert fastkd.nst_loss(torch.zeros(shape), torch.zeros(shape)).item() == 0
