# SPDX-License-Identifier: Apache-2.0
"""linear_kd_loss with a teacher known by K classes a row."""

from typing import Any

import pytest
import torch
from tolerance import relative_error
from torch import Tensor

import fastkd
from benchmarks.memory import peak_tensor_bytes

ROWS, WIDTH, CLASSES, COUNT = 37, 16, 50, 6
OPTIONS: list[dict[str, Any]] = [
    {},
    {"tail": "renormalize", "teacher_is": "logits", "temperature": 2.0, "label_smoothing": 0.1},
    {"tail": "truncate", "alpha": 1.0, "reduction": "sum"},
    {"tail": "renormalize_teacher", "temperature": 3.0, "reduction": "none"},
    {"logit_softcap": 5.0, "num_items": 7},
]


def problem(shape: tuple[int, ...] = (ROWS,)) -> tuple[list[Tensor], dict[str, Any]]:
    """Hidden states and weight; the teacher, labels and weights."""
    torch.manual_seed(0)
    values, indices = fastkd.topk_from_logits(3 * torch.randn(*shape, CLASSES), COUNT)
    values[..., -1].masked_fill_(torch.rand(shape) < 0.3, -torch.inf)
    target = torch.randint(0, CLASSES, shape)
    target.view(-1)[1::5] = -100
    teacher = {"teacher_values": values, "teacher_indices": indices.to(torch.int32)}
    rows = {"target": target, "sample_weight": torch.rand(shape)}
    return [torch.randn(*shape, WIDTH), torch.randn(CLASSES, WIDTH)], {**teacher, **rows}


