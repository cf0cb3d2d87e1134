# SPDX-License-Identifier: Apache-2.0
"""Error of loss and gradients against the reference in float64 on the same rounded inputs."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from cases import Geometry, Inputs, LossCase
from torch import Tensor

from benchmarks.providers import Step, reference_step

MOST_NUMBERS = 1 << 28  # that the float64 reference with autograd holds: 2 GiB
# Of tensors like the student's it holds about a dozen.
MOST_ELEMENTS = MOST_NUMBERS // 16


def error_geometry(case: LossCase, geometry: Geometry) -> Geometry:
    """The geometry, or one of fewer rows where float64 would take too much memory and time."""
    shape = list(geometry.shape)
    rows_dim = 1 if geometry.dim % len(shape) == 0 else 0
    while _numbers(case, geometry) > MOST_NUMBERS and shape[rows_dim] > 1:
        shape[rows_dim] //= 2
        geometry = dataclasses.replace(geometry, shape=tuple(shape))
    return geometry


def _numbers(case: LossCase, geometry: Geometry) -> int:
    if case.reference_numbers is not None:
        return case.reference_numbers(geometry)
    return MOST_NUMBERS // MOST_ELEMENTS * torch.Size(geometry.shape).numel()


def errors(
    case: LossCase, inputs: Inputs, steps: Mapping[str, Step]
) -> dict[str, tuple[float, float]]:
    """Relative error of the loss, and the gradient's largest error over its largest value.

    Where several tensors are learned, the worst of their gradients tells.
    """
    true_loss, *true_grads = reference_step(case, inputs)()
    found: dict[str, tuple[float, float]] = {}
    for name, step in steps.items():
        loss, *grads = step()
        grad_error = max(map(_relative, grads, true_grads))
        found[name] = (_relative(loss, true_loss), grad_error)
    return found


def is_batch_mean(options: Mapping[str, Any]) -> bool:
    """Whether a loss is the mean of the losses of parts of its first dimension."""
    return options.get("reduction") == "batchmean"


def sliced_errors(
    case: LossCase, inputs: Inputs, steps: Mapping[str, Step], most_elements: int = MOST_ELEMENTS
) -> tuple[dict[str, tuple[float, float]], int]:
    """The same for inputs of any size, and how much of the first dimension the gradient's covers.

    The true loss is put together from slices of the first dimension, the gradient is compared on
    the first slice.
    """
    assert is_batch_mean(case.options), f"{case} is no mean over the first dimension"
    assert inputs.learned == 1, f"{case} has weights, which no slice of the rows is enough for"
    (student,) = inputs.leaves
    batch = student.shape[0]
    step = max(1, batch * most_elements // student.numel())
    weights = [len(student[begin : begin + step]) / batch for begin in range(0, batch, step)]
    first = _slice(inputs, 0, step)
    first_loss, first_grad = reference_step(case, first)()
    true_loss = first_loss.detach() * weights[0]
    for index, weight in enumerate(weights[1:], 1):
        part = _slice(inputs, index * step, (index + 1) * step).to(torch.float64)
        with torch.no_grad():
            true_loss += case.run_reference(part) * weight
    true_grad = first_grad * weights[0]
    found: dict[str, tuple[float, float]] = {}
    for name, call in steps.items():
        loss, grad = call()
        found[name] = (_relative(loss, true_loss), _relative(grad[:step], true_grad))
    return found, min(step, batch)


def _slice(inputs: Inputs, begin: int, end: int) -> Inputs:
    return inputs.map(lambda tensor: tensor.detach()[begin:end])


def _relative(value: Tensor, truth: Tensor) -> float:
    difference = value.detach().to(torch.float64).sub_(truth.detach()).abs_().max()
    return float(difference / truth.detach().abs().max())
