# SPDX-License-Identifier: Apache-2.0
"""linear_kd_loss where sums leave half types, and on the ways that see its op or its graph."""

import math
from typing import Any

import pytest
import torch
from tolerance import relative_error
from torch import Tensor

import fastkd
from benchmarks.memory import peak_tensor_bytes


def layers(
    rows: int = 16, width: int = 8, classes: int = 30, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, ...]:
    """Hidden states and weight of both sides, and targets."""

    def side() -> tuple[Tensor, Tensor]:
        weight = torch.randn(classes, width) * max(width, 1) ** -0.5
        return torch.randn(rows, width).to(dtype), weight.to(dtype)

    hidden, weight = side()
    return (
        hidden.requires_grad_(),
        weight.requires_grad_(),
        *side(),
        torch.randint(classes, (rows,)),
    )


def gradients(loss: Tensor, *of: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, of)


def true_gradients(inputs: tuple[Tensor, ...], **options: Any) -> tuple[Tensor, ...]:
    """Of hidden states and weight, in float64."""
    hidden, weight = (x.detach().double().requires_grad_() for x in inputs[:2])
    teacher = (x.double() for x in inputs[2:4])
    loss = fastkd.reference.linear_kd_loss(hidden, weight, *teacher, *inputs[4:], **options)
    return gradients(loss, hidden, weight)


def test_sums_over_rows_may_leave_float16() -> None:
    """4096 rows that pull one weight alike: their sum is above 65504, their mean is 30."""
    rows, classes = 4096, 100
    hidden = (60 * torch.rand(rows, 4)).half()
    weight = (0.001 * torch.randn(classes, 4)).half().requires_grad_()
    teacher = torch.zeros(rows, classes).half()
    teacher[:, 0] = 20
    target = torch.zeros(rows, dtype=torch.long)
    loss = fastkd.linear_kd_loss(hidden, weight, None, None, target, teacher_logits=teacher)
    (grad,) = gradients(loss, weight)
    wide = weight.detach().double().requires_grad_()
    true_loss = fastkd.reference.kd_loss(hidden.double() @ wide.t(), teacher.double(), target)
    (true_grad,) = gradients(true_loss, wide)
    assert 20 < true_grad.abs().max() < 60
    assert relative_error(grad, true_grad) < 1e-3


@pytest.mark.parametrize("weight_of_rows", [1e-6, 1.0, 1e5])
def test_float16_keeps_the_digits_of_small_and_large_gradients(weight_of_rows: float) -> None:
    """A student near its teacher over many classes: no gradient is a subnormal on its way."""
    hidden, weight, _, _, target = layers(64, 64, 30000, torch.float16)
    teacher = hidden.detach() + 0.1 * torch.randn_like(hidden)
    inputs = hidden, weight, teacher, weight.detach(), target
    options: dict[str, Any] = {
        "sample_weight": torch.full((64,), weight_of_rows),
        "alpha": 1.0,
        "chunk_rows": 20,
    }
    scale = 65536.0 / weight_of_rows
    loss = fastkd.linear_kd_loss(*inputs, num_items=64, **options) * scale
    del options["chunk_rows"]
    logits, teacher_logits = hidden @ weight.t(), teacher @ weight.detach().t()
    whole = fastkd.kd_loss(logits, teacher_logits, target, num_items=64, **options) * scale
    truth = true_gradients(inputs, num_items=64, **options)
    ours, plain = (gradients(of, hidden, weight) for of in (loss, whole))
    for grad, plain_grad, true_grad in zip(ours, plain, truth, strict=True):
        # Half types round the logits, which is most of it.
        error = relative_error(grad, true_grad * scale)
        assert error < 1.1 * relative_error(plain_grad, true_grad * scale) + 1e-4


def test_bfloat16_takes_no_more_memory_than_float32() -> None:
    peaks = {}
    for dtype in (torch.float32, torch.bfloat16):
        inputs = layers(1024, 64, 16000, dtype)

        def call(inputs: tuple[Tensor, ...] = inputs) -> tuple[Tensor, ...]:
            return gradients(fastkd.linear_kd_loss(*inputs, chunk_rows=64), *inputs[:2])

        peaks[dtype] = peak_tensor_bytes(call)
    assert peaks[torch.bfloat16] < 1.1 * peaks[torch.float32]


def test_rows_that_do_not_count_may_hold_nan() -> None:
    hidden, weight, teacher, teacher_weight, target = layers()
    clean = fastkd.linear_kd_loss(hidden[1:-1], weight, teacher[1:-1], teacher_weight, target[1:-1])
    expected = gradients(clean, hidden, weight)
    hidden.data[0] = teacher[-1] = math.nan
    target[0] = -100
    weight_of_rows = torch.ones(16)
    weight_of_rows[-1] = 0
    loss = fastkd.linear_kd_loss(
        hidden, weight, teacher, teacher_weight, target, sample_weight=weight_of_rows
    )
    torch.testing.assert_close(loss, clean)
    for grad, wanted in zip(gradients(loss, hidden, weight), expected, strict=True):
        torch.testing.assert_close(grad, wanted)


@pytest.mark.parametrize("layout", ["transposed", "permuted"])
def test_compiled_takes_hidden_states_of_any_strides(layout: str) -> None:
    hidden, *rest = layers()
    if layout == "transposed":
        leaf = hidden.detach().t().contiguous().t()
    else:
        leaf = hidden.detach().view(2, 8, 8).permute(2, 0, 1).contiguous().permute(1, 2, 0)
        rest = [rest[0], rest[1].view(2, 8, 8), rest[2], rest[3].view(2, 8)]
    leaf.requires_grad_()
    compiled = torch.compile(fastkd.linear_kd_loss, fullgraph=True)
    found = gradients(compiled(leaf, *rest), leaf, rest[0])
    expected = gradients(fastkd.linear_kd_loss(leaf, *rest), leaf, rest[0])
    for grad, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(grad, wanted)


