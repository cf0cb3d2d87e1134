# SPDX-License-Identifier: Apache-2.0
"""Checks of logits, and of any tensor: what was expected and received, before any work."""

import math
from typing import Any, TypeVar

import torch
from torch import Tensor

from fastkd._options import DecoupledKDLossOptions, KDLossInputs, KDLossOptions

T = TypeVar("T")
FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_kd_loss(inputs: KDLossInputs, options: KDLossOptions) -> None:
    """Check types, dtypes, shapes and devices of a call of kd_loss."""
    student, teacher, target, sample_weight, num_items, _ = inputs
    same_classes = not options.common_vocab
    dim = check_logits("kd_loss", student, teacher, options.dim, same_classes)
    if target is not None:
        check_target("kd_loss", target, student, dim)
    if sample_weight is not None:
        check_sample_weight("kd_loss", sample_weight, student, dim)
    if num_items is not None:
        check_num_items("kd_loss", num_items, options.reduction, student)


def check_decoupled_kd_loss(inputs: KDLossInputs, options: DecoupledKDLossOptions) -> None:
    """Check the same of a call of decoupled_kd_loss."""
    student, teacher, target, sample_weight, num_items, _ = inputs
    function, dim = options.function, options.dim
    rest = sample_weight, num_items, options.reduction
    dim = check_weighted_logits(function, student, teacher, dim, *rest)
    check_target(function, target, student, dim)


def check_logits(
    function: str, student: Tensor, teacher: Tensor, dim: int, same_classes: bool = True
) -> int:
    """Check a pair of logits and return the class dimension counted from the front."""
    check_floating(function, "student_logits", student)
    check_floating(function, "teacher_logits", teacher)
    check_device(function, "teacher_logits", teacher, student)
    dim = check_classes(function, "student_logits", student, dim)
    if student.shape != teacher.shape and (
        same_classes or without(student.shape, dim) != without(teacher.shape, dim)
    ):
        hint = ""
        if same_classes and without(student.shape, dim) == without(teacher.shape, dim):
            hint = " (common_vocab=True lets the class counts differ)"
        raise ValueError(
            f"{function}: teacher_logits must have the student's shape {tuple(student.shape)}"
            f"{'' if same_classes else f' outside dim {dim}'}, got {tuple(teacher.shape)}{hint}"
        )
    check_classes(function, "teacher_logits", teacher, dim)
    return dim


def check_classes(function: str, name: str, logits: Tensor, dim: int) -> int:
    """Check that logits have classes in `dim`, and return it counted from the front."""
    rank = logits.ndim
    if rank == 0:
        raise ValueError(f"{function}: {name} must have a class dimension, got a scalar")
    if not -rank <= dim < rank:
        raise ValueError(
            f"{function}: dim must be in [{-rank}, {rank - 1}] for logits of shape "
            f"{tuple(logits.shape)}, got {dim}"
        )
    dim %= rank
    if logits.shape[dim] == 0:
        raise ValueError(
            f"{function}: {name} must have at least one class in dim {dim}, "
            f"got shape {tuple(logits.shape)}"
        )
    return dim


def check_weighted_logits(
    function: str,
    student: Tensor,
    teacher: Tensor,
    dim: int,
    sample_weight: Tensor | None,
    num_items: Any,
    reduction: str,
) -> int:
    """Check a pair of logits, weights of their rows, and the denominator; return `dim` >= 0."""
    dim = _check_same_logits(function, student, teacher, dim)
    if sample_weight is not None:
        check_sample_weight(function, sample_weight, student, dim)
    if num_items is not None:
        check_num_items(function, num_items, reduction, student)
    return dim


def check_masked_logits(
    function: str, student: Tensor, teacher: Tensor, dim: int, mask: Tensor | None
) -> None:
    """Check a pair of logits, and which of their rows count."""
    dim = _check_same_logits(function, student, teacher, dim)
    if mask is not None:
        check_tensor(function, "mask", mask)
        if mask.dtype != torch.bool:
            raise TypeError(f"{function}: mask must be bool, got {mask.dtype}")
        _check_rows(function, "mask", mask, student, dim)


def _check_same_logits(function: str, student: Tensor, teacher: Tensor, dim: int) -> int:
    """Of a loss without common_vocab."""
    check_pair(function, ("student_logits", "teacher_logits"), student, teacher)
    if student.shape != teacher.shape:
        raise ValueError(
            f"{function}: teacher_logits must have the student's shape {tuple(student.shape)}, "
            f"got {tuple(teacher.shape)}"
        )
    return check_logits(function, student, teacher, dim)


