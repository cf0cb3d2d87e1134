# SPDX-License-Identifier: Apache-2.0
"""Gradients, types and paths of the losses that run on PyTorch's own operations."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from tolerance import GRAD_FLOOR, LOSS_FLOOR, relative_error
from torch import Tensor

import fastkd
from fastkd import reference

Tensors = tuple[Tensor, ...]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """One loss with options; two shapes a side make the pairs of fsp_loss."""

    loss: str
    student: tuple[Shape, ...]
    teacher: tuple[Shape, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    weighted: bool = False

    def __str__(self) -> str:
        words = [self.loss, *(f"{name}={value}" for name, value in self.options.items())]
        return "-".join([*words, *("x".join(map(str, shape)) for shape in self.student)])

    def inputs(self, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensors, Tensors]:
        """Student's and teacher's tensors."""
        generator = torch.Generator().manual_seed(seed)

        def normal(shape: Shape) -> Tensor:
            return torch.randn(shape, generator=generator).to(dtype)

        return (
            tuple(map(normal, self.student)),
            tuple(map(normal, self.teacher or self.student)),
        )

    def run(self, student: Tensors, teacher: Tensors, where: Any = fastkd) -> Tensor:
        """The public function, or the reference's."""
        options = dict(self.options)
        if self.weighted and self.loss == "dist_loss":
            options["mask"] = torch.tensor([True, False, True], device=student[0].device)
        elif self.weighted:
            options["sample_weight"] = torch.tensor([0.5, 0.0, 2.0]).to(student[0])
        function: Callable[..., Tensor] = getattr(where, self.loss)
        if self.loss == "fsp_loss":
            return function(student, teacher, **options)
        return function(student[0], teacher[0], **options)


CASES = (
    Case("logit_mse_loss", ((3, 4),)),
    Case("logit_mse_loss", ((2, 4, 3),), options={"dim": 1, "reduction": "batchmean"}),
    Case("logit_mse_loss", ((3, 4),), options={"zero_mean": True, "num_items": 7}, weighted=True),
    Case("dist_loss", ((4, 3),)),
    Case("dist_loss", ((2, 4, 3),), options={"dim": 1, "temperature": 4.0, "gamma": 0.5}),
    Case(
        "dist_loss", ((3, 4),), options={"beta": 2.0, "temperature_squared": False}, weighted=True
    ),
    Case("hint_loss", ((2, 3, 2, 2),)),
    Case("hint_loss", ((2, 3),), options={"reduction": "batchmean"}),
    Case("fsp_loss", ((2, 2, 3, 2), (2, 1, 2, 3)), ((2, 2, 2, 2), (2, 1, 2, 2))),
    Case("fsp_loss", ((2, 2, 3, 3), (2, 3, 3, 3)), options={"reduction": "sum"}),
    Case("nst_loss", ((2, 2, 3, 3),), ((2, 3, 3, 3),)),  # over the channels
    Case("nst_loss", ((2, 5, 2, 2),), ((2, 4, 2, 2),), {"reduction": "sum"}),  # over the positions
    Case("nst_loss", ((2, 2, 3, 2),), ((2, 2, 2, 3),), {"interpolate": True}),
)
each_case = pytest.mark.parametrize("case", CASES, ids=str)
# Inductor writes and compiles C++ for each graph, in seconds: one of each loss.
FIRST_CASES = tuple({case.loss: case for case in reversed(CASES)}.values())[::-1]
each_case_compiled = pytest.mark.parametrize(
    ("case", "backend"),
    [
        *((case, "inductor") for case in FIRST_CASES),
        *((case, "aot_eager") for case in CASES if case not in FIRST_CASES),
    ],
    ids=str,
)


def leaves(tensors: Tensors) -> Tensors:
    return tuple(t.detach().clone().requires_grad_() for t in tensors)


@pytest.mark.parametrize("case", [case for case in CASES if case.loss != "dist_loss"], ids=str)
def test_equal_inputs_give_exactly_0(case: Case) -> None:
    student = leaves(case.inputs()[0])
    loss = case.run(student, tuple(t.detach().clone() for t in student))
    assert loss.item() == 0
    for tensor, grad in zip(student, torch.autograd.grad(loss, student), strict=True):
        floor = 1e-6 if case.loss == "nst_loss" else 0
        assert grad.abs().max() <= floor * tensor.abs().max()


