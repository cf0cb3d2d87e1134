# SPDX-License-Identifier: Apache-2.0
"""kd_loss(inplace=True): the same gradient in the memory of the student's logits."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import KD_LOSS, LOGIT_CASES, LOGITS, Geometry, Inputs, LossCase
from test_layouts import COPIED, IN_PLACE, name
from torch import Tensor

import fastkd
from benchmarks.memory import peak_tensor_bytes
from fastkd.ops._row_kernel import scale, scaled

S, T = torch.randn(2, 8, 100)


def differentiated(
    case: LossCase, inputs: Inputs, change: Callable[[Tensor], Tensor] = torch.Tensor.clone
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, gradient of a leaf that `change` makes logits of, and the logits after it in place."""
    leaf = inputs.tensors[0].detach().requires_grad_()
    logits = change(leaf)
    if logits is leaf or logits._base is leaf:
        logits = logits.clone(memory_format=torch.preserve_format)
    loss = case.run(Inputs((logits, *inputs.tensors[1:]), inputs.keywords), inplace=True)
    (grad,) = torch.autograd.grad(loss.sum(), leaf)
    return loss.detach(), grad, logits.detach()


def expected(case: LossCase, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Loss and gradient that are not in place."""
    leaf = inputs.tensors[0].detach().requires_grad_()
    loss = case.run(Inputs((leaf, *inputs.tensors[1:]), inputs.keywords))
    return loss.detach(), torch.autograd.grad(loss.sum(), leaf)[0]


def bits_equal(a: Tensor, b: Tensor) -> bool:
    """Equal, where NaN equals NaN."""
    return torch.equal(a.nan_to_num(nan=7.0), b.nan_to_num(nan=7.0))


@pytest.mark.parametrize(
    ("case", "geometry"),
    [
        (case, geometry)
        for case in LOGIT_CASES
        for geometry in (LOGITS.geometries if case is KD_LOSS else LOGITS.mixed)
    ],
    ids=str,
)
def test_the_gradient_is_the_same_and_lies_in_the_logits(
    backend: str, case: LossCase, geometry: Geometry
) -> None:
    dtype = torch.bfloat16 if "t4" in case.label else torch.float32
    inputs = case.make_inputs(geometry, dtype)
    loss, grad, logits = differentiated(case, inputs)
    plain_loss, plain_grad = expected(case, inputs)
    assert bits_equal(loss, plain_loss)
    assert bits_equal(grad, plain_grad)
    assert bits_equal(logits, plain_grad)


@pytest.mark.parametrize(("geometry", "change"), [*IN_PLACE, *COPIED], ids=name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_any_strides(
    backend: str,
    geometry: Geometry,
    change: Callable[[Tensor], Tensor],
    dtype: torch.dtype,
) -> None:
    inputs = KD_LOSS.make_inputs(geometry, dtype)
    loss, grad, logits = differentiated(KD_LOSS, inputs, change)
    plain_loss, plain_grad = expected(KD_LOSS, inputs)
    # Strides may choose another driver, which rounds in another order.
    torch.testing.assert_close(loss, plain_loss)
    torch.testing.assert_close(grad, plain_grad)
    torch.testing.assert_close(logits, plain_grad)


@pytest.mark.parametrize(("student", "teacher"), [(2600, 1030), (1030, 2600)])
def test_common_vocab(backend: str, student: int, teacher: int) -> None:
    leaf, other = torch.randn(5, student, requires_grad=True), torch.randn(5, teacher)
    options: dict[str, Any] = {"target": torch.randint(0, student, (5,)), "common_vocab": True}
    (grad,) = torch.autograd.grad(
        fastkd.kd_loss(leaf.clone(), other, inplace=True, **options), leaf
    )
    assert grad.equal(torch.autograd.grad(fastkd.kd_loss(leaf, other, **options), leaf)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("factor", [1.0, 0.3])
def test_extra_memory_is_that_of_rows(backend: str, dtype: torch.dtype, factor: float) -> None:
    inputs = KD_LOSS.make_inputs(Geometry((512, 4000)), dtype)
    logits = inputs.tensors[0].detach().requires_grad_().clone()

    def call() -> None:
        loss = KD_LOSS.run(Inputs((logits, *inputs.tensors[1:]), inputs.keywords), inplace=True)
        torch.autograd.grad(loss * factor, logits)

    assert peak_tensor_bytes(call) <= 16 * 512 + 4096


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("start", [0, 1, 3])
@pytest.mark.parametrize("rows", ["one", "dense", "apart"])
def test_a_gradient_at_any_address_is_scaled_in_place(
    backend: str, dtype: torch.dtype, start: int, rows: str
) -> None:
    whole = torch.randn(3, 9001).to(dtype)  # more than a block takes
    before = whole.clone()
    grads = {"one": whole[1:2, start:-2], "apart": whole[:, start:-2]}
    grad = grads.get(rows, whole.flatten()[start : start - 9].view(6, -1))
    factors = torch.tensor(0.3), torch.rand(len(grad)), torch.tensor(4.0)
    for factor, unscale in ((factors[0], None), (factors[1], factors[2])):
        expected = scaled(grad, factor, unscale, -1)
        assert scale(grad, factor, unscale, -1, kept=False) is grad
        assert grad.equal(expected)
    grad.copy_(before.as_strided(grad.shape, grad.stride(), grad.storage_offset()))
    assert whole.equal(before), "what lies beside the gradient was written"


def test_only_the_logits_of_a_view_are_overwritten(backend: str) -> None:
    # As in next-token prediction: the last position of each sequence predicts nothing.
    leaf, teacher = torch.randn(2, 3, 7, 50).unbind()
    whole = leaf.requires_grad_().clone()
    target = torch.randint(0, 50, (3, 6))
    loss = fastkd.kd_loss(whole[:, :-1], teacher[:, :-1], target, inplace=True)
    plain = fastkd.kd_loss(leaf[:, :-1], teacher[:, :-1], target)
    (grad,) = torch.autograd.grad(loss, leaf)
    assert whole[:, -1].equal(leaf[:, -1])
    assert grad.equal(torch.autograd.grad(plain, leaf)[0])


def test_autograd_reports_another_use_that_kept_the_logits() -> None:
    leaf = S.clone().requires_grad_()
    logits = leaf * 2
    other = logits.square().sum()
    loss = fastkd.kd_loss(logits, T, inplace=True)
    assert logits._version == 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (loss + other).backward()


def test_autograd_reports_that_the_gradient_was_overwritten() -> None:
    logits = S.clone().requires_grad_() * 2
    loss = fastkd.kd_loss(logits, T, inplace=True)
    logits.detach().zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_kept_graph_gives_the_same_gradient_again(backend: str) -> None:
    leaf = S.clone().requires_grad_()
    loss = fastkd.kd_loss(leaf * 2, T, inplace=True)
    (first,) = torch.autograd.grad(loss * 3, leaf, retain_graph=True)
    (second,) = torch.autograd.grad(loss * 3, leaf)
    assert first.equal(second)


def test_create_graph_is_refused() -> None:
    leaf = S.clone().requires_grad_()
    loss = fastkd.kd_loss(leaf * 2, T, inplace=True)
    with pytest.raises(RuntimeError, match=r"create_graph=True\) needs student_logits"):
        torch.autograd.grad(loss, leaf, create_graph=True)


@pytest.mark.parametrize(
    ("logits_of", "message"),
    [
        (lambda x: x, "the output of an operation, got a leaf that requires"),
        (lambda x: x[:, :50], r"got a leaf \(seen through a view\) that requires"),
        (lambda x: x.detach()[:, :50].requires_grad_(), "got a leaf that requires"),
        (lambda x: (x[:1] * 2).expand(8, 100), r"shape \(8, 100\) with strides \(0, 1\)"),
        (lambda x: (x[0] * 2).unfold(0, 50, 5)[:8], r"shape \(8, 50\) with strides \(5, 1\)"),
    ],
)
def test_what_must_not_be_overwritten(logits_of: Callable[[Tensor], Tensor], message: str) -> None:
    leaf = S.clone().requires_grad_()
    logits = logits_of(leaf)
    before = logits.detach().clone()
    with pytest.raises(ValueError, match=f"kd_loss: with inplace=True .*{message}"):
        fastkd.kd_loss(logits, T[:, : logits.shape[1]], inplace=True)
    assert logits.equal(before)
    fastkd.kd_loss(logits, T[:, : logits.shape[1]])


def test_what_is_read_must_not_be_overwritten() -> None:
    both = torch.randn(16, 100, requires_grad=True) * 2
    for student, teacher in ((both[:8], both[1:9]), (both[:8], both.detach()[:8])):
        with pytest.raises(ValueError, match="teacher_logits must not lie in the memory of"):
            fastkd.kd_loss(student, teacher, inplace=True)
    with pytest.raises(ValueError, match="sample_weight must not lie in the memory of"):
        fastkd.kd_loss(both[:8], T, sample_weight=both.detach()[:8, 0], inplace=True)
    target = both.detach()[0].view(torch.int64)[:8]
    with pytest.raises(ValueError, match="target must not lie in the memory of"):
        fastkd.kd_loss(both[:8], T, target, inplace=True)
    fastkd.kd_loss(both[:8], both[8:], inplace=True).backward()  # a batch in two halves


def test_a_bad_target_loses_nothing(backend: str) -> None:
    if "cuda" in backend:
        pytest.skip("CUDA gives NaN in place of an error")
    logits = S.clone().requires_grad_() * 2
    with pytest.raises(IndexError):
        fastkd.kd_loss(logits, T, torch.full((8,), 100), inplace=True)
    assert logits.equal(S * 2)
    assert logits._version == 0


def test_logits_stay_where_no_gradient_is_asked_for(backend: str) -> None:
    logits = S.clone().requires_grad_() * 2
    with torch.no_grad():
        fastkd.kd_loss(logits, T, inplace=True)
    fastkd.kd_loss(logits.detach(), T, inplace=True)
    assert logits.equal(S * 2)


def test_logits_stay_where_the_reference_or_the_compiler_computes() -> None:
    leaf = S.clone().requires_grad_()
    (truth,) = torch.autograd.grad(fastkd.kd_loss(leaf * 2, T), leaf)
    with pytest.raises(ValueError, match="got a leaf"):
        fastkd.kd_loss(leaf.detach().double().requires_grad_(), T, inplace=True)
    wide = leaf.double() * 2
    (grad,) = torch.autograd.grad(fastkd.kd_loss(wide, T, inplace=True), leaf)
    torch.testing.assert_close(grad, truth)
    assert wide.equal(leaf.double() * 2)

    @torch.compile(fullgraph=True)
    def compiled(leaf: Tensor) -> tuple[Tensor, Tensor]:
        logits = leaf * 2
        return fastkd.kd_loss(logits, T, inplace=True), logits

    loss, logits = compiled(leaf)
    (grad,) = torch.autograd.grad(loss, leaf, retain_graph=True)
    torch.testing.assert_close(grad, truth)
    assert logits.equal(leaf * 2)

    def of_row(student: Tensor, teacher: Tensor) -> Tensor:
        return fastkd.kd_loss(student, teacher, inplace=True)

    torch.func.vmap(of_row)(leaf * 2, T).mean().backward()
    torch.testing.assert_close(leaf.grad, truth)


def test_checkpointed_logits_are_computed_and_overwritten_again() -> None:
    leaf = S.clone().requires_grad_()

    def of(x: Tensor) -> Tensor:
        return fastkd.kd_loss(x * 2, T, inplace=True)

    loss = torch.utils.checkpoint.checkpoint(of, leaf, use_reentrant=False)
    (grad,) = torch.autograd.grad(loss, leaf)
    assert grad.equal(torch.autograd.grad(fastkd.kd_loss(leaf * 2, T), leaf)[0])
