# SPDX-License-Identifier: Apache-2.0
"""Calls in eager mode: one kernel forward and one backward, and what autograd may ask for."""

import math
import weakref

import pytest
import torch
from cases import Inputs, LossCase
from path_cases import (
    every_batch_case,
    every_case,
    kd_case,
    leaf,
    loss_of,
    reference_grad,
    true_grad,
)
from tolerance import HALF_UNIT, relative_error
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import fastkd


@every_case
def test_eager_calls_the_kernel_once_forward_and_once_backward(
    kernel_calls: list[str], case: LossCase
) -> None:
    inputs = case.make_inputs(case.geometry)
    loss_of(case, inputs)(leaf(inputs)).backward()
    assert kernel_calls == case.kernel_calls


@every_case
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_no_gradient_is_allocated_without_grad_mode(
    kernel_calls: list[str], monkeypatch: pytest.MonkeyPatch, case: LossCase, mode: type
) -> None:
    inputs = case.make_inputs(case.geometry)
    first = leaf(inputs)
    expected = loss_of(case, inputs)(first).detach()

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a gradient was allocated")

    monkeypatch.setattr(torch, "empty_like", forbidden)
    with mode():
        loss = loss_of(case, inputs)(first)
    assert loss.equal(expected)
    assert not loss.requires_grad
    assert kernel_calls == [case.kernels.forward] * 2


@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_two_backwards_of_a_kept_graph_agree(case: LossCase, dtype: torch.dtype) -> None:
    inputs = case.make_inputs(case.geometry, dtype)
    first = leaf(inputs)
    loss = loss_of(case, inputs)(first)
    (one,) = torch.autograd.grad(loss, first, torch.tensor(3.0), retain_graph=True)
    kept = one.clone()
    one.zero_()  # what a caller does to its gradient must not reach the graph
    (two,) = torch.autograd.grad(loss, first, torch.tensor(3.0), retain_graph=True)
    (last,) = torch.autograd.grad(loss, first, torch.tensor(3.0))
    assert two.equal(kept)
    assert last.equal(kept)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


@every_case
def test_gradients_accumulate(case: LossCase) -> None:
    inputs = case.make_inputs(case.geometry)
    first = leaf(inputs)
    for _ in range(2):
        loss_of(case, inputs)(first).backward()
    torch.testing.assert_close(first.grad, 2 * reference_grad(case, inputs))


@every_case
@pytest.mark.parametrize("factor", [0.0, 1.0, -2.5, 65536.0])
def test_grad_output_scales_the_gradient(case: LossCase, factor: float) -> None:
    inputs = case.make_inputs(case.geometry)
    first = leaf(inputs)
    (loss_of(case, inputs)(first) * factor).backward()
    assert first.grad is not None
    assert relative_error(first.grad, factor * true_grad(case, inputs)) < 1e-6


@every_case
def test_a_loss_scale_saves_float16_gradients_from_underflow(case: LossCase) -> None:
    # 1 / (N C) is far below float16's smallest number; a GradScaler's 2^16 must find it intact.
    inputs = case.make_inputs(case.family.large, torch.float16)
    first = leaf(inputs)
    (loss_of(case, inputs)(first) * 65536.0).backward()
    assert first.grad is not None
    truth = 65536.0 * true_grad(case, inputs)
    error = (first.grad.double() - truth).abs().max() / truth.abs().max()
    assert error < 1e-3
    assert (first.grad != 0).float().mean() > 0.9


@every_case
def test_a_teacher_from_inference_mode(kernel_calls: list[str], case: LossCase) -> None:
    inputs = case.make_inputs(case.geometry)
    with torch.inference_mode():
        teacher = inputs.tensors[1] * 1.0
    first = leaf(inputs)
    case.run(Inputs((first, teacher, *inputs.tensors[2:]), inputs.keywords)).backward()
    torch.testing.assert_close(first.grad, reference_grad(case, inputs))
    assert kernel_calls


