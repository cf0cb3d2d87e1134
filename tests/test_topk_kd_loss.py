# SPDX-License-Identifier: Apache-2.0
"""topk_kd_loss: what each tail means, and numbers at the edges."""

import itertools
import math
from typing import Any

import pytest
import torch
from topk_values import INF, NAN, TAILS, assert_close, make, rows, truth

import fastkd
from fastkd import topk_from_logits, topk_kd_loss

# ---- what the tails mean ----


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("tail", TAILS)
def test_with_all_classes_it_is_kd_loss(backend: str, tail: str, temperature: float) -> None:
    student, teacher, *_ = make()
    target = torch.arange(6)
    options: dict[str, Any] = {"temperature": temperature, "label_smoothing": 0.1}
    leaf = student.clone().requires_grad_()
    loss = fastkd.kd_loss(leaf, teacher, target, reduction="none", **options)
    expected = loss.detach(), torch.autograd.grad(loss.sum(), leaf)[0]
    told = topk_from_logits(teacher, 40, temperature=temperature)
    assert_close(rows(student, *told, target, tail=tail, **options), expected)
    if "renormalize" in tail:
        indices = told.indices
        logits = teacher.gather(1, indices), indices
        found = rows(student, *logits, target, tail=tail, teacher_is="logits", **options)
        assert_close(found, expected)


def test_tails_by_hand(backend: str) -> None:
    student = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    told = torch.tensor([[0.5, 0.3]]).log(), torch.tensor([[3, 1]])
    p = {3: 0.5, 1: 0.3}
    q = [0.4, 0.3, 0.2, 0.1]
    truncated = sum(p[c] * math.log(p[c] / q[c]) for c in p)
    expected = {
        "bucket": truncated + 0.2 * math.log(0.2 / 0.6),
        "truncate": truncated,
        "renormalize_teacher": sum(p[c] / 0.8 * math.log(p[c] / 0.8 / q[c]) for c in p),
        "renormalize": sum(p[c] / 0.8 * math.log(p[c] / 0.8 / (q[c] / 0.4)) for c in p),
    }
    for tail, value in expected.items():
        assert topk_kd_loss(student, *told, tail=tail).item() == pytest.approx(value, rel=1e-6)


def test_the_bucket_is_least_where_the_student_agrees(backend: str) -> None:
    _, teacher, values, indices = make()
    loss, grad = rows(teacher, values, indices)
    assert loss.abs().max() < 1e-6
    assert grad.abs().max() < 1e-6
    # The others may be anything, as long as their sum is right.
    moved = teacher.scatter(1, indices, -INF)
    moved = moved.flip(1).masked_fill(moved.flip(1) == -INF, 0)
    for row in range(6):
        hidden = torch.ones(40, dtype=torch.bool)
        hidden[indices[row]] = False
        others = torch.randn(int(hidden.sum()))
        others = others - others.logsumexp(0) + teacher[row][hidden].logsumexp(0)
        moved[row] = teacher[row].masked_scatter(hidden, others)
    assert rows(moved, values, indices)[0].abs().max() < 1e-6


def test_more_classes_tell_more(backend: str) -> None:
    student, teacher, *_ = make()
    whole = fastkd.kd_loss(student, teacher, reduction="none")
    losses = [rows(student, *topk_from_logits(teacher, k))[0] for k in (1, 2, 5, 20, 40)]
    for fewer, more in itertools.pairwise(losses):
        assert (fewer <= more + 1e-6).all()
    torch.testing.assert_close(losses[-1], whole, rtol=1e-6, atol=1e-6)
    assert (losses[0] >= 0).all()


# ---- numbers at the edges ----


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("hard", [False, True])
def test_logits_thousands_apart(backend: str, tail: str, hard: bool) -> None:
    student, _, values, indices = make(scale=1.0)
    student = 1000 * student
    values = values.clamp(min=-2.0) - 0.5
    target = torch.arange(6) if hard else None
    found = rows(student, values, indices, target, tail=tail)
    assert found[0].isfinite().all()
    assert_close(found, truth(student, values, indices, target, tail=tail))


