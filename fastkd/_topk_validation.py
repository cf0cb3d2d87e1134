# SPDX-License-Identifier: Apache-2.0
"""Checks of a teacher that is known by K classes a row."""

import math
from typing import Any

import torch
from torch import Tensor

from fastkd._options import KDLossInputs, TopKKDLossOptions
from fastkd._validation import (
    check_classes,
    check_device,
    check_floating,
    check_num_items,
    check_sample_weight,
    check_target,
    check_tensor,
    without,
)

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8)
# csrc/losses/topk_kd_loss.h has the same number.
_MOST_LOG_PROBABILITY = 0.01


def check_topk_kd_loss(inputs: KDLossInputs, options: TopKKDLossOptions) -> None:
    """Check types, dtypes, shapes and devices of a call of topk_kd_loss."""
    function = options.function
    student, values, target, sample_weight, num_items, _ = inputs
    check_floating(function, "student_logits", student)
    dim = check_classes(function, "student_logits", student, options.dim)
    check_topk_tensors(function, values, inputs.indices, student, dim)
    if values.ndim != student.ndim or without(values.shape, dim) != without(student.shape, dim):
        raise ValueError(
            f"{function}: teacher_values must have the student's shape {tuple(student.shape)} "
            f"outside dim {dim}, got {tuple(values.shape)}"
        )
    if target is not None:
        check_target(function, target, student, dim)
    if sample_weight is not None:
        check_sample_weight(function, sample_weight, student, dim)
    if num_items is not None:
        check_num_items(function, num_items, options.reduction, student)


def check_topk_tensors(function: str, values: Any, indices: Any, student: Tensor, dim: int) -> None:
    """Check values and indices against each other."""
    check_floating(function, "teacher_values", values)
    check_device(function, "teacher_values", values, student)
    check_tensor(function, "teacher_indices", indices)
    if indices.dtype not in _INTEGERS:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in _INTEGERS)
        raise TypeError(f"{function}: teacher_indices must have dtype {names}, got {indices.dtype}")
    check_device(function, "teacher_indices", indices, student)
    if indices.shape != values.shape:
        raise ValueError(
            f"{function}: teacher_indices must have the shape of teacher_values "
            f"{tuple(values.shape)}, got {tuple(indices.shape)}"
        )
    if values.ndim == student.ndim and values.shape[dim] == 0:
        raise ValueError(
            f"{function}: teacher_values must have at least one entry in dim {dim % values.ndim}, "
            f"got shape {tuple(values.shape)}"
        )


def check_topk(inputs: KDLossInputs, options: TopKKDLossOptions, classes: int) -> None:
    """Raise for entries that are no set of classes or no log-probabilities, in rows that count."""
    bad = _bad_entries(inputs, options, classes).any(-1)
    if bad.any():
        raise topk_error(inputs, options, classes, int(bad.flatten().int().argmax()))


def topk_error(
    inputs: KDLossInputs, options: TopKKDLossOptions, classes: int, row: int
) -> Exception:
    """The error for what the teacher tells of `row`, counted over the logits without `dim`."""
    function = options.function
    values, indices = _entries(inputs, options.dim)
    shape = values.shape[:-1]
    flat = torch.tensor(row, device="cpu")  # whatever torch.set_default_device says
    position = tuple(int(i) for i in torch.unravel_index(flat, shape)) if shape else ()
    bad = _bad_entries(inputs, options, classes)[position]
    assert bad.any(), "the kernel refused a row in which nothing is wrong (a bug in fastkd)"
    entry = int(bad.int().argmax())
    value, index = float(values[position][entry]), int(indices[position][entry])
    at = f"at entry {entry} of row {position}"
    if options.teacher_is == "log_probs" and value > _MOST_LOG_PROBABILITY:
        return ValueError(
            f"{function}: teacher_values must be log-probabilities, at most 0, got {value:g} {at} "
            "(teacher_is='logits' takes logits)"
        )
    if not 0 <= index < classes:
        return IndexError(
            f"{function}: teacher_indices must be in [0, {classes}), got {index} {at} "
            "(an entry of -inf in teacher_values names no class)"
        )
    return ValueError(
        f"{function}: teacher_indices must name a class once a row, got {index} again {at}"
    )


def _bad_entries(inputs: KDLossInputs, options: TopKKDLossOptions, classes: int) -> Tensor:
    """(..., K): which entries are wrong; of those that name one class, all but the first."""
    values, indices = _entries(inputs, options.dim)
    named = values != -math.inf
    if inputs.target is not None:
        named = named & (inputs.target != options.ignore_index).unsqueeze(-1)
    if inputs.sample_weight is not None:
        named = named & (inputs.sample_weight != 0).unsqueeze(-1)
    outside = (indices < 0) | (indices >= classes)
    apart = -1 - torch.arange(indices.shape[-1], device=indices.device)
    order = torch.where(named & ~outside, indices, apart).sort(dim=-1, stable=True)
    again = torch.zeros_like(named)
    again[..., 1:] = order.values[..., 1:] == order.values[..., :-1]
    bad = outside | torch.zeros_like(named).scatter(-1, order.indices, again)
    if options.teacher_is == "log_probs":
        bad = bad | (values > _MOST_LOG_PROBABILITY)
    return bad & named


def _entries(inputs: KDLossInputs, dim: int) -> tuple[Tensor, Tensor]:
    assert inputs.indices is not None
    values = inputs.teacher.detach().movedim(dim, -1)
    values = values.to(torch.promote_types(values.dtype, torch.float32))  # as the kernel reads them
    return values, inputs.indices.movedim(dim, -1).to(torch.int64)
