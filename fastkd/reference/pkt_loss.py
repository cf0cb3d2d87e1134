# SPDX-License-Identifier: Apache-2.0
"""Probabilistic knowledge transfer, in plain PyTorch."""

from typing import Any

from torch import Tensor

from fastkd._feature_validation import check_embeddings
from fastkd._relational_options import PKTOptions
from fastkd.reference._relations import cosine_table, reduce_relations, same_dtype

NORM_EPS = 1e-12  # rows no longer have no direction


def pkt_loss(student_embeddings: Tensor, teacher_embeddings: Tensor, **options: Any) -> Tensor:
    """`fastkd.pkt_loss` in plain PyTorch, differentiable in both embeddings.

    Args:
        student_embeddings: as in `fastkd.pkt_loss`.
        teacher_embeddings: the same, but gets a gradient if it requires one.
        **options: the keyword options of `fastkd.pkt_loss`.

    Returns:
        The loss, float32, or float64 if one of the embeddings is.
    """
    checked = PKTOptions(**options)
    check_embeddings("pkt_loss", student_embeddings, teacher_embeddings)
    return evaluate(student_embeddings, teacher_embeddings, checked)


def evaluate(student_embeddings: Tensor, teacher_embeddings: Tensor, options: PKTOptions) -> Tensor:
    """The formula itself, on checked arguments."""
    student, teacher = same_dtype(student_embeddings, teacher_embeddings)
    q, p = _neighbours(student), _neighbours(teacher)
    loss = p * ((p + options.eps) / (q + options.eps)).log()
    return reduce_relations(loss, options.reduction)


def _neighbours(x: Tensor) -> Tensor:
    """Probabilities of the neighbours of each row."""
    kernel = (cosine_table(x, NORM_EPS) + 1).clamp_min(0) / 2  # rounding may leave less than -1
    return kernel / kernel.sum(-1, keepdim=True)
