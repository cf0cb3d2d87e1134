# SPDX-License-Identifier: Apache-2.0
"""Soft targets at a temperature, in plain PyTorch."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from fastkd._options import KDLossInputs, KDLossOptions
from fastkd._validation import check_kd_loss
from fastkd.reference._rows import class_of, cross_entropy, kl_divergence, rows_of
from fastkd.reference._standard import standardized


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
    student, teacher, weight = rows = rows_of(inputs, options)
    row_loss = torch.zeros_like(weight)
    alpha = 1.0 if inputs.target is None else options.alpha
    if alpha != 0:  # a term that weighs 0 may be infinite
        row_loss = row_loss + alpha * options.soft_factor * _divergence(student, teacher, options)
    if inputs.target is not None and alpha != 1:
        label = class_of(inputs.target, options.ignore_index)
        hard = cross_entropy(student, label, options.label_smoothing)
        row_loss = row_loss + (1 - alpha) * hard
    return rows.reduce(row_loss, inputs, options)


def _divergence(student: Tensor, teacher: Tensor, options: KDLossOptions) -> Tensor:
    shared = min(student.shape[-1], teacher.shape[-1])  # differ only with common_vocab
    student, teacher = student[..., :shared], teacher[..., :shared]
    if options.standardize_logits:
        student, teacher = standardized(student, -1), standardized(teacher, -1)
    log_q = log_softmax(student / options.temperature, -1)
    log_p = log_softmax(teacher / options.temperature, -1)
    match options.formula:
        case "forward_kl":
            return kl_divergence(log_p, log_q)
        case "reverse_kl":
            return kl_divergence(log_q, log_p)
        case "js":
            beta = options.beta
            # A class that both lack would be (-inf) - (-inf) in the mixture.
            lacked = (log_p == -math.inf) & (log_q == -math.inf)
            log_m = torch.logaddexp(
                log_p.masked_fill(lacked, 0) + math.log(beta),
                log_q.masked_fill(lacked, 0) + math.log(1 - beta),
            )
            return beta * kl_divergence(log_p, log_m) + (1 - beta) * kl_divergence(log_q, log_m)
        case "tv":
            return (log_p.exp() - log_q.exp()).abs().sum(-1) / 2
