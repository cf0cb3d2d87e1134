# SPDX-License-Identifier: Apache-2.0
"""Calls under torch.compile and torch.export give what eager calls give."""

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from cases import ATTENTION, KD_LOSS, PLAIN_BATCH_CASES, PLAIN_CASES, Inputs, LossCase
from path_cases import every_batch_case, every_case, kd_case, leaf, loss_of, reference_grad
from torch import Tensor

import fastkd
from fastkd import _backends


# One dtype each: of what is compiled, only the type of the gradient depends on it.
@pytest.mark.parametrize(
    ("case", "dtype"),
    [*zip(PLAIN_CASES, itertools.cycle((torch.float32, torch.bfloat16, torch.float16)))],
    ids=str,
)
def test_compile_fullgraph(kernel_calls: list[str], case: LossCase, dtype: torch.dtype) -> None:
    inputs = case.make_inputs(case.geometry, dtype)
    torch._dynamo.reset()

    def step(first: Tensor) -> Tensor:
        return loss_of(case, inputs)(first * 1.0) * 3.0

    eager, compiled = leaf(inputs), leaf(inputs)
    step(eager).backward()
    kernel_calls.clear()
    torch.compile(step, fullgraph=True, dynamic=False)(compiled).backward()
    assert case.kernels.forward in kernel_calls
    assert ("attention_transfer_gradient" in kernel_calls) == (case is ATTENTION)
    torch.testing.assert_close(compiled.grad, eager.grad)


@pytest.mark.parametrize(
    ("case", "dtype", "backend"),
    [
        *((case, torch.float32, "aot_eager") for case in PLAIN_CASES),
        # The reference, whose compiled backward pass would keep a teacher of another type.
        *((case, torch.float64, "inductor") for case in (KD_LOSS, PLAIN_BATCH_CASES[0], ATTENTION)),
    ],
    ids=str,
)
def test_compile_takes_a_teacher_from_inference_mode(
    case: LossCase, dtype: torch.dtype, backend: str
) -> None:
    inputs = case.make_inputs(case.geometry, dtype, torch.float16)
    with torch.inference_mode():
        teacher = inputs.tensors[1] * 1.0
    torch._dynamo.reset()
    first = leaf(inputs)
    compiled = torch.compile(case.run, fullgraph=True, backend=backend)
    compiled(Inputs((first, teacher, *inputs.tensors[2:]), inputs.keywords)).backward()
    torch.testing.assert_close(first.grad, reference_grad(case, inputs))


@every_case
def test_compile_with_dynamic_shapes_compiles_once(case: LossCase) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(case.run, fullgraph=True, dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for geometry in case.family.plain:
            inputs = case.make_inputs(geometry)
            first = leaf(inputs)
            compiled(Inputs((first, *inputs.tensors[1:]), inputs.keywords)).backward()
            torch.testing.assert_close(first.grad, reference_grad(case, inputs))


def test_compile_takes_an_integer_num_items_as_a_symbol() -> None:
    torch._dynamo.reset()
    student, teacher = torch.randn(2, 4, 5)

    def loss(num_items: int) -> Tensor:
        return fastkd.kd_loss(student, teacher, num_items=num_items)

    compiled = torch.compile(loss, fullgraph=True)
    with torch._dynamo.config.patch(recompile_limit=3):
        for num_items in range(5, 15):
            torch.testing.assert_close(compiled(num_items), loss(num_items))


def test_compile_takes_num_items_from_inference_mode() -> None:
    with torch.inference_mode():
        count = torch.tensor(3.0)
    student, teacher = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3)
    for function in (fastkd.kd_loss, fastkd.logit_mse_loss):
        loss = torch.compile(function, backend="aot_eager")(student, teacher, num_items=count)
        torch.testing.assert_close(loss, function(student, teacher, num_items=count))
        loss.backward()


def test_a_program_exported_without_gradients_can_be_trained() -> None:
    class Distiller(torch.nn.Module):
        def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
            return fastkd.kd_loss(student, teacher, temperature=4.0)

    student, teacher = torch.randn(2, 4, 5)
    program = torch.export.export(Distiller(), (student, teacher))
    trained = student.clone().requires_grad_()
    program.module()(trained, teacher).backward()
    plain = student.clone().requires_grad_()
    fastkd.kd_loss(plain, teacher, temperature=4.0).backward()
    torch.testing.assert_close(trained.grad, plain.grad)


def test_an_exported_program_says_that_it_needs_the_kernel() -> None:
    class Distiller(torch.nn.Module):
        def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
            return fastkd.kd_loss(student, teacher, temperature=4.0)

    student, teacher = torch.randn(2, 4, 5)
    program = torch.export.export(Distiller(), (student, teacher)).module()
    with _backends.use_on_cpu(None), pytest.MonkeyPatch.context() as patch:
        patch.delenv("FASTKD_REQUIRE_NATIVE", raising=False)
        with (
            pytest.warns(RuntimeWarning, match="no native CPU module"),
            pytest.raises(RuntimeError, match=r"has no kernel here \(all: switched off\)"),
        ):
            program(student, teacher)


def test_compile_checks_the_target() -> None:
    torch._dynamo.reset()
    student, teacher = torch.randn(2, 3, 5)
    loss = torch.compile(fastkd.kd_loss, fullgraph=True)
    with pytest.raises(IndexError, match=r"target must be in \[0, 5\).*got 7 at \(1,\)"):
        loss(student, teacher, torch.tensor([0, 7, 1]))


@kd_case
def test_opcheck(case: LossCase) -> None:
    inputs = case.make_inputs(case.geometry)
    arguments = (
        leaf(inputs),
        inputs.tensors[1],
        inputs.keywords["target"],
        torch.rand(6),
        *(None, None),
        *(4.0, 0.5, "forward_kl", 0.5, -1, -100, 0.1, "mean", True, False, False),
        True,
    )
    torch.library.opcheck(torch.ops.fastkd.kd_loss.default, arguments)


@every_batch_case
@pytest.mark.parametrize("with_grad", [False, True])
def test_opcheck_of_two_batches(case: LossCase, with_grad: bool) -> None:
    inputs = case.make_inputs(case.geometry)
    options = dataclasses.asdict(case.module().options)
    op = getattr(torch.ops.fastkd, case.loss).default
    torch.library.opcheck(op, (leaf(inputs), inputs.tensors[1], *options.values(), with_grad))


def test_opcheck_of_the_gradient_of_attention() -> None:
    for layout in (torch.contiguous_format, torch.channels_last):
        student = torch.randn(2, 3, 4, 5).to(memory_format=layout)
        arguments = student, torch.randn(2, 20), torch.tensor(0.5), 3.0
        torch.library.opcheck(torch.ops.fastkd.attention_transfer_gradient.default, arguments)


@every_case
@pytest.mark.parametrize("strict", [False, True])
def test_export(kernel_calls: list[str], case: LossCase, strict: bool) -> None:
    inputs = case.make_inputs(case.geometry)

    class Distiller(torch.nn.Module):
        def forward(self, tensors: tuple[Tensor, ...], keywords: dict[str, Any]) -> Tensor:
            return case.run(Inputs(tensors, keywords))

    arguments = (inputs.tensors, inputs.keywords)
    program = torch.export.export(Distiller(), arguments, strict=strict)
    assert any("fastkd" in str(node.target) for node in program.graph.nodes)
    kernel_calls.clear()
    torch.testing.assert_close(program.module()(*arguments), case.run_reference(inputs))
    assert case.kernels.forward in kernel_calls