def run(
    function: Any, tensors: list[Tensor], keywords: dict[str, Any], **options: Any
) -> list[Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    loss = function(*leaves, **keywords, **options)
    seeds = torch.linspace(-1, 2, loss.numel(), dtype=loss.dtype).view(loss.shape)
    return [loss.detach(), *torch.autograd.grad(loss, leaves, seeds)]


def truth(tensors: list[Tensor], keywords: dict[str, Any], **options: Any) -> list[Tensor]:
    wide = [x.double() for x in tensors]
    return run(fastkd.reference.linear_kd_loss, wide, keywords, **options)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("shape", [(ROWS,), (5, 7), ()])
def test_chunks_match_float64(
    backend: str, shape: tuple[int, ...], options: dict[str, Any]
) -> None:
    tensors, keywords = problem(shape)
    expected = truth(tensors, keywords, **options)
    for chunk_rows in (10, "auto"):
        more = {**options, "chunk_rows": chunk_rows}
        found = run(fastkd.linear_kd_loss, tensors, keywords, **more)
        for value, true in zip(found, expected, strict=True):
            assert relative_error(value, true) < 5e-6


def test_it_is_the_loss_of_whole_logits() -> None:
    tensors, keywords = problem()

    def whole(hidden: Tensor, weight: Tensor, **rest: Any) -> Tensor:
        return fastkd.topk_kd_loss(hidden @ weight.t(), **rest)

    found = run(fastkd.linear_kd_loss, tensors, keywords)
    torch.testing.assert_close(found, run(whole, tensors, keywords))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types(dtype: torch.dtype) -> None:
    tensors, keywords = problem()
    tensors = [x.to(dtype) for x in tensors]
    found = run(fastkd.linear_kd_loss, tensors, keywords)
    for value, true in zip(found, truth(tensors, keywords), strict=True):
        assert relative_error(value, true) < 2e-2


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_compiled_as_one_graph(options: dict[str, Any]) -> None:
    tensors, keywords = problem((5, 7))
    torch.compiler.reset()
    compiled = torch.compile(fastkd.linear_kd_loss, fullgraph=True, backend="aot_eager")
    found = run(compiled, tensors, keywords, chunk_rows=10, **options)
    for value, true in zip(found, truth(tensors, keywords, **options), strict=True):
        assert relative_error(value, true) < 5e-6


def test_exported() -> None:
    (hidden, weight), keywords = problem()

    class Distiller(torch.nn.Module):
        def forward(self, hidden: Tensor, weight: Tensor, rest: dict[str, Tensor]) -> Tensor:
            return fastkd.linear_kd_loss(hidden, weight, **rest)

    program = torch.export.export(Distiller(), (hidden, weight, keywords)).module()
    found = program(hidden, weight, keywords)
    torch.testing.assert_close(found, fastkd.linear_kd_loss(hidden, weight, **keywords))


def test_float64_and_second_derivatives() -> None:
    tensors, keywords = problem((4,))
    found = run(fastkd.linear_kd_loss, [x.double() for x in tensors], keywords)
    torch.testing.assert_close(found, truth(tensors, keywords), rtol=1e-12, atol=1e-14)
    seconds = []
    for function in (fastkd.linear_kd_loss, fastkd.reference.linear_kd_loss):
        leaves = [x.clone().requires_grad_() for x in tensors]
        grads = torch.autograd.grad(function(*leaves, **keywords), leaves, create_graph=True)
        total = torch.stack([grad.square().sum() for grad in grads]).sum()
        seconds.append(torch.autograd.grad(total, leaves))
    torch.testing.assert_close(*seconds)


def test_one_chunk_of_logits_is_held() -> None:
    rows, classes = 256, 2000
    hidden, weight = torch.randn(rows, 8, requires_grad=True), torch.randn(classes, 8)
    told = fastkd.topk_from_logits(torch.randn(rows, classes), 5)

    def call() -> object:
        loss = fastkd.linear_kd_loss(
            hidden, weight, teacher_values=told.values, teacher_indices=told.indices, chunk_rows=16
        )
        return torch.autograd.grad(loss, hidden)

    call()
    assert peak_tensor_bytes(call) < 1.2 * (16 * classes * 4 + hidden.nbytes) + 65536


@pytest.mark.parametrize("compiled", [False, True])
def test_a_bad_entry_is_named_by_its_row(compiled: bool) -> None:
    (hidden, weight), keywords = problem()
    keywords["target"][30] = 0
    keywords["sample_weight"][30] = 1.0
    keywords["teacher_indices"][30, 2] = CLASSES
    torch.compiler.reset()
    function = fastkd.linear_kd_loss
    if compiled:
        function = torch.compile(function, backend="aot_eager")
    with pytest.raises(IndexError, match=r"linear_kd_loss: .* got 50 at entry 2 of row \(30,\)"):
        function(hidden, weight, **keywords, chunk_rows=8)


def test_errors() -> None:
    (hidden, weight), keywords = problem()
    values, indices = keywords["teacher_values"], keywords["teacher_indices"]
    told = {"teacher_values": values, "teacher_indices": indices}
    for error, options, message in (
        (TypeError, {"teacher_values": values}, "got teacher_values alone"),
        (TypeError, {"teacher_indices": indices}, "got teacher_indices alone"),
        (
            TypeError,
            {**told, "teacher_logits": values},
            "and indices, got teacher_logits, tea",
        ),
        (ValueError, {**told, "divergence": "js"}, "by forward KL .* got divergence='js'"),
        (ValueError, {**told, "common_vocab": True}, "got common_vocab=True"),
        (ValueError, {**told, "standardize_logits": True}, "got standardize_logits=True"),
        (ValueError, {**told, "teacher_is": "logits"}, "tail must be"),
        (ValueError, {"teacher_logits": hidden, "tail": "truncate"}, "which is not given, got"),
        (ValueError, {**told, "teacher_indices": indices[:, :2]}, "must have the shape of"),
        (ValueError, {"teacher_values": values[1:], "teacher_indices": indices[1:]}, "the rows of"),
    ):
        with pytest.raises(error, match=message):
            fastkd.linear_kd_loss(hidden, weight, **options)
