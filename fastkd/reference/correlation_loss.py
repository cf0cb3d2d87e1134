# SPDX-License-Identifier: Apache-2.0
"""Correlation congruence, in plain PyTorch."""

from typing import Any

import torch
from torch import Tensor

from fastkd._feature_validation import check_embeddings
from fastkd._relational_options import CorrelationOptions
from fastkd.reference._relations import cosine_table, reduce_relations, same_dtype


def correlation_loss(
    student_embeddings: Tensor, teacher_embeddings: Tensor, **options: Any
) -> Tensor:
    """`fastkd.correlation_loss` in plain PyTorch, differentiable in both embeddings.

    Args:
        student_embeddings: as in `fastkd.correlation_loss`.
        teacher_embeddings: the same, but gets a gradient if it requires one.
        **options: the keyword options of `fastkd.correlation_loss`.

    Returns:
        The loss, float32, or float64 if one of the embeddings is.
    """
    checked = CorrelationOptions(**options)
    check_embeddings("correlation_loss", student_embeddings, teacher_embeddings)
    return evaluate(student_embeddings, teacher_embeddings, checked)


def evaluate(
    student_embeddings: Tensor, teacher_embeddings: Tensor, options: CorrelationOptions
) -> Tensor:
    """The formula itself, on checked arguments."""
    student, teacher = same_dtype(student_embeddings, teacher_embeddings)
    difference = _kernel(student, options) - _kernel(teacher, options)
    return reduce_relations(difference.square(), options.reduction)


def _kernel(x: Tensor, options: CorrelationOptions) -> Tensor:
    return torch.exp(2 * options.gamma * (cosine_table(x, options.eps) - 1))
