# SPDX-License-Identifier: Apache-2.0
"""Soft targets at a temperature, in plain PyTorch."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from fastkd._options import KDLossInputs, KDLossOptions
from fastkd._reduction import reduce_rows
from fastkd._validation import check_kd_loss


def kd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor | None = None,
    *,
    sample_weight: Tensor | None = None,
    num_items: int | Tensor | None = None,
    **options: Any,
) -> Tensor:
    """`fastkd.kd_loss` in plain PyTorch, differentiable in both logits and in the weights.

    Args:
        student_logits: as in `fastkd.kd_loss`.
        teacher_logits: as in `fastkd.kd_loss`, but gets a gradient if it requires one.
        target: as in `fastkd.kd_loss`.
        sample_weight: as in `fastkd.kd_loss`, but gets a gradient if it requires one. Rows
            of weight 0 are not looked at: the gradient of such a weight lacks its row's own loss.
        num_items: as in `fastkd.kd_loss`.
        **options: the other keyword options of `fastkd.kd_loss`.

    Returns:
        The loss, float32, or float64 if one of the logits is.
    """
    inputs = KDLossInputs(student_logits, teacher_logits, target, sample_weight, num_items)
    checked = KDLossOptions(**options)
    check_kd_loss(inputs, checked)
    return evaluate(inputs, checked)


def evaluate(inputs: KDLossInputs, options: KDLossOptions) -> Tensor:
    """The formula itself, on checked arguments."""
    student_logits, teacher_logits, target, sample_weight, num_items = inputs
    dtype = torch.promote_types(
        torch.promote_types(student_logits.dtype, teacher_logits.dtype), torch.float32
    )
    student = student_logits.movedim(options.dim, -1).to(dtype)
    teacher = teacher_logits.movedim(options.dim, -1).to(dtype)

    weight = student.new_ones(student.shape[:-1])
    if sample_weight is not None:
        weight = sample_weight.to(dtype)
    if target is not None:
        weight = weight.masked_fill(target == options.ignore_index, 0)
    if target is not None or sample_weight is not None:
        # Rows that do not count may hold anything, NaN too: neither value nor gradient sees them.
        ignored = (weight == 0).unsqueeze(-1)
        student = student.masked_fill(ignored, 0)
        teacher = teacher.masked_fill(ignored, 0)

    row_loss = torch.zeros_like(weight)
    alpha = 1.0 if target is None else options.alpha
    if alpha != 0:  # a term that weighs 0 may be infinite
        row_loss = row_loss + alpha * options.soft_factor * _forward_kl(student, teacher, options)
    if target is not None and alpha != 1:
        row_loss = row_loss + (1 - alpha) * _cross_entropy(student, target, options)
    batch_size = row_loss.shape[0] if row_loss.ndim else 1
    return reduce_rows(weight * row_loss, weight, options.reduction, batch_size, num_items)


def _forward_kl(student: Tensor, teacher: Tensor, options: KDLossOptions) -> Tensor:
    shared = min(student.shape[-1], teacher.shape[-1])  # differ only with common_vocab
    log_q = log_softmax(student[..., :shared] / options.temperature, -1)
    log_p = log_softmax(teacher[..., :shared] / options.temperature, -1)
    p = log_p.exp()
    # p = 0 adds 0 whatever q is, and no NaN of (-inf) - (-inf) reaches a gradient.
    absent = p == 0
    difference = log_p.masked_fill(absent, 0) - log_q.masked_fill(absent, 0)
    return (p * difference).sum(-1)


def _cross_entropy(student: Tensor, target: Tensor, options: KDLossOptions) -> Tensor:
    log_q = log_softmax(student, -1)
    label = target.masked_fill(target == options.ignore_index, 0)
    smoothing = options.label_smoothing
    loss = torch.zeros_like(log_q[..., 0])
    if smoothing != 1:
        loss = loss - (1 - smoothing) * log_q.gather(-1, label.unsqueeze(-1)).squeeze(-1)
    if smoothing != 0:
        loss = loss - smoothing * log_q.mean(-1)
    return loss
