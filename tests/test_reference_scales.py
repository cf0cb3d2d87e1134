# SPDX-License-Identifier: Apache-2.0
"""References of large numbers, whose squares and powers leave float32.

Truth is the same formula in float64 on the same rounded inputs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from tolerance import relative_error
from torch import Tensor

from fastkd import reference

Loss = Callable[[Tensor, Tensor], Tensor]
Shape = tuple[int, ...]
EMBEDDINGS = (1e8, 1e15, 1e20, 1e36)
MAPS = (3e3, 1e14, 1e20, 1e36)


@dataclass(frozen=True)
class Case:
    """A loss that does not change where all its numbers are multiplied."""

    loss: str
    options: Mapping[str, Any] = field(default_factory=dict)
    shapes: tuple[Shape, Shape] = ((9, 13), (9, 7))
    scales: tuple[float, ...] = EMBEDDINGS
    error: float = 2e-6

    def __str__(self) -> str:
        words = [self.loss, *(f"{name}={value}" for name, value in self.options.items())]
        return "-".join([*words, "x".join(map(str, self.shapes[0]))])

    def inputs(self, scale: float) -> tuple[Tensor, Tensor]:
        """Of the student and the teacher."""
        student, teacher = (scale * torch.randn(shape) for shape in self.shapes)
        return student, teacher

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        function: Callable[..., Tensor] = getattr(reference, self.loss)
        return function(student, teacher, **self.options)


def maps(loss: str, student: Shape, teacher: Shape, error: float = 2e-6, **options: Any) -> Case:
    return Case(loss, options, (student, teacher), MAPS, error)


CASES = (
    Case("rkd_distance_loss"),
    Case("rkd_distance_loss", {"squared": True}),
    Case("rkd_angle_loss"),
    Case("rkd_loss"),
    Case("similarity_preserving_loss"),
    Case("cosine_similarity_loss"),
    Case("correlation_loss"),
    Case("pkt_loss"),
    *(
        # A power multiplies the error of what it is taken of by p, in every derivative.
        maps("attention_transfer_loss", (2, 4, 5, 5), (2, 3, 5, 5), 2e-6 * max(p, 1) ** 2, p=p)
        for p in (0.5, 1.0, 1.5, 2.0, 4.0, 8.0)
    ),
    # Over the channels and over the positions. Their squares have to fit, which spares passes over
    # the maps of those who train with it: there is no kernel.
    Case("nst_loss", shapes=((2, 4, 5, 5), (2, 3, 5, 5)), scales=(3e3, 1e14, 1e17)),
    Case("nst_loss", shapes=((2, 16, 2, 2), (2, 9, 2, 2)), scales=(3e3, 1e14, 1e17)),
)
each_case = pytest.mark.parametrize("case", CASES, ids=str)


def derivatives(loss: Loss, student: Tensor, teacher: Tensor, direction: Tensor) -> list[Tensor]:
    """Loss, gradient, gradient of a graph that is kept for more, and its slope in a direction."""
    student = student.detach().clone().requires_grad_()
    value = loss(student, teacher)
    (grad,) = torch.autograd.grad(value, student, retain_graph=True)
    (same,) = torch.autograd.grad(value, student, create_graph=True)
    (second,) = torch.autograd.grad((same * direction).sum(), student)
    return [value.detach(), grad, same.detach(), second]


@each_case
def test_derivatives_of_large_numbers(case: Case) -> None:
    for scale in case.scales:
        student, teacher = case.inputs(scale)
        arguments = student, teacher, scale * torch.randn_like(student)
        truth = derivatives(case, *(t.double() for t in arguments))
        for ours, true in zip(derivatives(case, *arguments), truth, strict=True):
            assert relative_error(ours, true) < case.error, scale


@each_case
def test_one_large_side(case: Case) -> None:
    for scales in ((1.0, case.scales[-1]), (case.scales[-1], 1.0)):
        student, teacher = (case.inputs(scale)[i] for i, scale in enumerate(scales))
        arguments = student, teacher, scales[0] * torch.randn_like(student)
        truth = derivatives(case, *(t.double() for t in arguments))
        for ours, true in zip(derivatives(case, *arguments), truth, strict=True):
            assert relative_error(ours, true) < case.error, scales


@each_case
def test_ordinary_numbers_beside_large_ones_in_vmap(case: Case) -> None:
    pairs = [case.inputs(scale) for scale in (1.0, *case.scales)]
    student, teacher = (torch.stack(tensors) for tensors in zip(*pairs, strict=True))
    grads, values = torch.func.vmap(torch.func.grad_and_value(case))(student, teacher)
    for pair, grad, value in zip(pairs, grads, values, strict=True):
        true_grad, true_value = torch.func.grad_and_value(case)(*(t.double() for t in pair))
        assert relative_error(value, true_value) < case.error
        assert relative_error(grad, true_grad) < case.error


# Of each loss the last case, but of rkd_loss: it is the sum of two others.
COMPILED = {case.loss: case for case in CASES if case.loss != "rkd_loss"}


@pytest.mark.parametrize("case", COMPILED.values(), ids=str)
def test_compiled(case: Case) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(case.__call__, fullgraph=True)
    for scale in (1.0, case.scales[-1]):
        pair = case.inputs(scale)
        student = pair[0].requires_grad_()
        value = compiled(*pair)
        (grad,) = torch.autograd.grad(value, student)
        true_grad, true_value = torch.func.grad_and_value(case)(*(t.double() for t in pair))
        assert relative_error(value, true_value) < case.error
        assert relative_error(grad, true_grad) < case.error


@each_case
def test_zeros_beside_large_numbers(case: Case) -> None:
    student, teacher = case.inputs(case.scales[-1])
    student[1], teacher[0] = 0, 0
    arguments = student, teacher, torch.ones_like(student)
    for ours in derivatives(case, *arguments):
        assert ours.isfinite().all()
    truth = derivatives(case, *(t.double() for t in arguments))
    assert relative_error(derivatives(case, *arguments)[0], truth[0]) < case.error
