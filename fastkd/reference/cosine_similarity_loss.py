# SPDX-License-Identifier: Apache-2.0
"""The table of cosines, in plain PyTorch."""

from typing import Any

from torch import Tensor

from fastkd._feature_validation import check_embeddings
from fastkd._relational_options import CosineSimilarityOptions
from fastkd.reference._relations import compare, cosine_table, reduce_relations, same_dtype


def cosine_similarity_loss(
    student_embeddings: Tensor, teacher_embeddings: Tensor, **options: Any
) -> Tensor:
    """`fastkd.cosine_similarity_loss` in plain PyTorch, differentiable in both embeddings.

    Args:
        student_embeddings: as in `fastkd.cosine_similarity_loss`.
        teacher_embeddings: the same, but gets a gradient if it requires one.
        **options: the keyword options of `fastkd.cosine_similarity_loss`.

    Returns:
        The loss, float32, or float64 if one of the embeddings is.
    """
    checked = CosineSimilarityOptions(**options)
    check_embeddings("cosine_similarity_loss", student_embeddings, teacher_embeddings)
    return evaluate(student_embeddings, teacher_embeddings, checked)


def evaluate(
    student_embeddings: Tensor, teacher_embeddings: Tensor, options: CosineSimilarityOptions
) -> Tensor:
    """The formula itself, on checked arguments."""
    student, teacher = same_dtype(student_embeddings, teacher_embeddings)
    loss = compare(
        cosine_table(student, options.eps),
        cosine_table(teacher, options.eps),
        options.criterion,
        options.beta,
    )
    return reduce_relations(loss, options.reduction)
