# SPDX-License-Identifier: Apache-2.0
"""topk_kd_loss: what each tail means, teachers that tell little or nonsense; topk_from_logits."""

import itertools
import math
from typing import Any

import pytest
import torch
from conftest import EMULATED
from torch import Tensor

import fastkd
from fastkd import topk_from_logits, topk_kd_loss

INF, NAN = math.inf, math.nan
TAILS = ("bucket", "renormalize", "renormalize_teacher", "truncate")


def rows(
    student: Tensor, values: Tensor, indices: Tensor, target: Tensor | None = None, **options: Any
) -> tuple[Tensor, Tensor]:
    """Row losses, and the gradient of their sum."""
    leaf = student.detach().clone().requires_grad_()
    loss = topk_kd_loss(leaf, values, indices, target, reduction="none", **options)
    (grad,) = torch.autograd.grad(loss.sum(), leaf)
    return loss.detach(), grad


def truth(
    student: Tensor, values: Tensor, indices: Tensor, target: Tensor | None = None, **options: Any
) -> tuple[Tensor, Tensor]:
    """The same by the reference in float64."""
    return rows(student.double(), values.double(), indices, target, **options)


def make(
    count: int = 5, shape: tuple[int, ...] = (6, 40), scale: float = 3.0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    student, teacher = scale * torch.randn(2, *shape)
    return student, teacher, *topk_from_logits(teacher, count)


def assert_close(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other.double(), rtol=2e-6, atol=1e-6)


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


@pytest.mark.parametrize("tail", TAILS)
def test_entries_that_name_no_class(backend: str, tail: str) -> None:
    student, _, values, indices = make()
    expected = rows(student, values, indices, tail=tail)
    filler = torch.full((6, 60), -INF)
    wild = torch.full((6, 60), 1 << 40)  # is not looked at
    order = torch.randperm(65)
    more = torch.cat([filler, values], 1)[:, order], torch.cat([wild, indices], 1)[:, order]
    assert_close(rows(student, *more, tail=tail), expected)
    nothing = torch.full((6, 3), -INF), torch.zeros(6, 3, dtype=torch.int64)
    for found in (rows(student, *nothing, tail=tail), truth(student, *nothing, tail=tail)):
        assert found[0].equal(torch.zeros_like(found[0]))
        assert found[1].abs().max() < 1e-12


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounded_values_may_sum_to_more_than_one(backend: str, dtype: torch.dtype) -> None:
    student, _, values, indices = make(count=20)
    values = (values + 0.01).to(dtype)
    values[:, 0].clamp_(max=0.0078125)
    for tail in TAILS:
        found = rows(student, values, indices, tail=tail)
        assert_close(found, truth(student, values.float(), indices, tail=tail))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8, torch.int8])
def test_indices_of_any_integer(backend: str, dtype: torch.dtype) -> None:
    student, _, values, indices = make()
    found, expected = rows(student, values, indices.to(dtype)), rows(student, values, indices)
    assert found[0].equal(expected[0])
    assert found[1].equal(expected[1])


# ---- teachers that tell nonsense ----


def nonsense(kind: str) -> tuple[Tensor, Tensor, Tensor]:
    student, _, values, indices = make()
    if kind == "outside":
        indices[3, 1] = 40
    elif kind == "below":
        indices[3, 1] = -1
    elif kind == "again":
        indices[3, 1] = indices[3, 4]
    else:
        values[3, 1] = 0.5
    return student, values, indices


