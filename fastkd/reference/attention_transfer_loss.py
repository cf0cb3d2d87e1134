# SPDX-License-Identifier: Apache-2.0
"""Attention transfer, in plain PyTorch."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fastkd._attention_options import AttentionTransferOptions
from fastkd._feature_validation import check_maps
from fastkd.reference._relations import same_dtype
from fastkd.reference._scale import near_one

NORM_EPS = 1e-12  # floor of a map's norm


def attention_transfer_loss(
    student_features: Tensor, teacher_features: Tensor, **options: Any
) -> Tensor:
    """`fastkd.attention_transfer_loss` in plain PyTorch, differentiable in both features.

    Args:
        student_features: as in `fastkd.attention_transfer_loss`.
        teacher_features: the same, but gets a gradient if it requires one.
        **options: the keyword options of `fastkd.attention_transfer_loss`.

    Returns:
        The loss, float32, or float64 if one of the features is.
    """
    checked = AttentionTransferOptions(**options)
    function = "attention_transfer_loss"
    check_maps(function, student_features, teacher_features, checked.interpolate)
    return evaluate(student_features, teacher_features, checked)


def evaluate(
    student_features: Tensor, teacher_features: Tensor, options: AttentionTransferOptions
) -> Tensor:
    """The formula itself, on checked arguments."""
    student, teacher = same_dtype(student_features, teacher_features)
    student, teacher = with_one_size(student, teacher)
    loss = (_attention(student, options.p) - _attention(teacher, options.p)).square()
    return loss.mean() if options.reduction == "mean" else loss.sum()


def with_one_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Maps of different height or width, the larger ones averaged down to the smaller."""
    if student.shape[2:] == teacher.shape[2:]:
        return student, teacher
    height, width = map(min, student.shape[2:], teacher.shape[2:])
    return _pooled(student, (height, width)), _pooled(teacher, (height, width))


def _pooled(features: Tensor, size: tuple[int, int]) -> Tensor:
    if features.shape[2:] == size:
        return features
    # Averages of half types are taken, and kept, in float32.
    wide = features.to(torch.promote_types(features.dtype, torch.float32))
    return functional.adaptive_avg_pool2d(wide, size)


def _attention(features: Tensor, p: float) -> Tensor:
    """The map of each sample over its norm. [N, P]."""
    # Large numbers only: the floor of the norm is absolute, and does not bind where one is large.
    features, _ = near_one(features.flatten(2), (1, 2), least=1)
    energy, _ = near_one(_power(features, p).mean(1), 1, least=1)
    square = energy.square().sum(1, keepdim=True)
    return energy * square.clamp_min(NORM_EPS * NORM_EPS).rsqrt()


def _power(x: Tensor, p: float) -> Tensor:
    """|x|^p, whose derivatives at 0 are 0 where they have no value."""
    if p == 2:
        return x.square()
    zero = x == 0
    return x.abs().masked_fill(zero, 1).pow(p).masked_fill(zero, 0)
