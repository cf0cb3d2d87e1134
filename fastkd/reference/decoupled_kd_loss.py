# SPDX-License-Identifier: Apache-2.0
"""The label against the rest, and the rest among itself, in plain PyTorch."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, logsigmoid

from fastkd._options import DecoupledKDLossOptions, KDLossInputs
from fastkd._validation import check_decoupled_kd_loss
from fastkd.reference._rows import class_of, cross_entropy, kl_divergence, rows_of


def decoupled_kd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    *,
    sample_weight: Tensor | None = None,
    num_items: int | Tensor | None = None,
    **options: Any,
) -> Tensor:
    """`fastkd.decoupled_kd_loss` in plain PyTorch, differentiable in both logits and the weights.

    Args:
        student_logits: as in `fastkd.decoupled_kd_loss`.
        teacher_logits: as in `fastkd.decoupled_kd_loss`, but gets a gradient if it requires one.
        target: as in `fastkd.decoupled_kd_loss`.
        sample_weight: as in `fastkd.decoupled_kd_loss`, but gets a gradient if it requires one.
            Rows of weight 0 are not looked at: the gradient of such a weight lacks its row's own
            loss.
        num_items: as in `fastkd.decoupled_kd_loss`.
        **options: the other keyword options of `fastkd.decoupled_kd_loss`.

    Returns:
        The loss, float32, or float64 if one of the logits is.
    """
    inputs = KDLossInputs(student_logits, teacher_logits, target, sample_weight, num_items)
    checked = DecoupledKDLossOptions(**options)
    check_decoupled_kd_loss(inputs, checked)
    return evaluate(inputs, checked)


def evaluate(inputs: KDLossInputs, options: DecoupledKDLossOptions) -> Tensor:
    """The formula itself, on checked arguments."""
    assert inputs.target is not None
    rows = rows_of(inputs, options)
    label = class_of(inputs.target, options.ignore_index)
    row_loss = rows.student[..., :0].sum(-1)  # 0, which differentiates where nothing weighs
    if options.alpha != 0:  # a term that weighs 0 may be infinite
        divergence = _of_label(rows.student, rows.teacher, label, options.temperature)
        row_loss = row_loss + options.alpha * options.soft_factor * divergence
    if options.beta != 0:
        divergence = _of_others(rows.student, rows.teacher, label, options.temperature)
        row_loss = row_loss + options.beta * options.soft_factor * divergence
    if options.hard_weight != 0:
        row_loss = row_loss + options.hard_weight * cross_entropy(rows.student, label)
    return rows.reduce(row_loss, inputs, options)


def _of_label(student: Tensor, teacher: Tensor, label: Tensor, temperature: float) -> Tensor:
    """KL between two classes: the label, and all others together."""
    of_student, of_teacher = (
        _log_odds(logits / temperature, label) for logits in (student, teacher)
    )
    log_p = torch.stack([logsigmoid(of_teacher), logsigmoid(-of_teacher)], -1)
    log_q = torch.stack([logsigmoid(of_student), logsigmoid(-of_student)], -1)
    return kl_divergence(log_p, log_q)


def _log_odds(logits: Tensor, label: Tensor) -> Tensor:
    """log(p / (1 - p)) of the label's probability p."""
    others, alone = _others(logits, label)
    of_label = logits.gather(-1, label).squeeze(-1)
    odds = of_label - others.logsumexp(-1)
    return torch.where(alone, of_label.detach() + math.inf, odds)


def _of_others(student: Tensor, teacher: Tensor, label: Tensor, temperature: float) -> Tensor:
    """KL of the classes that are not the label; 0 where the teacher has none."""
    of_student, student_alone = _others(student / temperature, label)
    of_teacher, teacher_alone = _others(teacher / temperature, label)
    divergence = kl_divergence(log_softmax(of_teacher, -1), log_softmax(of_student, -1))
    divergence = divergence.masked_fill(student_alone, math.inf)
    return divergence.masked_fill(teacher_alone, 0)


def _others(logits: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Logits without the label's, and where there are no others (these become 0)."""
    hidden = logits.scatter(-1, label, -math.inf)
    alone = (hidden == -math.inf).all(-1)
    return hidden.masked_fill(alone.unsqueeze(-1), 0), alone
