# SPDX-License-Identifier: Apache-2.0
"""Soft targets of K classes a row, in plain PyTorch."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from fastkd._options import KDLossInputs, TopKKDLossOptions
from fastkd._topk_validation import check_topk_kd_loss
from fastkd.reference._rows import class_of, cross_entropy, kl_divergence, rows_of


def topk_kd_loss(
    student_logits: Tensor,
    teacher_values: Tensor,
    teacher_indices: Tensor,
    target: Tensor | None = None,
    *,
    sample_weight: Tensor | None = None,
    num_items: int | Tensor | None = None,
    **options: Any,
) -> Tensor:
    """`fastkd.topk_kd_loss` in plain PyTorch, differentiable in logits, values and weights.

    Args:
        student_logits: as in `fastkd.topk_kd_loss`.
        teacher_values: as in `fastkd.topk_kd_loss`, but get a gradient if they require one.
        teacher_indices: as in `fastkd.topk_kd_loss`; neither range nor repetitions are checked.
        target: as in `fastkd.topk_kd_loss`.
        sample_weight: as in `fastkd.topk_kd_loss`, but gets a gradient if it requires one. Rows
            of weight 0 are not looked at: the gradient of such a weight lacks its row's own loss.
        num_items: as in `fastkd.topk_kd_loss`.
        **options: the other keyword options of `fastkd.topk_kd_loss`.

    Returns:
        The loss, float32, or float64 if the logits or the values are.
    """
    inputs = KDLossInputs(
        student_logits, teacher_values, target, sample_weight, num_items, teacher_indices
    )
    checked = TopKKDLossOptions(**options)
    check_topk_kd_loss(inputs, checked)
    return evaluate(inputs, checked)


def evaluate(inputs: KDLossInputs, options: TopKKDLossOptions) -> Tensor:
    """The formula itself, on checked arguments."""
    assert inputs.indices is not None
    student, values, weight = rows = rows_of(inputs, options)
    index = inputs.indices.movedim(options.dim, -1).to(torch.int64)
    # Rows that do not count may name anything.
    unnamed = (values == -math.inf) | (weight == 0).unsqueeze(-1)
    row_loss = torch.zeros_like(weight)
    alpha = 1.0 if inputs.target is None else options.alpha
    if alpha != 0:  # a term that weighs 0 may be infinite
        divergence = _divergence(student, values, index, unnamed, options)
        row_loss = row_loss + alpha * options.soft_factor * divergence
    if inputs.target is not None and alpha != 1:
        label = class_of(inputs.target, options.ignore_index)
        hard = cross_entropy(student, label, options.label_smoothing)
        row_loss = row_loss + (1 - alpha) * hard
    return rows.reduce(row_loss, inputs, options)


def _divergence(
    student: Tensor, values: Tensor, index: Tensor, unnamed: Tensor, options: TopKKDLossOptions
) -> Tensor:
    scaled = student / options.temperature
    logits = scaled.gather(-1, index.masked_fill(unnamed, 0)).masked_fill(unnamed, -math.inf)
    nothing = unnamed.all(-1, keepdim=True)
    of_logits = options.teacher_is == "logits"
    # Rounding may have left log 1 above 0.
    log_p = values / options.temperature if of_logits else values.clamp(max=0)
    log_p = log_p.masked_fill(unnamed, -math.inf)
    if options.tail in ("renormalize", "renormalize_teacher"):
        log_p = log_softmax(log_p.masked_fill(nothing, 0), -1).masked_fill(nothing, -math.inf)
    if options.tail == "renormalize":
        lacks_all = (logits == -math.inf).all(-1, keepdim=True)
        log_q = log_softmax(logits.masked_fill(lacks_all, 0), -1)
        log_q = log_q.masked_fill(lacks_all, -math.inf)
        spoiled = (student.isnan() | student.isposinf()).any(-1)  # by a class that is not named too
        return kl_divergence(log_p, log_q).masked_fill(spoiled, math.nan)
    log_sum = scaled.logsumexp(-1, keepdim=True)
    divergence = kl_divergence(log_p, logits - log_sum)
    if options.tail == "bucket":
        divergence = divergence + _of_the_rest(scaled, log_p, index, unnamed, log_sum)
    return divergence


def _of_the_rest(
    scaled: Tensor, log_p: Tensor, index: Tensor, unnamed: Tensor, log_sum: Tensor
) -> Tensor:
    """r log(r / rho) of all the classes that are not named."""
    classes = scaled.shape[-1]
    # What is not named marks a class behind the last.
    marks = scaled.new_zeros((*scaled.shape[:-1], classes + 1), dtype=torch.bool)
    marks = marks.scatter(-1, index.masked_fill(unnamed, classes), 1)[..., :classes]
    others = scaled.masked_fill(marks, -math.inf)
    alone = (others == -math.inf).all(-1)
    log_rho = others.masked_fill(alone.unsqueeze(-1), 0).logsumexp(-1) - log_sum.squeeze(-1)
    rest = (1 - log_p.exp().sum(-1)).clamp(min=0)
    none = (rest == 0) | alone  # a student without other classes has nowhere to put the rest
    term = rest * (rest.masked_fill(none, 1).log() - log_rho.masked_fill(none, 0))
    return term.masked_fill(none, 0)