@pytest.mark.parametrize("tail", TAILS)
def test_masked_classes_of_the_student(backend: str, tail: str) -> None:
    student, _, values, indices = make()
    others = student.scatter(1, indices, 0.0) * 0 - INF
    only_named = others.scatter(1, indices, student.gather(1, indices))
    found = rows(only_named, values, indices, tail=tail)
    assert found[0].isfinite().all()  # the bucket has no class left
    assert found[1].isfinite().all()
    assert_close(found, truth(only_named, values, indices, tail=tail))
    lacking = student.scatter(1, indices[:, :1], -INF)
    loss, _ = rows(lacking, values, indices, tail=tail)
    assert loss.equal(torch.full((6,), INF))
    assert truth(lacking, values, indices, tail=tail)[0].isposinf().all()
    lacking_all = student.scatter(1, indices, -INF)
    assert rows(lacking_all, values, indices, tail=tail)[0].equal(torch.full((6,), INF))
    assert truth(lacking_all, values, indices, tail=tail)[0].isposinf().all()


def test_a_masked_class_among_the_others(backend: str) -> None:
    student, _, values, indices = make()
    masked = student.index_fill(1, torch.tensor([0, 39]), -INF)
    masked = masked.scatter(1, indices, student.gather(1, indices))
    assert_close(rows(masked, values, indices), truth(masked, values, indices))


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("where", ["named", "other", "value"])
def test_nan_stays_in_its_row(backend: str, where: str, tail: str) -> None:
    student, _, values, indices = make()
    if where == "value":
        values[2, 1] = NAN
    else:
        hidden = set(indices[2].tolist())
        other = next(c for c in range(40) if c not in hidden)
        student[2, indices[2, 0] if where == "named" else other] = NAN
    for loss, grad in (
        rows(student, values, indices, tail=tail),
        truth(student, values, indices, tail=tail),
    ):
        assert loss.isnan().tolist() == [False, False, True, False, False, False]
        assert not grad[[0, 1, 3, 4, 5]].isnan().any()


@pytest.mark.parametrize("low", [torch.finfo(torch.float32).min, -INF, -1e9])
@pytest.mark.parametrize("place", [0, 1, 1024, 1999])
def test_label_smoothing_of_masked_classes(backend: str, place: int, low: float) -> None:
    student, _, values, indices = make(shape=(6, 2000))
    student[:, place] = low
    values[indices == place] = -INF
    target = torch.arange(10, 16)
    loss, _ = rows(student, values, indices, target, label_smoothing=0.1)
    expected, _ = truth(student, values, indices, target, label_smoothing=0.1)
    assert loss.isfinite().equal(expected.isfinite())
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize(("offset", "temperature"), [(100.0, 0.01), (1000.0, 0.1)])
def test_logits_far_from_zero_keep_their_digits(
    backend: str, offset: float, temperature: float
) -> None:
    student, teacher = torch.randn(2, 6, 40) * temperature
    teacher = teacher + offset
    told = teacher, torch.arange(40).repeat(6, 1)
    options = {"teacher_is": "logits", "tail": "renormalize", "temperature": temperature}
    assert_close(rows(student, *told, **options), truth(student, *told, **options))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounded_values_may_sum_to_more_than_one(backend: str, dtype: torch.dtype) -> None:
    student, _, values, indices = make(count=20)
    values = (values + 0.01).to(dtype)
    values[:, 0].clamp_(max=0.0078125)
    for tail in TAILS:
        found = rows(student, values, indices, tail=tail)
        assert_close(found, truth(student, values.float(), indices, tail=tail))


def test_one_thread_or_several_give_the_same_bits(cpu_backend: str) -> None:
    student, _, values, indices = make(64, (300, 1000))
    target = torch.randint(1000, (300,))
    one, threads = rows(student, values, indices, target), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        other = rows(student, values, indices, target)
    finally:
        torch.set_num_threads(threads)
    assert one[0].equal(other[0])
    assert one[1].equal(other[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gradient_beyond_the_caches_has_the_same_bits(
    cpu_backend: str, dtype: torch.dtype
) -> None:
    student, _, values, indices = make(9, (300, 33000))
    student, target = student.to(dtype), indices[:, 3].clone()
    target[::2] = 7
    assert student.nbytes > 16 << 20
    loss, grad = rows(student, values, indices, target)
    for part in (slice(0, 30), slice(270, 300)):
        part_loss, part_grad = rows(student[part], values[part], indices[part], target[part])
        assert loss[part].equal(part_loss)
        assert grad[part].equal(part_grad)
