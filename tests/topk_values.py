# SPDX-License-Identifier: Apache-2.0
"""Row losses and gradients of topk_kd_loss: by the kernels, and by the reference in float64."""

import math
from typing import Any

import torch
from torch import Tensor

from fastkd import topk_from_logits, topk_kd_loss

INF, NAN = math.inf, math.nan
TAILS = ("bucket", "renormalize", "renormalize_teacher", "truncate")


def rows(
    student: Tensor, values: Tensor, indices: Tensor, target: Tensor | None = None, **options: Any
) -> tuple[Tensor, Tensor]:
    """Row losses, and the gradient of their sum."""
    leaf = student.detach().clone().requires_grad_()
    loss = topk_kd_loss(leaf, values, indices, target, reduction="none", **options)
    (grad,) = torch.autograd.grad(loss.sum(), leaf)
    return loss.detach(), grad


def truth(
    student: Tensor, values: Tensor, indices: Tensor, target: Tensor | None = None, **options: Any
) -> tuple[Tensor, Tensor]:
    """The same by the reference in float64."""
    return rows(student.double(), values.double(), indices, target, **options)


def make(
    count: int = 5, shape: tuple[int, ...] = (6, 40), scale: float = 3.0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    student, teacher = scale * torch.randn(2, *shape)
    return student, teacher, *topk_from_logits(teacher, count)


def assert_close(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other.double(), rtol=2e-6, atol=1e-6)
