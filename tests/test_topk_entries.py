# SPDX-License-Identifier: Apache-2.0
"""What a top-k teacher's entries may be, and the errors for what they may not."""

from typing import Any

import pytest
import torch
from topk_values import INF, NAN, TAILS, assert_close, make, rows, truth
from torch import Tensor

from fastkd import topk_kd_loss


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


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8, torch.int8])
def test_indices_of_any_integer(backend: str, dtype: torch.dtype) -> None:
    student, _, values, indices = make()
    found, expected = rows(student, values, indices.to(dtype)), rows(student, values, indices)
    assert found[0].equal(expected[0])
    assert found[1].equal(expected[1])


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
    with pytest.raises(RuntimeError, match="CUDA has no room for topk_rows: a block's"):
        topk_kd_loss(student, values, indices)


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
