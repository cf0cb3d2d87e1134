# SPDX-License-Identifier: Apache-2.0
"""What the tests of the ways of a call share: plain cases, leaves, gradients of the reference."""

from collections.abc import Callable

import pytest
import torch
from cases import KD_LOSS, PLAIN_BATCH_CASES, PLAIN_CASES, Inputs, LossCase
from torch import Tensor

every_case = pytest.mark.parametrize("case", PLAIN_CASES, ids=str)
kd_case = pytest.mark.parametrize("case", [KD_LOSS], ids=str)
every_batch_case = pytest.mark.parametrize("case", PLAIN_BATCH_CASES, ids=str)


def leaf(inputs: Inputs) -> Tensor:
    """The tensor that gets the gradient, as a fresh leaf."""
    return inputs.tensors[0].detach().clone().requires_grad_()


def loss_of(case: LossCase, inputs: Inputs) -> Callable[[Tensor], Tensor]:
    """The loss as a function of its first tensor."""
    return lambda first: case.run(Inputs((first, *inputs.tensors[1:]), inputs.keywords))


def reference_grad(case: LossCase, inputs: Inputs) -> Tensor:
    """The reference's gradient."""
    first = leaf(inputs)
    loss = case.run_reference(Inputs((first, *inputs.tensors[1:]), inputs.keywords))
    return torch.autograd.grad(loss, first)[0]


def true_grad(case: LossCase, inputs: Inputs) -> Tensor:
    """The same in float64."""
    return reference_grad(case, inputs.to(torch.float64))
