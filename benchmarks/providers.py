# SPDX-License-Identifier: Apache-2.0
"""The same loss by several hands: what is timed, weighed and checked."""

from collections.abc import Callable, Collection
from typing import Any

import torch
from cases import Inputs, LossCase
from torch import Tensor

import fastkd

PROVIDERS = ("fastkd", "eager", "torch.compile")

# Loss and gradient of one forward and backward.
Step = Callable[[], tuple[Tensor, Tensor]]


def make_steps(
    case: LossCase, inputs: Inputs, names: Collection[str] = PROVIDERS
) -> dict[str, Step]:
    """One call per provider on shared inputs; torch.compile forgets what it compiled before."""
    inputs = with_gradient(inputs)
    steps: dict[str, Step] = {}
    for name in names:
        keywords = {**inputs.keywords, **case.options}
        if name == "fastkd":
            steps[name] = _step(_call(getattr(fastkd, case.loss), inputs, keywords), inputs)
            continue
        assert case.eager is not None, f"{case} has no eager code to compare with"
        function = case.eager
        if name == "torch.compile":
            torch._dynamo.reset()
            function = torch.compile(function, dynamic=False)
        steps[name] = _step(_call(function, inputs, keywords), inputs)
    return steps


def reference_step(case: LossCase, inputs: Inputs) -> Step:
    """Loss and gradient by the reference in float64: the truth."""
    inputs = with_gradient(inputs.to(torch.float64))
    return _step(lambda: case.run_reference(inputs), inputs)


def with_gradient(inputs: Inputs) -> Inputs:
    """The same values; the first tensor is a leaf that wants a gradient."""
    student, *others = inputs.tensors
    return Inputs((student.detach().requires_grad_(), *others), inputs.keywords)


def _call(
    function: Callable[..., Tensor], inputs: Inputs, keywords: dict[str, Any]
) -> Callable[[], Tensor]:
    return lambda: function(*inputs.tensors, **keywords)


def _step(loss_of: Callable[[], Tensor], inputs: Inputs) -> Step:
    student = inputs.tensors[0]

    def step() -> tuple[Tensor, Tensor]:
        loss = loss_of()
        # Not loss.backward(): adding to student.grad would be timed too.
        (grad,) = torch.autograd.grad(loss, student)
        return loss, grad

    return step