@every_case
def test_the_teacher_may_change_after_the_loss(case: LossCase) -> None:
    inputs = case.make_inputs(case.geometry)
    first, teacher = leaf(inputs), inputs.tensors[1].clone()
    expected = reference_grad(case, inputs)
    loss = case.run(Inputs((first, teacher, *inputs.tensors[2:]), inputs.keywords))
    teacher.zero_()
    (grad,) = torch.autograd.grad(loss, first, retain_graph=True)
    torch.testing.assert_close(grad, expected)
    with pytest.raises(RuntimeError, match="changed in place before backward"):
        torch.autograd.grad(loss, first, create_graph=True)


def test_num_items_is_read_when_the_loss_is_made() -> None:
    student, teacher = torch.randn(2, 4, 5)
    student.requires_grad_()
    num_items = torch.tensor(8.0, requires_grad=True)
    loss = fastkd.kd_loss(student, teacher, num_items=num_items)
    num_items.data.fill_(1.0)
    (plain,) = torch.autograd.grad(loss, student, retain_graph=True)
    (again,) = torch.autograd.grad(loss, student, create_graph=True)
    torch.testing.assert_close(plain, again.detach())
    double = fastkd.kd_loss(student.double(), teacher.double(), num_items=num_items)
    assert torch.autograd.grad(double, num_items, allow_unused=True) == (None,)


@every_case
def test_the_teacher_is_let_go_after_backward(case: LossCase) -> None:
    inputs = case.make_inputs(case.geometry)
    teacher = inputs.tensors[1].clone()
    gone = weakref.ref(teacher)
    loss = case.run(Inputs((leaf(inputs), teacher, *inputs.tensors[2:]), inputs.keywords))
    loss.backward()
    del teacher
    assert gone() is None


@every_case
@pytest.mark.parametrize("device", ["meta", "cpu"])
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_a_default_device_does_not_move_the_outputs(
    case: LossCase, device: str, which: int, dtype: torch.dtype
) -> None:
    inputs = case.make_inputs(case.geometry, dtype)
    first = leaf(inputs)
    with torch.device(device):
        loss = case.run(
            Inputs((first, *inputs.tensors[1:]), inputs.keywords),
            reduction=case.family.reductions[which],
        )
    loss.sum().backward()
    assert loss.device.type == "cpu"
    assert first.grad is not None
    assert first.grad.isfinite().all()


@kd_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_batched_gradients(case: LossCase, dtype: torch.dtype) -> None:
    inputs = case.make_inputs(case.geometry, dtype)
    first = leaf(inputs)
    loss = case.run(Inputs((first, *inputs.tensors[1:]), inputs.keywords), reduction="none")
    (jacobian,) = torch.autograd.grad(loss, first, torch.eye(6), is_grads_batched=True)
    loss = case.run(Inputs((first, *inputs.tensors[1:]), inputs.keywords), reduction="none")
    (grad,) = torch.autograd.grad(loss.sum(), first)
    torch.testing.assert_close(jacobian.sum(0), grad)
    assert (jacobian != 0).any(-1).equal(torch.eye(6, dtype=torch.bool))


@every_batch_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_batched_gradients_of_one_number(case: LossCase, dtype: torch.dtype) -> None:
    inputs = case.make_inputs(case.geometry, dtype)
    first = leaf(inputs)
    factors = torch.tensor([1.0, 0.0, -2.5])
    loss = loss_of(case, inputs)(first)
    (batched,) = torch.autograd.grad(loss, first, factors, is_grads_batched=True)
    expected = factors.reshape(3, *[1] * first.ndim) * true_grad(case, inputs)
    assert relative_error(batched, expected) < 1e-6 + HALF_UNIT[dtype]


@every_case
def test_a_student_changed_before_backward_is_an_error_not_a_wrong_gradient(
    case: LossCase,
) -> None:
    inputs = case.make_inputs(case.geometry)
    student = leaf(inputs) * 1.0
    loss = loss_of(case, inputs)(student)
    student.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@every_case
