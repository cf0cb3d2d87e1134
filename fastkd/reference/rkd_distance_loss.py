# SPDX-License-Identifier: Apache-2.0
"""Relational distillation by distances, in plain PyTorch."""

from typing import Any

from torch import Tensor

from fastkd._relational_options import RKDDistanceOptions
from fastkd._validation import check_embeddings
from fastkd.reference._relations import (
    compare,
    on_diagonal,
    reduce_relations,
    same_dtype,
    squared_distances,
)


def rkd_distance_loss(
    student_embeddings: Tensor, teacher_embeddings: Tensor, **options: Any
) -> Tensor:
    """`fastkd.rkd_distance_loss` in plain PyTorch, differentiable in both embeddings.

    Args:
        student_embeddings: as in `fastkd.rkd_distance_loss`.
        teacher_embeddings: the same, but gets a gradient if it requires one.
        **options: the keyword options of `fastkd.rkd_distance_loss`.

    Returns:
        The loss, float32, or float64 if one of the embeddings is.
    """
    checked = RKDDistanceOptions(**options)
    check_embeddings("rkd_distance_loss", student_embeddings, teacher_embeddings)
    return evaluate(student_embeddings, teacher_embeddings, checked)


def evaluate(
    student_embeddings: Tensor, teacher_embeddings: Tensor, options: RKDDistanceOptions
) -> Tensor:
    """The formula itself, on checked arguments."""
    student, teacher = same_dtype(student_embeddings, teacher_embeddings)
    loss = compare(
        _relative_distances(student, options),
        _relative_distances(teacher, options),
        options.criterion,
        options.beta,
    )
    return reduce_relations(loss, options.reduction)


def _relative_distances(x: Tensor, options: RKDDistanceOptions) -> Tensor:
    square = squared_distances(x)
    distance = square.masked_fill(square <= options.eps, options.eps)
    if not options.squared:
        distance = distance.sqrt()
    distance = distance.masked_fill(on_diagonal(distance), 0)
    pairs = len(x) * (len(x) - 1)
    if pairs == 0:
        return distance
    return distance / (distance.sum() / pairs)
