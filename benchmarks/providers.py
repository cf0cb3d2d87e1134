# SPDX-License-Identifier: Apache-2.0
"""The same loss by several hands: what is timed, weighed and checked."""

from collections.abc import Callable, Collection

import torch
from cases import Inputs, LossCase
from torch import Tensor

import fastkd
from benchmarks.peers import PEERS, peer_function

PROVIDERS = ("fastkd", "eager", "torch.compile")
FLOOR = "floor"  # timed beside them where a case has one, and no loss

# The loss, then the gradients of all that is learned, of one forward and backward.
Step = Callable[[], tuple[Tensor, ...]]


def make_steps(
    case: LossCase, inputs: Inputs, names: Collection[str] = PROVIDERS
) -> dict[str, Step]:
    """One call per provider on shared inputs; torch.compile has compiled when they are timed."""
    inputs = inputs.with_gradient()
    steps = {name: make_step(case, inputs, make_function(case, name)) for name in names}
    if "torch.compile" in steps:
        steps["torch.compile"]()
    return steps


def make_function(case: LossCase, name: str) -> Callable[..., Tensor]:
    """The loss by one provider; torch.compile forgets what it compiled before."""
    if name == "fastkd":
        function: Callable[..., Tensor] = getattr(fastkd, case.loss)
        return function
    if name in PEERS:
        return peer_function(name, case)
    assert case.eager is not None, f"{case} has no eager code to compare with"
    if name == "torch.compile":
        torch._dynamo.reset()
        return torch.compile(case.eager, dynamic=False)
    return case.eager


def make_step(case: LossCase, inputs: Inputs, function: Callable[..., Tensor]) -> Step:
    """One call of a provider's function on inputs whose learned tensors want a gradient."""
    keywords = {**inputs.keywords, **case.options}
    return _step(lambda: function(*case.arguments(inputs), **keywords), inputs)


def reference_step(case: LossCase, inputs: Inputs) -> Step:
    """Loss and gradients by the reference in float64: the truth."""
    inputs = inputs.to(torch.float64).with_gradient()
    return _step(lambda: case.run_reference(inputs), inputs)


def _step(loss_of: Callable[[], Tensor], inputs: Inputs) -> Step:
    def step() -> tuple[Tensor, ...]:
        loss = loss_of()
        # Not loss.backward(): adding to the leaves' grad would be timed too.
        return loss, *torch.autograd.grad(loss, inputs.leaves)

    return step
