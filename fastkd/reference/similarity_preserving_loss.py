# SPDX-License-Identifier: Apache-2.0
"""Similarity-preserving distillation, in plain PyTorch."""

from typing import Any

from torch import Tensor

from fastkd._feature_validation import check_features
from fastkd._relational_options import SimilarityPreservingOptions
from fastkd.reference._relations import gram, inverse_root, reduce_relations, same_dtype
from fastkd.reference._scale import near_one


def similarity_preserving_loss(
    student_features: Tensor, teacher_features: Tensor, **options: Any
) -> Tensor:
    """`fastkd.similarity_preserving_loss` in plain PyTorch, differentiable in both features.

    Args:
        student_features: as in `fastkd.similarity_preserving_loss`.
        teacher_features: the same, but gets a gradient if it requires one.
        **options: the keyword options of `fastkd.similarity_preserving_loss`.

    Returns:
        The loss, float32, or float64 if one of the features is.
    """
    checked = SimilarityPreservingOptions(**options)
    check_features("similarity_preserving_loss", student_features, teacher_features, 2, "(N, ...)")
    return evaluate(student_features, teacher_features, checked)


def evaluate(
    student_features: Tensor, teacher_features: Tensor, options: SimilarityPreservingOptions
) -> Tensor:
    """The formula itself, on checked arguments."""
    student, teacher = same_dtype(student_features, teacher_features)
    difference = _rows(student.flatten(1), options.eps) - _rows(teacher.flatten(1), options.eps)
    return reduce_relations(difference.square(), options.reduction)


def _rows(x: Tensor, eps: float) -> Tensor:
    """The rows of the Gram matrix over their norms."""
    x, power = near_one(x, (0, 1))
    table, row_power = near_one(gram(x), 1)
    square = table.square().sum(1, keepdim=True)
    return table * inverse_root(square, eps / power / power / row_power)
