# SPDX-License-Identifier: Apache-2.0
"""Error of loss and gradient against the reference in float64 on the same rounded inputs."""

import dataclasses
from collections.abc import Mapping

import torch
from cases import Geometry, Inputs, LossCase
from torch import Tensor

from benchmarks.providers import Step, reference_step

# The float64 reference with autograd holds about a dozen tensors of this many elements: 1.6 GB.
MOST_ELEMENTS = 1 << 24


def error_geometry(geometry: Geometry) -> Geometry:
    """The geometry, or one of fewer rows where float64 would take too much memory and time."""
    elements = torch.Size(geometry.shape).numel()
    if elements <= MOST_ELEMENTS:
        return geometry
    shape = list(geometry.shape)
    rows_dim = 1 if geometry.dim % len(shape) == 0 else 0
    shape[rows_dim] = max(1, shape[rows_dim] * MOST_ELEMENTS // elements)
    return dataclasses.replace(geometry, shape=tuple(shape))


def errors(
    case: LossCase, inputs: Inputs, steps: Mapping[str, Step]
) -> dict[str, tuple[float, float]]:
    """Relative error of the loss, and the gradient's largest error over its largest value."""
    true_loss, true_grad = reference_step(case, inputs)()
    found: dict[str, tuple[float, float]] = {}
    for name, step in steps.items():
        loss, grad = step()
        found[name] = (_relative(loss, true_loss), _relative(grad, true_grad))
    return found


def _relative(value: Tensor, truth: Tensor) -> float:
    difference = value.detach().to(torch.float64).sub_(truth.detach()).abs_().max()
    return float(difference / truth.detach().abs().max())