def check_not_leaf(function: str, student: Tensor) -> None:
    """Check logits whose memory the gradient is to take."""
    base = student if student._base is None else student._base
    if student.requires_grad and (student.is_leaf or (base.is_leaf and base.requires_grad)):
        raise ValueError(
            f"{function}: with inplace=True student_logits must be the output of an operation, "
            f"got a leaf{'' if student.is_leaf else ' (seen through a view)'} that requires a "
            "gradient, whose values would be lost"
        )


def check_target(function: str, target: Any, student: Tensor, dim: int) -> None:
    """Check class indices against the logits they belong to; the kernel checks their range."""
    check_tensor(function, "target", target)
    if target.dtype != torch.int64:
        raise TypeError(f"{function}: target must be int64 class indices, got {target.dtype}")
    _check_rows(function, "target", target, student, dim)


def check_sample_weight(function: str, weight: Tensor, student: Tensor, dim: int) -> None:
    """Check per-row weights."""
    check_floating(function, "sample_weight", weight)
    _check_rows(function, "sample_weight", weight, student, dim)


def check_num_items(function: str, num_items: Any, reduction: str, student: Tensor) -> None:
    """Check the denominator that replaces the reduction's own."""
    if reduction not in ("mean", "batchmean"):
        raise ValueError(
            f"{function}: num_items replaces the denominator of reduction mean or batchmean, "
            f"got reduction={reduction!r}"
        )
    if isinstance(num_items, Tensor):
        check_tensor(function, "num_items", num_items)
        if num_items.ndim != 0 or num_items.is_complex() or num_items.dtype == torch.bool:
            raise ValueError(
                f"{function}: num_items must be an int or a 0-d tensor of a number, "
                f"got shape {tuple(num_items.shape)} of {num_items.dtype}"
            )
        if num_items.device not in (student.device, torch.device("cpu")):
            check_device(function, "num_items", num_items, student)
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


def settled_num_items(function: str, num_items: float | Tensor | None) -> float | Tensor | None:
    """As the kernels take it: negative is an error, or NaN on a GPU, where nothing waits for it."""
    if isinstance(num_items, Tensor) and num_items.is_cuda:
        wide = num_items.detach().double()
        return wide.masked_fill(wide < 0, math.nan)
    return None if num_items is None else read_num_items(function, num_items)


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


def check_tensor(function: str, name: str, value: Any) -> None:
    """Check that something is a tensor and dense."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{function}: {name} must be a torch.Tensor, got {type(value).__name__}")
    if value.is_nested:
        raise TypeError(f"{function}: {name} must be a dense tensor, got a nested tensor")
    if value.layout != torch.strided:
        raise TypeError(f"{function}: {name} must be a dense tensor, got layout {value.layout}")


def check_floating(function: str, name: str, value: Any) -> None:
    check_tensor(function, name, value)
    if value.dtype not in FLOATING:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOATING)
        raise TypeError(f"{function}: {name} must have dtype {names}, got {value.dtype}")


def check_pair(function: str, names: tuple[str, str], student: Tensor, teacher: Tensor) -> None:
    """Check the types of two tensors and that they share a device."""
    check_floating(function, names[0], student)
    check_floating(function, names[1], teacher)
    check_device(function, names[1], teacher, student)


def _check_rows(function: str, name: str, value: Tensor, student: Tensor, dim: int) -> None:
    check_device(function, name, value, student)
    rows = without(student.shape, dim)
    if value.shape != rows:
        raise ValueError(
            f"{function}: {name} must have the logits' shape without dim {dim}, "
            f"{tuple(rows)}, got {tuple(value.shape)}"
        )


def check_device(function: str, name: str, value: Tensor, student: Tensor) -> None:
    if value.device != student.device:
        raise ValueError(
            f"{function}: {name} must be on the student's device {student.device}, "
            f"got {value.device}"
        )


def without(of_dimensions: tuple[T, ...], dim: int) -> tuple[T, ...]:
    """What belongs to the dimensions, but for one: sizes, slices."""
    return of_dimensions[:dim] + of_dimensions[dim + 1 :]


def has_autocast(device: torch.device) -> bool:
    """Whether torch.autocast supports a device."""
    # Two are named, because the compiler of torch 2.10 does not trace is_autocast_available.
    return device.type in ("cpu", "cuda") or torch.amp.is_autocast_available(device.type)
