# SPDX-License-Identifier: Apache-2.0
"""Extreme and degenerate logits: what the docstring promises, on every backend."""

import math

import pytest
import torch
from row_values import INF, ROWS_AND_MAPS, kd, masked_sides, true_values
from tolerance import relative_error
from torch import Tensor

import fastkd


@ROWS_AND_MAPS
@pytest.mark.parametrize("width", [1, 10, 1024, 3000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0, 3.0])
def test_equal_logits_give_exactly_zero(
    backend: str, as_map: bool, width: int, dtype: torch.dtype, temperature: float
) -> None:
    logits = (5 * torch.randn(16, width)).to(dtype)
    loss, grad = kd(logits, logits.clone(), None, as_map, temperature=temperature)
    assert loss.equal(torch.zeros(16))
    assert grad.equal(torch.zeros_like(logits))


@ROWS_AND_MAPS
@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0, 0.3])
@pytest.mark.parametrize("spread", [1e-6, 1e4])
@pytest.mark.parametrize("offset", [0.0, 1e4, -1e4])
def test_large_offsets_and_spreads(
    backend: str, as_map: bool, temperature: float, spread: float, offset: float
) -> None:
    student = spread * torch.randn(16, 50) + offset
    teacher = spread * torch.randn(16, 50) - offset
    target = torch.randint(0, 50, (16,))
    loss, grad = kd(student, teacher, target, as_map, temperature=temperature)
    true_loss, true_grad = true_values(student, teacher, target, temperature=temperature)
    assert relative_error(loss, true_loss) < 2e-6
    assert relative_error(grad, true_grad) < 2e-5


@ROWS_AND_MAPS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("width", [6, 2500])
def test_masked_classes(backend: str, as_map: bool, dtype: torch.dtype, width: int) -> None:
    student, teacher = torch.randn(2, 16, width).to(dtype)
    target = torch.full((16,), width - 1)
    for where, s, t in masked_sides(student, teacher):
        loss, grad = kd(s, t, target, as_map, temperature=2.0)
        assert grad.isfinite().all()
        if where == "student":
            assert loss.equal(torch.full((16,), INF))
        else:
            true_loss, _ = true_values(s, t, target, temperature=2.0)
            torch.testing.assert_close(loss, true_loss.float(), rtol=1e-5, atol=1e-5)


@ROWS_AND_MAPS
def test_one_hot_teachers(backend: str, as_map: bool) -> None:
    # A teacher that is sure (as -inf elsewhere, or as a very large logit) is a hard label.
    student = torch.randn(16, 7)
    label = torch.randint(0, 7, (16,))
    chosen = torch.nn.functional.one_hot(label, 7).bool()
    expected = torch.nn.functional.cross_entropy(student, label, reduction="none")
    for teacher in (torch.where(chosen, 0.0, -INF), torch.where(chosen, 1e4, 0.0)):
        loss, grad = kd(student, teacher, None, as_map)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(grad, student.softmax(-1) - chosen.float(), rtol=1e-5, atol=1e-6)


@ROWS_AND_MAPS
@pytest.mark.parametrize("bad", [math.nan, INF])
@pytest.mark.parametrize("which", ["student", "teacher"])
def test_nan_and_plus_infinity_stay_in_their_row(
    backend: str, as_map: bool, bad: float, which: str
) -> None:
    student, teacher = torch.randn(2, 16, 40)
    target = torch.randint(0, 40, (16,))
    (student if which == "student" else teacher)[5, 3] = bad
    loss, grad = kd(student, teacher, target, as_map, temperature=3.0)
    broken = torch.arange(16) == 5
    assert loss.isnan().equal(broken)
    assert grad.isnan().any(-1).equal(broken)


