# SPDX-License-Identifier: Apache-2.0
"""Relational distillation by angles, in plain PyTorch."""

from typing import Any

from torch import Tensor

from fastkd._feature_validation import check_embeddings
from fastkd._relational_options import RKDAngleOptions
from fastkd.reference._relations import compare, cosine_table, reduce_relations, same_dtype


def rkd_angle_loss(
    student_embeddings: Tensor, teacher_embeddings: Tensor, **options: Any
) -> Tensor:
    """`fastkd.rkd_angle_loss` in plain PyTorch, differentiable in both embeddings.

    It holds N x N x D and N x N x N numbers.

    Args:
        student_embeddings: as in `fastkd.rkd_angle_loss`.
        teacher_embeddings: the same, but gets a gradient if it requires one.
        **options: the keyword options of `fastkd.rkd_angle_loss`.

    Returns:
        The loss, float32, or float64 if one of the embeddings is.
    """
    checked = RKDAngleOptions(**options)
    check_embeddings("rkd_angle_loss", student_embeddings, teacher_embeddings)
    return evaluate(student_embeddings, teacher_embeddings, checked)


def evaluate(
    student_embeddings: Tensor, teacher_embeddings: Tensor, options: RKDAngleOptions
) -> Tensor:
    """The formula itself, on checked arguments."""
    student, teacher = same_dtype(student_embeddings, teacher_embeddings)
    loss = compare(
        _cosines(student, options.eps),
        _cosines(teacher, options.eps),
        options.criterion,
        options.beta,
    )
    return reduce_relations(loss, options.reduction)


def _cosines(x: Tensor, eps: float) -> Tensor:
    """Cosine at vertex a between b and c. [N, N, N], a first."""
    arms = x.unsqueeze(0) - x.unsqueeze(1)  # from a to b
    return cosine_table(arms, eps)
