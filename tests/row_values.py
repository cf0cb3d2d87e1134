# SPDX-License-Identifier: Apache-2.0
"""Row losses and gradients of kd_loss: by the kernels as rows or maps, and by the reference."""

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import fastkd

INF = math.inf
ROWS_AND_MAPS = pytest.mark.parametrize("as_map", [False, True], ids=["rows", "maps"])


def kd(
    student: Tensor, teacher: Tensor, target: Tensor | None, as_map: bool, **options: object
) -> tuple[Tensor, Tensor]:
    """Row losses and gradient of (N, C) logits, given to the kernel as rows or as a map."""
    options = {"reduction": "none", **options}
    leaf = (student.t().contiguous().t() if as_map else student).detach().requires_grad_()
    loss = fastkd.kd_loss(
        leaf, teacher.t().contiguous().t() if as_map else teacher, target, **options
    )
    loss.sum().backward()
    assert leaf.grad is not None
    return loss.detach(), leaf.grad


def plain_values(
    student: Tensor, teacher: Tensor, target: Tensor | None, **options: object
) -> tuple[Tensor, Tensor]:
    """Row losses and gradient by the reference."""
    leaf = student.detach().requires_grad_()
    loss = fastkd.reference.kd_loss(leaf, teacher, target, reduction="none", **options)
    loss.sum().backward()
    assert leaf.grad is not None
    return loss.detach(), leaf.grad


def true_values(
    student: Tensor, teacher: Tensor, target: Tensor | None, **options: object
) -> tuple[Tensor, Tensor]:
    """Row losses and gradient by float64."""
    return plain_values(student.double(), teacher.double(), target, **options)


def masked_sides(student: Tensor, teacher: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Which side lacks classes, the last two never, and both sides' logits then."""
    width = student.shape[-1]
    for masked in ([0], [1, 3], list(range(width - 2))):  # the last masks whole chunks
        classes = torch.tensor(masked)
        for where in ("teacher", "both", "student"):
            yield (
                where,
                student if where == "teacher" else student.index_fill(-1, classes, -INF),
                teacher if where == "student" else teacher.index_fill(-1, classes, -INF),
            )