KINDS = {
    "outside": (
        IndexError,
        r"teacher_indices must be in \[0, 40\), got 40 at entry 1 of row \(3,\)",
    ),
    "below": (IndexError, r"teacher_indices must be in \[0, 40\), got -1 at entry 1 of row \(3,\)"),
    "again": (ValueError, r"must name a class once a row, got \d+ again at entry 4 of row \(3,\)"),
    "positive": (ValueError, r"must be log-probabilities, at most 0, got 0\.5 at entry 1 of row"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["eager", "float64", "compiled"])
def test_nonsense_is_an_error(cpu_backend: str, kind: str, how: str) -> None:
    student, values, indices = nonsense(kind)
    error, message = KINDS[kind]
    function = topk_kd_loss
    if how == "float64":
        student = student.double()
    if how == "compiled":
        torch._dynamo.reset()
        function = torch.compile(topk_kd_loss, backend="aot_eager")
    with pytest.raises(error, match=message):
        function(student, values, indices)


def test_the_limit_of_log_probabilities_is_one_for_all_types(cpu_backend: str) -> None:
    student, values = torch.randn(1, 10), torch.tensor([[-1.0, -2.0, 0.01]]).bfloat16()
    for dtype in (torch.float32, torch.float64):
        with pytest.raises(ValueError, match=r"at most 0, got 0\.0100"):
            topk_kd_loss(student.to(dtype), values, torch.tensor([[1, 2, 3]]))


def test_indices_that_changed_before_second_derivatives() -> None:
    student, _, values, indices = make()
    student.requires_grad_()
    loss = topk_kd_loss(student, values, indices)
    indices.zero_()
    with pytest.raises(RuntimeError, match="teacher_values, teacher_indices, target or sample_we"):
        torch.autograd.grad(loss, student, create_graph=True)


@pytest.mark.parametrize("kind", KINDS)
def test_nonsense_loses_nothing(cpu_backend: str, kind: str) -> None:
    student, values, indices = nonsense(kind)
    logits = student.clone().requires_grad_() * 1.0
    with pytest.raises(KINDS[kind][0]):
        topk_kd_loss(logits, values, indices, inplace=True)
    assert logits.equal(student)


@pytest.mark.parametrize("kind", KINDS)
def test_on_cuda_nonsense_gives_nan(emulated: Any, kind: str) -> None:
    loss, grad = rows(*nonsense(kind))
    assert loss.isnan().tolist() == [row == 3 for row in range(6)]
    assert grad.isnan().all(1).tolist() == [row == 3 for row in range(6)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_that_do_not_count_may_hold_nonsense(
    backend: str, kind: str, dtype: torch.dtype
) -> None:
    student, values, indices = nonsense(kind)
    student[3] = NAN
    target = torch.arange(6)
    target[3] = -100
    weight = torch.ones(6)
    weight[3] = 0
    for keywords in ({"target": target}, {"sample_weight": weight}):
        loss, grad = rows(student.to(dtype), values, indices, **keywords)
        assert loss.isfinite().all()
        assert grad[3].abs().max() == 0


def test_more_entries_than_shared_memory_holds(emulated: Any) -> None:
    student = torch.randn(1, 8)
    values, indices = torch.full((1, 100_000), -INF), torch.zeros(1, 100_000, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="CUDA refused topk_rows: a block's shared memory"):
        topk_kd_loss(student, values, indices)


@pytest.mark.skipif(not EMULATED, reason="there is no emulator")
def test_one_thread_or_several_give_the_same_bits(backend: str) -> None:
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


S, V, I = torch.randn(3, 5), torch.randn(3, 2).sub(9), torch.tensor([[0, 1]] * 3)  # noqa: E741


@pytest.mark.parametrize(
    ("error", "arguments", "options", "message"),
    [
        (TypeError, (S, V, I.float()), {}, "teacher_indices must have dtype int64, .*float32"),
        (TypeError, (S, V.long(), I), {}, "teacher_values must have dtype float32"),
        (TypeError, (S, V, [[0, 1]]), {}, "teacher_indices must be a torch.Tensor, got list"),
        (ValueError, (S, V[:2], I[:2]), {}, r"outside dim 1, got \(2, 2\)"),
        (
            ValueError,
            (S, V, I[:, :1]),
            {},
            "indices must have the shape of teacher_values",
        ),
        (ValueError, (S, V[:, :0], I[:, :0]), {}, "must have at least one entry in dim 1"),
        (ValueError, (S, V, I), {"tail": "drop"}, "tail must be"),
        (ValueError, (S, V, I), {"teacher_is": "probs"}, "teacher_is must be"),
        (ValueError, (S, V, I), {"teacher_is": "logits"}, "tail must be 'renormalize' or"),
        (ValueError, (S, V, I), {"dim": 2}, r"dim must be in \[-2, 1\]"),
        (ValueError, (S, V, I), {"alpha": 2.0}, r"alpha must be in \[0, 1\]"),
        (ValueError, (torch.tensor(1.0), V, I), {}, "student_logits must have a class dimension"),
    ],
)
def test_errors(
    error: type[Exception], arguments: tuple[Any, ...], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(error, match=message):
        topk_kd_loss(*arguments, **options)


# ---- topk_from_logits ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("dim", [-1, 0])
def test_topk_from_logits(dtype: torch.dtype, dim: int) -> None:
    torch.manual_seed(0)
    logits = (5 * torch.randn(30, 30) + 1000).to(dtype).requires_grad_()
    values, indices = topk_from_logits(logits, 4, temperature=2.0, dim=dim)
    assert not values.requires_grad
    assert values.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected = torch.log_softmax(logits.detach().double() / 2, dim)
    assert indices.equal(logits.topk(4, dim).indices)
    torch.testing.assert_close(values.double(), expected.gather(dim, indices), rtol=0, atol=1e-6)


def test_topk_from_masked_logits() -> None:
    logits = torch.tensor([[0.0, -INF, 1.0, -INF]])
    values, indices = topk_from_logits(logits, 3)
    assert values.isneginf().tolist() == [[False, False, True]]
    assert topk_kd_loss(logits, values, indices) == 0


@pytest.mark.parametrize(
    ("error", "logits", "k", "options", "message"),
    [
        (TypeError, [1.0], 1, {}, "teacher_logits must be a torch.Tensor, got list"),
        (TypeError, S.long(), 1, {}, "teacher_logits must have dtype"),
        (TypeError, S, 1.0, {}, "k must be"),
        (ValueError, S, 0, {}, r"k must be in \[1, 5\], the classes, got 0"),
        (ValueError, S, 6, {}, r"k must be in \[1, 5\], the classes, got 6"),
        (ValueError, S, 1, {"temperature": 0.0}, "temperature must be in"),
        (ValueError, S, 1, {"dim": 2}, r"dim must be in \[-2, 1\]"),
        (ValueError, torch.tensor(1.0), 1, {}, "must have a class dimension, got a scalar"),
    ],
)
def test_topk_from_logits_errors(
    error: type[Exception], logits: Any, k: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(error, match=message):
        topk_from_logits(logits, k, **options)
