# SPDX-License-Identifier: Apache-2.0
"""Matching of features by their squared difference, in plain PyTorch."""

from typing import Any

from torch import Tensor
from torch.nn.functional import mse_loss

from fastkd._feature_options import HintOptions
from fastkd._feature_validation import check_same_features
from fastkd.reference._features import over_examples
from fastkd.reference._precision import kept, same_dtype


def hint_loss(student_features: Tensor, teacher_features: Tensor, **options: Any) -> Tensor:
    """`fastkd.hint_loss` in plain PyTorch, differentiable in both features.

    Args:
        student_features: as in `fastkd.hint_loss`.
        teacher_features: the same, but gets a gradient if it requires one.
        **options: the keyword options of `fastkd.hint_loss`.

    Returns:
        The loss, float32, or float64 if one of the features is.
    """
    checked = HintOptions(**options)
    check_same_features("hint_loss", student_features, teacher_features)
    return evaluate(student_features, teacher_features, checked)


def evaluate(student_features: Tensor, teacher_features: Tensor, options: HintOptions) -> Tensor:
    """The formula itself, on checked arguments."""
    student, teacher = same_dtype(student_features, teacher_features)
    if options.reduction == "mean":
        return mse_loss(student, kept(teacher))
    total = mse_loss(student, kept(teacher), reduction="sum")
    return over_examples(total, options.reduction, student.shape[0])