@ROWS_AND_MAPS
def test_rows_that_do_not_count_may_hold_anything(backend: str, as_map: bool) -> None:
    student, teacher = torch.randn(2, 16, 40)
    target = torch.randint(0, 40, (16,))
    weight = torch.rand(16)
    student[5], target[5] = math.nan, -100
    teacher[6], weight[6] = INF, 0
    loss, grad = kd(student, teacher, target, as_map, sample_weight=weight, reduction="mean")
    assert loss.isfinite()
    assert grad[[5, 6]].equal(torch.zeros(2, 40))
    assert grad.isfinite().all()


@ROWS_AND_MAPS
def test_a_row_of_only_minus_infinity_is_nan(backend: str, as_map: bool) -> None:
    student, teacher = torch.randn(2, 16, 9)
    teacher[3] = -INF
    loss, _ = kd(student, teacher, None, as_map)
    assert loss.isnan().equal(torch.arange(16) == 3)


@ROWS_AND_MAPS
def test_alpha_zero_does_not_look_at_the_teacher(backend: str, as_map: bool) -> None:
    student, teacher = torch.randn(16, 9), torch.full((16, 9), math.nan)
    target = torch.randint(0, 9, (16,))
    loss, grad = kd(student, teacher, target, as_map, alpha=0.0)
    torch.testing.assert_close(
        loss, torch.nn.functional.cross_entropy(student, target, reduction="none")
    )
    assert grad.isfinite().all()


