# SPDX-License-Identifier: Apache-2.0
"""Matching of logits by their squared difference, in plain PyTorch."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from fastkd._feature_options import LogitMSEOptions
from fastkd._reduction import reduce_rows, reduce_total
from fastkd._validation import check_weighted_logits
from fastkd.reference._precision import kept, same_dtype


def logit_mse_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    sample_weight: Tensor | None = None,
    num_items: int | Tensor | None = None,
    **options: Any,
) -> Tensor:
    """`fastkd.logit_mse_loss` in plain PyTorch, differentiable in both logits and in the weights.

    Args:
        student_logits: as in `fastkd.logit_mse_loss`.
        teacher_logits: as in `fastkd.logit_mse_loss`, but gets a gradient if it requires one.
        sample_weight: as in `fastkd.logit_mse_loss`, but gets a gradient if it requires one. Rows
            of weight 0 are not looked at: the gradient of such a weight lacks its row's own loss.
        num_items: as in `fastkd.logit_mse_loss`.
        **options: the other keyword options of `fastkd.logit_mse_loss`.

    Returns:
        The loss, float32, or float64 if one of the logits is.
    """
    checked = LogitMSEOptions(**options)
    check_weighted_logits(
        "logit_mse_loss",
        student_logits,
        teacher_logits,
        checked.dim,
        sample_weight,
        num_items,
        checked.reduction,
    )
    return evaluate(student_logits, teacher_logits, sample_weight, num_items, checked)


def evaluate(
    student_logits: Tensor,
    teacher_logits: Tensor,
    sample_weight: Tensor | None,
    num_items: float | Tensor | None,
    options: LogitMSEOptions,
) -> Tensor:
    """The formula itself, on checked arguments."""
    student, teacher = same_dtype(student_logits, teacher_logits)
    rows = student.select(options.dim, 0)
    batch_size = rows.shape[0] if rows.ndim else 1
    if sample_weight is None and options.reduction != "none" and not options.zero_mean:
        # All rows weigh the same: torch's fused sum reads the logits once.
        total = mse_loss(student, kept(teacher), reduction="sum") / student.shape[options.dim]
        return reduce_total(total, rows.numel(), options.reduction, batch_size, num_items)
    weight = torch.ones_like(rows)
    if sample_weight is not None:
        weight = kept(sample_weight).to(student.dtype)
        # Rows that do not count may hold anything, NaN too: neither value nor gradient sees them.
        ignored = (weight == 0).unsqueeze(options.dim)
        student = student.masked_fill(ignored, 0)
        teacher = teacher.masked_fill(ignored, 0)
    if options.zero_mean and rows.numel():  # var warns of no rows
        row_loss = (student - teacher).var(options.dim, correction=0)
    else:
        row_loss = mse_loss(student, kept(teacher), reduction="none").mean(options.dim)
    return reduce_rows(weight * row_loss, weight, options.reduction, batch_size, num_items)