def test_the_teacher_gets_no_gradient(case: LossCase) -> None:
    inputs = case.make_inputs(case.geometry)
    teacher = inputs.tensors[1].requires_grad_()
    for dtype in (torch.float32, torch.float64):  # the kernel and the reference
        student = inputs.tensors[0].to(dtype).requires_grad_()
        others = teacher.to(dtype), *inputs.tensors[2:]
        case.run(Inputs((student, *others), inputs.keywords)).backward()
        assert teacher.grad is None
        assert not case.run(Inputs((student.detach(), *others), inputs.keywords)).requires_grad


@every_case
def test_double_backward(case: LossCase) -> None:
    inputs = case.make_inputs(case.family.small)
    results = []
    for run in (case.run, case.run_reference):
        first = leaf(inputs)
        loss = run(Inputs((first, *inputs.tensors[1:]), inputs.keywords))
        (grad,) = torch.autograd.grad(loss, first, create_graph=True)
        (second,) = torch.autograd.grad(grad.square().sum(), first)
        results.append((grad, second))
    torch.testing.assert_close(results[0], results[1])
    assert results[0][1].abs().max() > 0


@every_case
def test_double_backward_within_autocast(case: LossCase) -> None:
    inputs = case.make_inputs(case.family.small)

    def gradient() -> Tensor:
        student = leaf(inputs)
        loss = case.run(Inputs((student, *inputs.tensors[1:]), inputs.keywords))
        return torch.autograd.grad(loss, student, create_graph=True)[0].detach()

    with torch.autocast("cpu", torch.bfloat16):
        within = gradient()
    torch.testing.assert_close(within, gradient())


@every_case
def test_the_graph_names_the_loss(case: LossCase) -> None:
    inputs = case.make_inputs(case.geometry)
    loss = case.run(Inputs((leaf(inputs), *inputs.tensors[1:]), inputs.keywords))
    assert loss.grad_fn is not None
    assert case.loss.replace("_", "") in loss.grad_fn.name().lower().replace("_", "")


@every_case
def test_autocast_with_a_bfloat16_student_and_a_float32_teacher(
    kernel_calls: list[str], case: LossCase
) -> None:
    inputs = case.make_inputs(case.geometry)
    rows, *others = case.geometry.shape
    layer = torch.nn.Linear(8, math.prod(others))
    x = torch.randn(rows, 8)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = layer(x).reshape(rows, *others)
        loss = loss_of(case, inputs)(outputs)
    assert outputs.dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    loss.backward()
    assert layer.weight.grad is not None
    assert kernel_calls
    half = Inputs((outputs.detach(), *inputs.tensors[1:]), inputs.keywords)
    torch.testing.assert_close(loss.detach(), case.run_reference(half))


@every_case
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint(case: LossCase, reentrant: bool) -> None:
    inputs = case.make_inputs(case.geometry)
    first = leaf(inputs)
    checkpoint(loss_of(case, inputs), first, use_reentrant=reentrant).backward()
    torch.testing.assert_close(first.grad, reference_grad(case, inputs))


@every_case
def test_saved_tensor_hooks(case: LossCase) -> None:
    inputs = case.make_inputs(case.geometry)
    first = leaf(inputs)
    with torch.autograd.graph.save_on_cpu():
        loss = loss_of(case, inputs)(first)
    loss.backward()
    torch.testing.assert_close(first.grad, reference_grad(case, inputs))


@every_case
def test_a_parameter_and_a_default_device_take_the_kernel(
    kernel_calls: list[str], case: LossCase
) -> None:
    inputs = case.make_inputs(case.geometry)
    parameter = torch.nn.Parameter(inputs.tensors[0])
    with torch.device("cpu"):
        loss_of(case, inputs)(parameter).backward()
    assert kernel_calls == case.kernel_calls
