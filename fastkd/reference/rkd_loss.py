# SPDX-License-Identifier: Apache-2.0
"""Relational distillation by distances and angles, in plain PyTorch."""

from typing import Any

from torch import Tensor

from fastkd._feature_validation import check_embeddings
from fastkd._relational_options import RKDOptions
from fastkd.reference._relations import same_dtype
from fastkd.reference.rkd_angle_loss import evaluate as evaluate_angle
from fastkd.reference.rkd_distance_loss import evaluate as evaluate_distance


def rkd_loss(student_embeddings: Tensor, teacher_embeddings: Tensor, **options: Any) -> Tensor:
    """`fastkd.rkd_loss` in plain PyTorch, differentiable in both embeddings.

    Args:
        student_embeddings: as in `fastkd.rkd_loss`.
        teacher_embeddings: the same, but gets a gradient if it requires one.
        **options: the keyword options of `fastkd.rkd_loss`.

    Returns:
        The loss, float32, or float64 if one of the embeddings is.
    """
    checked = RKDOptions(**options)
    check_embeddings("rkd_loss", student_embeddings, teacher_embeddings)
    return evaluate(student_embeddings, teacher_embeddings, checked)


def evaluate(student_embeddings: Tensor, teacher_embeddings: Tensor, options: RKDOptions) -> Tensor:
    """The formula itself, on checked arguments."""
    student, teacher = same_dtype(student_embeddings, teacher_embeddings)
    # A graph where no part is wanted.
    loss = student.mul(0).nan_to_num().sum() + teacher.mul(0).nan_to_num().sum()
    if options.distance_weight != 0:
        part = evaluate_distance(student, teacher, options.distance())
        loss = loss + options.distance_weight * part
    if options.angle_weight != 0:
        loss = loss + options.angle_weight * evaluate_angle(student, teacher, options.angle())
    return loss
