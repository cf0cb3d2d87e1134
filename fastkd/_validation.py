# SPDX-License-Identifier: Apache-2.0
"""Checks of tensor arguments: what was expected, what was received, before any work."""

import math
from typing import Any

import torch
from torch import Tensor

from fastkd._options import KDLossInputs, KDLossOptions

FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_kd_loss(inputs: KDLossInputs, options: KDLossOptions) -> None:
    """Check types, dtypes, shapes and devices of a call of kd_loss."""
    student, teacher, target, sample_weight, num_items = inputs
    same_classes = not options.common_vocab
    dim = check_logits("kd_loss", student, teacher, options.dim, same_classes)
    if target is not None:
        check_target("kd_loss", target, student, dim)
    if sample_weight is not None:
        check_sample_weight("kd_loss", sample_weight, student, dim)
    if num_items is not None:
        check_num_items("kd_loss", num_items, options.reduction, student)


def check_logits(
    function: str, student: Tensor, teacher: Tensor, dim: int, same_classes: bool = True
) -> int:
    """Check a pair of logits and return the class dimension counted from the front."""
    _check_floating(function, "student_logits", student)
    _check_floating(function, "teacher_logits", teacher)
    _check_device(function, "teacher_logits", teacher, student)
    rank = student.ndim
    if rank == 0:
        raise ValueError(f"{function}: student_logits must have a class dimension, got a scalar")
    if not -rank <= dim < rank:
        raise ValueError(
            f"{function}: dim must be in [{-rank}, {rank - 1}] for logits of shape "
            f"{tuple(student.shape)}, got {dim}"
        )
    dim %= rank
    if student.shape != teacher.shape and (
        same_classes or _without(student.shape, dim) != _without(teacher.shape, dim)
    ):
        hint = ""
        if same_classes and _without(student.shape, dim) == _without(teacher.shape, dim):
            hint = " (common_vocab=True lets the class counts differ)"
        raise ValueError(
            f"{function}: teacher_logits must have the student's shape {tuple(student.shape)}"
            f"{'' if same_classes else f' outside dim {dim}'}, got {tuple(teacher.shape)}{hint}"
        )
    for name, logits in (("student_logits", student), ("teacher_logits", teacher)):
        if logits.shape[dim] == 0:
            raise ValueError(
                f"{function}: {name} must have at least one class in dim {dim}, "
                f"got shape {tuple(logits.shape)}"
            )
    return dim


def check_target(function: str, target: Tensor, student: Tensor, dim: int) -> None:
    """Check class indices against the logits they belong to; the kernel checks their range."""
    _check_tensor(function, "target", target)
    if target.dtype != torch.int64:
        raise TypeError(f"{function}: target must be int64 class indices, got {target.dtype}")
    _check_rows(function, "target", target, student, dim)


def check_sample_weight(function: str, weight: Tensor, student: Tensor, dim: int) -> None:
    """Check per-row weights."""
    _check_floating(function, "sample_weight", weight)
    _check_rows(function, "sample_weight", weight, student, dim)


def check_num_items(function: str, num_items: Any, reduction: str, student: Tensor) -> None:
    """Check the denominator that replaces the reduction's own."""
    if reduction not in ("mean", "batchmean"):
        raise ValueError(
            f"{function}: num_items replaces the denominator of reduction mean or batchmean, "
            f"got reduction={reduction!r}"
        )
    if isinstance(num_items, Tensor):
        if num_items.ndim != 0 or num_items.is_complex() or num_items.dtype == torch.bool:
            raise ValueError(
                f"{function}: num_items must be an int or a 0-d tensor of a number, "
                f"got shape {tuple(num_items.shape)} of {num_items.dtype}"
            )
        if num_items.device not in (student.device, torch.device("cpu")):
            _check_device(function, "num_items", num_items, student)
        return
    if isinstance(num_items, bool) or not isinstance(num_items, int | torch.SymInt):
        raise TypeError(
            f"{function}: num_items must be an int or a 0-d tensor, "
            f"got {type(num_items).__name__} {num_items!r}"
        )
    if num_items < 0 or num_items >= 1 << 63:
        raise ValueError(f"{function}: num_items must be >= 0 and an int64, got {num_items}")


def read_num_items(function: str, num_items: float | Tensor) -> float:
    """The value of a checked num_items in CPU memory."""
    value = float(num_items.detach() if isinstance(num_items, Tensor) else num_items)
    if not 0 <= value < math.inf:
        raise ValueError(f"{function}: num_items must be >= 0 and finite, got {num_items}")
    return value


def check_target_range(function: str, target: Tensor, ignore_index: int, classes: int) -> None:
    """Raise IndexError for a class index outside [0, classes) that is not ignore_index."""
    bad = ((target < 0) | (target >= classes)) & (target != ignore_index)
    if bad.any():
        raise target_out_of_range(function, target, int(bad.flatten().int().argmax()), classes)


def target_out_of_range(function: str, target: Tensor, row: int, classes: int) -> IndexError:
    """The error for the target of `row`, counted in the order of target.flatten()."""
    flat = torch.tensor(row, device="cpu")  # whatever torch.set_default_device says
    position = tuple(int(i) for i in torch.unravel_index(flat, target.shape))
    return IndexError(
        f"{function}: target must be in [0, {classes}) or ignore_index, "
        f"got {int(target[position])} at {position}"
    )


def _check_tensor(function: str, name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{function}: {name} must be a torch.Tensor, got {type(value).__name__}")
    if value.layout != torch.strided:
        raise TypeError(f"{function}: {name} must be a dense tensor, got layout {value.layout}")


def _check_floating(function: str, name: str, value: Any) -> None:
    _check_tensor(function, name, value)
    if value.dtype not in FLOATING:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOATING)
        raise TypeError(f"{function}: {name} must have dtype {names}, got {value.dtype}")


def _check_rows(function: str, name: str, value: Tensor, student: Tensor, dim: int) -> None:
    _check_device(function, name, value, student)
    rows = _without(student.shape, dim)
    if value.shape != rows:
        raise ValueError(
            f"{function}: {name} must have the logits' shape without dim {dim}, "
            f"{tuple(rows)}, got {tuple(value.shape)}"
        )


def _check_device(function: str, name: str, value: Tensor, student: Tensor) -> None:
    if value.device != student.device:
        raise ValueError(
            f"{function}: {name} must be on the student's device {student.device}, "
            f"got {value.device}"
        )


def _without(shape: torch.Size, dim: int) -> torch.Size:
    return shape[:dim] + shape[dim + 1 :]
