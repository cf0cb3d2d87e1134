# SPDX-License-Identifier: Apache-2.0
"""Transforms, subclasses and modes take the reference, which gives the same numbers."""

import pytest
import torch
from cases import Inputs, LossCase
from path_cases import every_batch_case, every_case, kd_case, loss_of, reference_grad
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import fastkd


@kd_case
def test_func_grad_and_vmap(kernel_calls: list[str], case: LossCase) -> None:
    inputs = case.make_inputs(case.geometry)
    grad = torch.func.grad(loss_of(case, inputs))(inputs.tensors[0])
    torch.testing.assert_close(grad, reference_grad(case, inputs))

    student, teacher = torch.randn(2, 4, 6, 37)
    target = torch.randint(0, 37, (4, 6))

    def one(s: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return fastkd.kd_loss(s, t, y, **case.options)

    batched = torch.func.vmap(one)(student, teacher, target)
    assert not kernel_calls
    expected = [one(*arguments) for arguments in zip(student, teacher, target, strict=True)]
    torch.testing.assert_close(batched, torch.stack(expected))

    per_sample = torch.func.vmap(torch.func.grad(one))(student, teacher, target)
    assert per_sample.shape == student.shape


@every_batch_case
def test_func_grad_and_vmap_of_two_batches(kernel_calls: list[str], case: LossCase) -> None:
    inputs = case.make_inputs(case.geometry)
    grad = torch.func.grad(loss_of(case, inputs))(inputs.tensors[0])
    torch.testing.assert_close(grad, reference_grad(case, inputs))

    pairs = [case.make_inputs(case.geometry, seed=seed).tensors for seed in range(4)]
    student, teacher = (torch.stack(tensors) for tensors in zip(*pairs, strict=True))

    def one(s: Tensor, t: Tensor) -> Tensor:
        return case.run(Inputs((s, t)))

    batched = torch.func.vmap(one)(student, teacher)
    per_sample = torch.func.vmap(torch.func.grad(one))(student, teacher)
    assert not kernel_calls
    torch.testing.assert_close(batched, torch.stack([one(*pair) for pair in pairs]))
    expected = [reference_grad(case, Inputs(pair)) for pair in pairs]
    torch.testing.assert_close(per_sample, torch.stack(expected))


@every_case
def test_forward_mode(case: LossCase) -> None:
    inputs = case.make_inputs(case.geometry)
    direction = torch.randn(case.geometry.shape)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(inputs.tensors[0], direction)
        tangent = torch.autograd.forward_ad.unpack_dual(loss_of(case, inputs)(dual)).tangent
    torch.testing.assert_close(tangent, (reference_grad(case, inputs) * direction).sum())


@every_case
def test_meta_and_fake_tensors(kernel_calls: list[str], case: LossCase) -> None:
    inputs = case.make_inputs(case.geometry)
    loss = case.run(inputs.on("meta"))
    assert (loss.device.type, loss.shape, loss.dtype) == ("meta", (), torch.float32)

    mode = FakeTensorMode()
    fake = inputs.map(mode.from_tensor)
    for context in (mode, torch.no_grad()):  # inside the mode, and fake tensors outside it
        with context:
            assert case.run(fake).shape == ()
    assert not kernel_calls


@every_case
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:`torch.jit")
def test_a_trace_records_the_loss(case: LossCase) -> None:
    first, second = (case.make_inputs(case.geometry, seed=seed) for seed in (0, 1))

    def loss(*tensors: Tensor) -> Tensor:
        return case.run(Inputs(tensors, first.keywords))

    traced = torch.jit.trace(loss, first.tensors)
    torch.testing.assert_close(traced(*second.tensors), loss(*second.tensors))


class Wrapped(torch.Tensor):
    """A subclass that could hold its data anywhere."""


@every_case
def test_subclasses_and_lazy_negation_take_the_reference(
    kernel_calls: list[str], case: LossCase
) -> None:
    inputs = case.make_inputs(case.geometry)
    first, *others = inputs.tensors
    expected = case.run(inputs)
    kernel_calls.clear()
    wrapped = first.as_subclass(Wrapped)
    torch.testing.assert_close(
        case.run(Inputs((wrapped, *others), inputs.keywords)).as_subclass(Tensor), expected
    )
    negated = torch._neg_view(-first)  # its memory holds the negative
    assert negated.is_neg()
    torch.testing.assert_close(case.run(Inputs((negated, *others), inputs.keywords)), expected)
    zero = torch._efficientzerotensor(case.geometry.shape)  # has no memory
    assert case.run(Inputs((zero, *others), inputs.keywords)).isfinite()
    assert not kernel_calls
