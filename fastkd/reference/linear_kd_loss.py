# SPDX-License-Identifier: Apache-2.0
"""kd_loss of the logits that two output layers give, in plain PyTorch."""

from typing import Any

import torch
from torch import Tensor

from fastkd._linear_options import LinearKDLossInputs, LinearKDLossOptions
from fastkd._linear_validation import check_linear_kd_loss
from fastkd._options import KDLossInputs
from fastkd.reference.kd_loss import evaluate as evaluate_of_logits
from fastkd.reference.topk_kd_loss import evaluate as evaluate_of_topk


def linear_kd_loss(
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher_hidden: Tensor | None = None,
    teacher_weight: Tensor | None = None,
    target: Tensor | None = None,
    *,
    student_bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    teacher_logits: Tensor | None = None,
    teacher_values: Tensor | None = None,
    teacher_indices: Tensor | None = None,
    sample_weight: Tensor | None = None,
    num_items: int | Tensor | None = None,
    **options: Any,
) -> Tensor:
    """`fastkd.linear_kd_loss` in plain PyTorch, which holds all logits, of both sides.

    Args:
        student_hidden: as in `fastkd.linear_kd_loss`.
        student_weight: as in `fastkd.linear_kd_loss`.
        teacher_hidden: as in `fastkd.linear_kd_loss`, but gets a gradient if it requires one.
        teacher_weight: the same.
        target: as in `fastkd.linear_kd_loss`.
        student_bias: as in `fastkd.linear_kd_loss`.
        teacher_bias: as in `fastkd.linear_kd_loss`, but gets a gradient if it requires one.
        teacher_logits: the same.
        teacher_values: the same.
        teacher_indices: as in `fastkd.reference.topk_kd_loss`.
        sample_weight: as in `fastkd.reference.kd_loss`.
        num_items: as in `fastkd.linear_kd_loss`.
        **options: the other keyword options of `fastkd.linear_kd_loss`.

    Returns:
        The loss, float32, or float64 if one of the logits is.
    """
    inputs = LinearKDLossInputs(
        student_hidden,
        student_weight,
        student_bias,
        teacher_hidden,
        teacher_weight,
        teacher_bias,
        teacher_logits,
        teacher_values,
        teacher_indices,
        target,
        sample_weight,
        num_items,
    )
    checked = LinearKDLossOptions(**options)
    check_linear_kd_loss(inputs, checked)
    return evaluate(inputs, checked)


def evaluate(inputs: LinearKDLossInputs, options: LinearKDLossOptions) -> Tensor:
    """The formula itself, on checked arguments."""
    student = _logits(*inputs.of_student(), options.logit_softcap)
    rest = inputs.target, inputs.sample_weight, inputs.num_items
    if inputs.teacher_values is not None:
        of_topk = KDLossInputs(student, inputs.teacher_values, *rest, inputs.teacher_indices)
        return evaluate_of_topk(of_topk, options.topk)
    teacher = inputs.teacher_logits
    if teacher is None:
        assert inputs.teacher_hidden is not None
        assert inputs.teacher_weight is not None
        of_teacher = inputs.teacher_hidden, inputs.teacher_weight, inputs.teacher_bias
        teacher = _logits(*of_teacher, options.logit_softcap)
    return evaluate_of_logits(KDLossInputs(student, teacher, *rest), options.kd)


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None) -> Tensor:
    logits = torch.nn.functional.linear(hidden, weight, bias)
    return logits if softcap is None else torch.tanh(logits / softcap) * softcap
