# SPDX-License-Identifier: Apache-2.0
"""Relational distillation by distances, in plain PyTorch."""

from typing import Any

import torch
from torch import Tensor

from fastkd._feature_validation import check_embeddings
from fastkd._relational_options import RKDDistanceOptions
from fastkd.reference._relations import compare, on_diagonal, reduce_relations, same_dtype
from fastkd.reference._scale import near_one


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
    """Distances over their mean. [N, N]."""
    # By differences: inner products would cancel for near pairs.
    difference, power = near_one(x.unsqueeze(1) - x.unsqueeze(0), -1)
    power, square = power.squeeze(-1), difference.square().sum(-1)
    unit = power.amax().clamp_min(options.eps**0.5)  # distances are counted in it
    shortest = options.eps**0.5 / unit
    near = square <= options.eps / power / power
    square = square.masked_fill(near, 1)
    if options.squared:
        distance, shortest = (power / unit).square() * square, shortest.square()
    else:
        distance = power / unit * square.sqrt()
    distance = torch.where(near, shortest, distance).masked_fill(on_diagonal(distance), 0)
    pairs = len(x) * (len(x) - 1)
    if pairs == 0:
        return distance + x.mul(0).sum()  # NaN stays
    return distance / (distance.sum() / pairs)