@each_case
def test_gradcheck_in_both(case: Case) -> None:
    student, teacher = map(leaves, case.inputs(torch.float64))

    def loss(*tensors: Tensor) -> Tensor:
        split = len(student)
        return case.run(tensors[:split], tensors[split:], reference)

    assert torch.autograd.gradcheck(loss, (*student, *teacher))
    assert torch.autograd.gradgradcheck(loss, (*student, *teacher))


@each_case
def test_double_backward_of_the_public_function(case: Case) -> None:
    student, teacher = case.inputs(torch.float64)
    assert torch.autograd.gradgradcheck(lambda *s: case.run(s, teacher), leaves(student))


@each_case
def test_only_the_student_gets_a_gradient(case: Case) -> None:
    student, teacher = map(leaves, case.inputs())
    loss = case.run(student, teacher)
    assert loss.shape == ()
    loss.backward()
    assert all(t.grad is not None for t in student)
    assert all(t.grad is None for t in teacher)
    with torch.no_grad():
        alone = case.run(student, teacher)
    assert not alone.requires_grad
    assert alone.item() == loss.item()


def test_weights_and_num_items_get_no_gradient() -> None:
    student, teacher = torch.randn(2, 3, 4)
    weight = torch.ones(3, requires_grad=True)
    count = torch.tensor(3.0, requires_grad=True)
    loss = fastkd.logit_mse_loss(student, teacher, sample_weight=weight, num_items=count)
    assert not loss.requires_grad
    assert reference.logit_mse_loss(student, teacher, sample_weight=weight).requires_grad


def gradients(case: Case, student: Tensors, teacher: Tensors) -> tuple[Tensor, Tensors]:
    student = leaves(student)
    loss = case.run(student, teacher)
    return loss.detach(), torch.autograd.grad(loss, student)