@pytest.mark.parametrize("reduction", ["mean", "batchmean", "sum"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_nothing_that_counts_gives_zero(backend: str, reduction: str, dtype: torch.dtype) -> None:
    student = torch.randn(4, 9, dtype=dtype, requires_grad=True)
    teacher = torch.randn(4, 9, dtype=dtype)
    none = torch.full((4,), -100)
    loss = fastkd.kd_loss(student, teacher, none, reduction=reduction)
    loss.backward()
    assert loss.item() == 0
    assert student.grad is not None
    assert student.grad.equal(torch.zeros_like(student))
    empty = fastkd.kd_loss(student[:0], teacher[:0], none[:0], reduction=reduction)
    empty.backward()
    assert empty.item() == 0


@pytest.mark.parametrize("reduction", ["none", "sum", "mean", "batchmean"])
@pytest.mark.parametrize(("shape", "dim"), [((2, 0), 0), ((0, 3, 2), 1), ((3, 4, 0, 2), 1)])
def test_no_rows_in_any_strides(
    backend: str, shape: tuple[int, ...], dim: int, reduction: str
) -> None:
    student = torch.empty(0).as_strided(shape, [2, 0, 1, 1][: len(shape)]).requires_grad_()
    teacher = torch.empty(shape)
    loss = fastkd.kd_loss(student, teacher, dim=dim, reduction=reduction)
    loss.sum().backward()
    assert loss.sum().item() == 0
    assert student.grad is not None
    assert student.grad.shape == shape


@pytest.mark.parametrize("num_items", [0, torch.tensor(0), torch.tensor(0.0)])
def test_zero_items_give_zero(num_items: int | Tensor) -> None:
    student = torch.randn(4, 9)
    student[0, 0] = -INF  # a row whose loss is infinite
    student.requires_grad_()
    loss = fastkd.kd_loss(student, torch.randn(4, 9), num_items=num_items)
    loss.backward()
    assert loss.item() == 0
    assert student.grad is not None
    assert student.grad.abs().max() == 0


@ROWS_AND_MAPS
def test_a_bfloat16_student_close_to_its_teacher(backend: str, as_map: bool) -> None:
    teacher = (3 * torch.randn(16, 4000)).bfloat16()
    student = (teacher.float() + 0.1 * torch.randn(16, 4000)).bfloat16()
    loss, grad = kd(student, teacher, None, as_map)
    true_loss, true_grad = true_values(student, teacher, None)
    assert 1e-3 < true_loss.mean() < 2e-2
    assert (grad - true_grad).norm() / true_grad.norm() < 0.005
    assert relative_error(loss, true_loss) < 1e-4


@ROWS_AND_MAPS
@pytest.mark.parametrize(("student_classes", "teacher_classes"), [(40, 33), (33, 40), (2600, 1030)])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("temperature", [2.0, 3.0])
def test_common_vocab(
    backend: str,
    as_map: bool,
    student_classes: int,
    teacher_classes: int,
    alpha: float,
    smoothing: float,
    temperature: float,
) -> None:
    student, teacher = 3 * torch.randn(16, student_classes), 3 * torch.randn(16, teacher_classes)
    student[2, -1] += 200  # a padded class far above the shared ones
    target = torch.randint(0, student_classes, (16,))
    target[0] = student_classes - 1
    options = {
        "alpha": alpha,
        "label_smoothing": smoothing,
        "temperature": temperature,
        "common_vocab": True,
    }
    loss, grad = kd(student, teacher, target, as_map, **options)
    true_loss, true_grad = true_values(student, teacher, target, **options)
    assert relative_error(loss, true_loss) < 1e-6
    assert relative_error(grad, true_grad) < 1e-6


def test_more_than_two_to_the_31_logits(cpu_backend: str) -> None:
    # An expanded teacher and a student without a gradient: 2.1e9 logits that take no memory.
    rows, classes = 2**21 + 3, 1024
    row = torch.randn(classes)
    student = row.expand(rows, classes)
    loss = fastkd.kd_loss(student, row.roll(1).expand(rows, classes), reduction="none")
    expected = fastkd.kd_loss(row[None], row.roll(1)[None])
    assert rows * classes > 2**31
    assert loss.shape == (rows,)
    assert loss[[0, rows // 2, rows - 1]].equal(expected.expand(3))


def test_the_mean_of_many_rows(cpu_backend: str) -> None:
    student, teacher = torch.randn(2, 70000, 2)  # blocks of 32768 are weighed apart
    weight = torch.rand(70000)
    rows = fastkd.reference.kd_loss(student.double(), teacher.double(), reduction="none")
    truth = (rows * weight).sum() / weight.sum()
    before = torch.get_num_threads()
    try:
        for threads in (1, 5):
            torch.set_num_threads(threads)
            loss = fastkd.kd_loss(student, teacher, sample_weight=weight)
            torch.testing.assert_close(loss.double(), truth)
    finally:
        torch.set_num_threads(before)


@ROWS_AND_MAPS
def test_an_ignore_index_of_more_than_32_bits(backend: str, as_map: bool) -> None:
    student, teacher = torch.randn(2, 16, 10)
    target = torch.full((16,), 5)
    expected, _ = kd(student, teacher, target, as_map)
    target[3] = 2**32 + 5
    loss, grad = kd(student, teacher, target, as_map, ignore_index=2**32 + 5)
    expected[3] = 0
    assert loss.equal(expected)
    assert grad[3].equal(torch.zeros(10))


def test_an_infinite_weight_is_not_the_absence_of_rows(backend: str) -> None:
    weight = torch.tensor([1.0, math.inf, 1.0])
    loss = fastkd.kd_loss(torch.randn(3, 5), torch.randn(3, 5), sample_weight=weight)
    assert loss.isnan()


@pytest.mark.parametrize("as_map", [False, True], ids=["rows", "maps"])
def test_offsets_beyond_two_to_the_31(backend: str, as_map: bool) -> None:
    # Storage that is never touched takes no memory: three rows (or maps) 2^30 elements apart.
    far = 2**30
    shape, strides = ((3, 21, 40), (far, 40, 1)) if as_map else ((3, 40), (far, 1))
    student = torch.empty(2 * far + 21 * 40, dtype=torch.bfloat16).as_strided(shape, strides)
    student.copy_(torch.randn(shape))
    near = student.clone().requires_grad_()
    teacher = torch.randn(shape)
    student.requires_grad_()
    for logits in (student, near):
        fastkd.kd_loss(logits, teacher, dim=1).backward()
    assert student.grad is not None
    assert near.grad is not None
    assert student.grad.equal(near.grad)
    assert near.grad.abs().max() > 0
