# SPDX-License-Identifier: Apache-2.0
"""Matching of the flow between two layers, in plain PyTorch."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from fastkd._feature_options import FSPOptions
from fastkd._feature_validation import check_layer_pairs
from fastkd.reference._features import over_examples, to_one_size
from fastkd.reference._precision import kept, same_dtype, without_autocast


def fsp_loss(
    student_features: tuple[Tensor, Tensor],
    teacher_features: tuple[Tensor, Tensor],
    **options: Any,
) -> Tensor:
    """`fastkd.fsp_loss` in plain PyTorch, differentiable in all four features.

    Args:
        student_features: as in `fastkd.fsp_loss`.
        teacher_features: the same, but they get a gradient if they require one.
        **options: the keyword options of `fastkd.fsp_loss`.

    Returns:
        The loss, float32, or float64 if one of the features is.
    """
    checked = FSPOptions(**options)
    check_layer_pairs("fsp_loss", student_features, teacher_features)
    return evaluate(student_features, teacher_features, checked)


def evaluate(
    student_features: tuple[Tensor, Tensor],
    teacher_features: tuple[Tensor, Tensor],
    options: FSPOptions,
) -> Tensor:
    """The formula itself, on checked arguments."""
    first, second, *teacher = same_dtype(*student_features, *teacher_features)
    with without_autocast(first.device):
        flow_student = _flow(first, second)
        flow_teacher = _flow(*teacher)
    if options.reduction == "mean":
        return mse_loss(flow_student, kept(flow_teacher))
    total = mse_loss(flow_student, kept(flow_teacher), reduction="sum")
    examples, *channels = flow_student.shape
    return over_examples(total / (channels[0] * channels[1]), options.reduction, examples)


def _flow(first: Tensor, second: Tensor) -> Tensor:
    """Mean over the positions of the products of the channels, [N, C1, C2]."""
    first, second = to_one_size(first, second)
    positions = first.shape[2] * first.shape[3]
    return torch.bmm(first.flatten(2), second.flatten(2).mT) / positions