@each_case
@pytest.mark.parametrize(
    "dtypes",
    [
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float32),
        (torch.float32, torch.float16),
        (torch.bfloat16, torch.float64),
    ],
    ids=str,
)
def test_types_are_computed_in_float32_at_least(
    case: Case, dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    student, teacher = case.inputs(dtypes[0])[0], case.inputs(dtypes[1])[1]
    loss, grads = gradients(case, student, teacher)
    widened = [tuple(t.double() for t in side) for side in (student, teacher)]
    truth, true_grads = gradients(case, *widened)
    assert loss.dtype == (torch.float64 if torch.float64 in dtypes else torch.float32)
    assert relative_error(loss, truth) < 2 * LOSS_FLOOR
    for grad, true_grad in zip(grads, true_grads, strict=True):
        assert grad.dtype == dtypes[0]
        rounding = 0.0 if dtypes[0] == torch.float32 else torch.finfo(dtypes[0]).eps
        assert relative_error(grad, true_grad) < rounding + 2 * GRAD_FLOOR


@each_case_compiled
def test_compiled_is_eager(case: Case, backend: str) -> None:
    torch._dynamo.reset()
    student, teacher = case.inputs()
    loss, grads = gradients(case, student, teacher)

    @torch.compile(fullgraph=True, backend=backend)
    def compiled(student: Tensors, teacher: Tensors) -> Tensor:
        return case.run(student, teacher)

    student = leaves(student)
    value = compiled(student, teacher)
    torch.testing.assert_close(value, loss)
    torch.testing.assert_close(torch.autograd.grad(value, student), grads)


@each_case_compiled
def test_a_compiled_teacher_may_come_from_inference_mode(case: Case, backend: str) -> None:
    torch._dynamo.reset()
    student, teacher = case.inputs(torch.bfloat16)  # whose backward pass would keep the teacher
    loss, grads = gradients(case, student, teacher)
    with torch.inference_mode():
        teacher = tuple(t.clone() for t in teacher)
    compiled = torch.compile(case.run, fullgraph=True, backend=backend)
    student = leaves(student)
    value = compiled(student, teacher)
    torch.testing.assert_close(value, loss)
    torch.testing.assert_close(torch.autograd.grad(value, student), grads)


@each_case
def test_a_compiled_loss_is_transformed_and_exported_as_any(case: Case) -> None:
    torch._dynamo.reset()
    batches = [case.inputs(seed=seed) for seed in (0, 1)]
    students, teachers = (
        tuple(torch.stack(tensors) for tensors in zip(*side, strict=True))
        for side in zip(*batches, strict=True)
    )
    transformed = torch.func.vmap(torch.func.grad(case.run))
    compiled = torch.compile(transformed, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(students, teachers), transformed(students, teachers))

    class Distiller(torch.nn.Module):
        def forward(self, student: Tensors, teacher: Tensors) -> Tensor:
            return case.run(student, teacher)

    program = torch.export.export(Distiller(), batches[0])
    assert not any("fastkd" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(*batches[0]), case.run(*batches[0]))


def test_compiled_for_any_shape() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(fastkd.nst_loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in ((2, 4, 3, 3), (3, 5, 4, 6), (2, 40, 2, 2)):
        student, teacher = torch.randn(2, *shape)
        torch.testing.assert_close(compiled(student, teacher), fastkd.nst_loss(student, teacher))


@each_case
def test_vmap_and_grad_of_functorch(case: Case) -> None:
    batches = [case.inputs(seed=seed) for seed in (0, 1)]
    students, teachers = (
        tuple(torch.stack(tensors) for tensors in zip(*side, strict=True))
        for side in zip(*batches, strict=True)
    )
    results = [gradients(case, *batch) for batch in batches]
    grads, values = torch.func.vmap(torch.func.grad_and_value(case.run))(students, teachers)
    for i, (value, grad) in enumerate(results):
        torch.testing.assert_close(values[i], value)
        torch.testing.assert_close(tuple(g[i] for g in grads), grad)


@each_case
def test_autocast_changes_nothing(case: Case) -> None:
    student, teacher = case.inputs()
    loss, grads = gradients(case, student, teacher)
    with torch.autocast("cpu", torch.bfloat16):
        leaf = leaves(student)
        value = case.run(leaf, teacher)
    assert torch.equal(value, loss)
    assert all(map(torch.equal, torch.autograd.grad(value, leaf), grads))


@each_case
def test_the_teacher_may_come_from_inference_mode(case: Case) -> None:
    student, teacher = case.inputs()
    loss, grads = gradients(case, student, teacher)
    with torch.inference_mode():
        teacher = tuple(t.clone() for t in teacher)
        assert case.run(student, teacher).item() == loss.item()
    value, same_grads = gradients(case, student, teacher)
    assert value.item() == loss.item()
    assert all(map(torch.equal, same_grads, grads))


@pytest.mark.parametrize("strides", [(12, 4, 1), (1, 2, 6), (0, 4, 1)])
def test_opcheck_of_the_copy(strides: Shape) -> None:
    tensor = torch.randn(30).as_strided((2, 3, 4), strides)
    torch.library.opcheck(torch.ops.fastkd.copy.default, (tensor,))


@pytest.mark.parametrize("compiled", [False, True])
def test_weights_may_come_from_inference_mode(compiled: bool) -> None:
    torch._dynamo.reset()
    student, teacher = torch.randn(2, 3, 4)
    student.requires_grad_()
    with torch.inference_mode():
        weight = torch.rand(3)
    function = fastkd.logit_mse_loss
    if compiled:
        function = torch.compile(function, fullgraph=True)
    grads = [
        torch.autograd.grad(f(student, teacher, sample_weight=w), student)[0]
        for f, w in ((function, weight), (fastkd.logit_mse_loss, weight.clone()))
    ]
    torch.testing.assert_close(*grads)


@each_case
def test_layout_changes_nothing(case: Case) -> None:
    student, teacher = case.inputs()
    loss, grads = gradients(case, student, teacher)
    turned = [tuple(t.mT.contiguous().mT for t in side) for side in (student, teacher)]
    assert not turned[0][0].is_contiguous()
    value, same_grads = gradients(case, *turned)
    torch.testing.assert_close(value, loss)
    torch.testing.assert_close(same_grads, grads)


@each_case
def test_shapes_without_data(case: Case) -> None:
    student, teacher = (tuple(t.to("meta") for t in side) for side in case.inputs())
    if not case.weighted:
        assert case.run(student, teacher).shape == ()


@each_case
def test_nan_comes_out(case: Case) -> None:
    student, teacher = case.inputs()
    student[0].view(-1)[0] = math.nan
    assert case.run(student, teacher).isnan()