def test_the_op_is_as_it_says() -> None:
    hidden, weight, teacher, teacher_weight, target = layers()
    options = (None, 4, 2.0, 0.5, "js", 0.5, -100, 0.0, "mean", True, False, False)
    options += ("log_probs", "bucket")
    tensors = hidden.detach().t().contiguous().t(), weight.detach(), None, teacher, teacher_weight
    arguments = *tensors, *(None,) * 4, target, None, None, *options, [True, True, False]
    torch.library.opcheck(torch.ops.fastkd.linear_kd_loss.default, arguments)
    with pytest.raises(ValueError, match=r"wanted must say of hidden .*got \[True\]"):
        torch.ops.fastkd.linear_kd_loss(*arguments[:-1], [True])


def test_exported() -> None:
    class Model(torch.nn.Module):
        def forward(self, *inputs: Tensor) -> Tensor:
            return fastkd.linear_kd_loss(*inputs, chunk_rows=5)

    inputs = tuple(x.detach() for x in layers())
    with torch.no_grad():
        program = torch.export.export(Model(), inputs)
    hidden = inputs[0].clone().requires_grad_()
    loss = program.module()(hidden, *inputs[1:])
    torch.testing.assert_close(loss, fastkd.linear_kd_loss(*inputs))
    (grad,) = gradients(loss, hidden)
    assert not grad.requires_grad
    (expected,) = gradients(fastkd.linear_kd_loss(hidden, *inputs[1:]), hidden)
    torch.testing.assert_close(grad, expected)


def test_compiled_errors_are_those_of_eager() -> None:
    inputs = layers()
    compiled = torch.compile(fastkd.linear_kd_loss, fullgraph=True, backend="aot_eager")
    with pytest.raises(ValueError, match="linear_kd_loss: num_items must be >= 0"):
        compiled(*inputs, num_items=torch.tensor(-2.0))
    inputs[4][7] = 99
    with pytest.raises(IndexError, match=r"linear_kd_loss: target .*got 99 at \(7,\)"):
        compiled(*inputs, chunk_rows=5)


def test_double_backward_after_autocast_of_mixed_dtypes() -> None:
    hidden, weight, *rest = layers()
    hidden = hidden.detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = fastkd.linear_kd_loss(hidden, weight, *rest)
    once = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
    twice = torch.autograd.grad(loss, (hidden, weight), create_graph=True)
    for grad, differentiable in zip(once, twice, strict=True):
        torch.testing.assert_close(grad, differentiable.detach(), rtol=0.02, atol=0.01)
    (second,) = torch.autograd.grad(twice[1].square().sum(), weight)
    assert second.isfinite().all()


def test_double_backward_within_autocast_is_that_of_the_loss() -> None:
    hidden, *rest = layers()

    def gradient(*, within: bool) -> Tensor:
        loss = fastkd.linear_kd_loss(hidden, *rest)  # outside of it, so in float32
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=within):
            return torch.autograd.grad(loss, hidden, create_graph=True)[0].detach()

    torch.testing.assert_close(gradient(within=True), gradient(within=False))


def test_double_backward_divides_by_the_count_that_the_loss_had() -> None:
    hidden, *rest = layers()
    count = torch.tensor(9.0)
    loss = fastkd.linear_kd_loss(hidden, *rest, num_items=count)
    (expected,) = torch.autograd.grad(loss, hidden, create_graph=True)
    count.fill_(1)
    (grad,) = torch.autograd.grad(loss, hidden, create_graph=True)
    assert grad.equal(expected)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_batched_gradients(reduction: str) -> None:
    hidden, *rest = layers()
    loss = fastkd.linear_kd_loss(hidden, *rest, reduction=reduction)
    grad_losses = torch.randn(3, *loss.shape)
    (batched,) = torch.autograd.grad(
        loss, hidden, grad_losses, is_grads_batched=True, retain_graph=True
    )
    for grad, grad_loss in zip(batched, grad_losses, strict=True):
        (expected,) = torch.autograd.grad(loss, hidden, grad_loss, retain_graph=True)
        torch.testing.assert_close(grad, expected)


def test_a_teacher_that_changed_is_named_with_what_reads_it() -> None:
    hidden, weight, teacher, teacher_weight, target = layers()
    loss = fastkd.linear_kd_loss(hidden, weight, teacher, teacher_weight, target, reduction="none")
    teacher.zero_()
    with pytest.raises(RuntimeError, match="changed in place before backward, which reads it"):
        loss.sum().backward()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_no_width_and_no_rows(reduction: str) -> None:
    no_width = layers(width=0)
    loss = fastkd.linear_kd_loss(*no_width, reduction=reduction)
    torch.testing.assert_close(
        loss, fastkd.reference.linear_kd_loss(*no_width, reduction=reduction)
    )
    no_rows = layers(rows=0, dtype=torch.bfloat16)
    loss = fastkd.linear_kd_loss(*no_rows, reduction=reduction)
    assert loss.dtype == torch.float32
    assert loss.shape == (() if reduction == "mean" else (0,))
    assert gradients(loss.sum(), no_rows[1])[0].equal(torch.zeros_like(no_rows[1]))
