# SPDX-License-Identifier: Apache-2.0
"""Checks of embeddings and features, as _validation has them of logits."""

from typing import Any

from torch import Tensor

from fastkd._validation import check_device, check_floating, check_pair, without


def check_embeddings(function: str, student: Tensor, teacher: Tensor) -> None:
    """Check two batches of embeddings, (N, D), whose rows belong together."""
    names = ("student_embeddings", "teacher_embeddings")
    check_pair(function, names, student, teacher)
    for name, embeddings in zip(names, (student, teacher), strict=True):
        if embeddings.ndim != 2:
            raise ValueError(
                f"{function}: {name} must have shape (N, D), got {tuple(embeddings.shape)}"
            )
    _check_batch(function, names, student, teacher)


def check_features(function: str, student: Tensor, teacher: Tensor, rank: int, shape: str) -> None:
    """Check two batches of features of at least `rank` dimensions, which `shape` words."""
    names = ("student_features", "teacher_features")
    check_pair(function, names, student, teacher)
    for name, features in zip(names, (student, teacher), strict=True):
        if features.ndim < rank:
            raise ValueError(
                f"{function}: {name} must have shape {shape}, got {tuple(features.shape)}"
            )
    _check_batch(function, names, student, teacher)


def check_maps(function: str, student: Tensor, teacher: Tensor, interpolate: bool) -> None:
    """Check two batches of feature maps, (N, C, ...), of one spatial size unless interpolated."""
    check_features(function, student, teacher, rank=3, shape="(N, C, ...)")
    if interpolate:
        for name, features in (("student_features", student), ("teacher_features", teacher)):
            if features.ndim != 4:
                raise ValueError(
                    f"{function}: {name} must have shape (N, C, H, W) where interpolate=True, "
                    f"got {tuple(features.shape)}"
                )
    elif student.shape[2:] != teacher.shape[2:]:
        raise ValueError(
            f"{function}: teacher_features must have the student's spatial size "
            f"{tuple(student.shape[2:])}, got {tuple(teacher.shape[2:])} "
            "(interpolate=True averages the larger maps down)"
        )


def check_same_features(function: str, student: Tensor, teacher: Tensor) -> None:
    """Check two batches of features, (N, ...), of one shape."""
    check_features(function, student, teacher, rank=2, shape="(N, ...)")
    if student.shape == teacher.shape:
        return
    kind, channel = ("conv1x1", 1) if student.ndim == 4 else ("linear", student.ndim - 1)
    hint = ""
    if teacher.ndim == student.ndim and (
        without(student.shape, channel) == without(teacher.shape, channel)
    ):
        widths = f"{student.shape[channel]}, {teacher.shape[channel]}"
        hint = f' (map the student by HintRegressor({widths}, kind="{kind}"))'
    raise ValueError(
        f"{function}: teacher_features must have the student's shape {tuple(student.shape)}, "
        f"got {tuple(teacher.shape)}{hint}"
    )


def check_layer_pairs(function: str, student: Any, teacher: Any) -> None:
    """Check the maps, (N, C, H, W), of two layers of each network."""
    for name, pair in (("student_features", student), ("teacher_features", teacher)):
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            length = f" of {len(pair)}" if isinstance(pair, tuple | list) else ""
            raise TypeError(
                f"{function}: {name} must be a pair of tensors, got {type(pair).__name__}{length}"
            )
        for layer, maps in enumerate(pair):
            names = ("student_features[0]", f"{name}[{layer}]")
            check_floating(function, names[1], maps)
            check_device(function, names[1], maps, student[0])
            if maps.ndim != 4:
                raise ValueError(
                    f"{function}: {names[1]} must have shape (N, C, H, W), got {tuple(maps.shape)}"
                )
            _check_batch(function, names, student[0], maps)
    for layer, (ours, theirs) in enumerate(zip(student, teacher, strict=True)):
        if ours.shape[1] != theirs.shape[1]:
            raise ValueError(
                f"{function}: teacher_features[{layer}] must have the channels of "
                f"student_features[{layer}], {ours.shape[1]}, got {theirs.shape[1]}"
            )


def _check_batch(function: str, names: tuple[str, str], student: Tensor, teacher: Tensor) -> None:
    for name, batch in zip(names, (student, teacher), strict=True):
        if batch.numel() == 0:
            raise ValueError(
                f"{function}: {name} must have at least one row and one feature, "
                f"got shape {tuple(batch.shape)}"
            )
    if student.shape[0] != teacher.shape[0]:
        raise ValueError(
            f"{function}: {names[1]} must have the student's batch size {student.shape[0]}, "
            f"got {teacher.shape[0]}"
        )
