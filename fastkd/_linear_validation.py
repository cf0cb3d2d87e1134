# SPDX-License-Identifier: Apache-2.0
"""Checks of linear_kd_loss's tensors: what was expected, what was received, before any work."""

import torch
from torch import Tensor

from fastkd._linear_options import FUNCTION, LinearKDLossInputs, LinearKDLossOptions
from fastkd._topk_validation import check_topk_tensors
from fastkd._validation import (
    check_device,
    check_floating,
    check_num_items,
    check_sample_weight,
    check_target,
    has_autocast,
)


def check_linear_kd_loss(inputs: LinearKDLossInputs, options: LinearKDLossOptions) -> None:
    """Check types, dtypes, shapes and devices of a call."""
    hidden = inputs.student_hidden
    _check_layer("student", *inputs.of_student(), hidden)
    name, shape, teacher_classes = _check_teacher(inputs, options)
    rows, classes = hidden.shape[:-1], inputs.student_weight.shape[0]
    if teacher_classes is None:  # of a top-k teacher nobody knows
        teacher_classes = classes
    if shape[:-1] != rows:
        raise ValueError(
            f"{FUNCTION}: {name} must have the rows of student_hidden, {tuple(rows)}, "
            f"got shape {tuple(shape)}"
        )
    if teacher_classes != classes and not options.common_vocab:
        raise ValueError(
            f"{FUNCTION}: the teacher must have the student's {classes} classes, "
            f"got {teacher_classes} (common_vocab=True lets them differ)"
        )
    if 0 in (classes, teacher_classes):
        raise ValueError(
            f"{FUNCTION}: there must be at least one class a side, "
            f"got {classes} and {teacher_classes}"
        )
    dim = hidden.ndim - 1
    if inputs.target is not None:
        check_target(FUNCTION, inputs.target, hidden, dim)
    if inputs.sample_weight is not None:
        check_sample_weight(FUNCTION, inputs.sample_weight, hidden, dim)
    if inputs.num_items is not None:
        check_num_items(FUNCTION, inputs.num_items, options.reduction, hidden)


def _check_teacher(
    inputs: LinearKDLossInputs, options: LinearKDLossOptions
) -> tuple[str, torch.Size, int | None]:
    """The name and shape of what has the teacher's rows, and how many classes it has."""
    logits, hidden, weight = inputs.teacher_logits, inputs.teacher_hidden, inputs.teacher_weight
    layer = ("teacher_hidden", "teacher_weight", "teacher_bias")
    topk = ("teacher_values", "teacher_indices")
    given = [
        name for name in (*layer, "teacher_logits", *topk) if getattr(inputs, name) is not None
    ]
    forms = [form for form in (layer, ("teacher_logits",), topk) if {*form} & {*given}]
    if len(forms) > 1:
        raise TypeError(
            f"{FUNCTION}: the teacher comes as hidden states and weight, as logits, or as values "
            f"and indices, got {', '.join(given)}"
        )
    if forms == [topk]:
        return "teacher_values", _check_topk_teacher(inputs, options), None
    if logits is not None:
        _check_of_topk_alone(options)
        check_floating(FUNCTION, "teacher_logits", logits)
        check_device(FUNCTION, "teacher_logits", logits, inputs.student_hidden)
        if logits.ndim == 0:
            raise ValueError(f"{FUNCTION}: teacher_logits must have shape (..., V), got a scalar")
        return "teacher_logits", logits.shape, logits.shape[-1]
    _check_of_topk_alone(options)
    if hidden is None or weight is None:
        raise TypeError(
            f"{FUNCTION}: expected teacher_hidden and teacher_weight, or teacher_logits, or "
            f"teacher_values and teacher_indices, got {' and '.join(given) or 'none of them'}"
        )
    _check_layer("teacher", hidden, weight, inputs.teacher_bias, inputs.student_hidden)
    return "teacher_hidden", hidden.shape, weight.shape[0]


def _check_topk_teacher(inputs: LinearKDLossInputs, options: LinearKDLossOptions) -> torch.Size:
    """Check a teacher known by K classes a row, and return its shape."""
    values, indices = inputs.teacher_values, inputs.teacher_indices
    if values is None or indices is None:
        raise TypeError(
            f"{FUNCTION}: expected teacher_values and teacher_indices, "
            f"got {'teacher_indices' if values is None else 'teacher_values'} alone"
        )
    check_topk_tensors(FUNCTION, values, indices, inputs.student_hidden, -1)
    unserved = [
        f"{name}={value!r}"
        for name, value, plain in (
            ("divergence", options.divergence, "forward_kl"),
            ("standardize_logits", options.standardize_logits, False),
            ("common_vocab", options.common_vocab, False),
        )
        if value != plain
    ]
    if unserved:
        raise ValueError(
            f"{FUNCTION}: a teacher by teacher_values is compared by forward KL over the student's "
            f"classes, got {', '.join(unserved)}"
        )
    return values.shape


def _check_of_topk_alone(options: LinearKDLossOptions) -> None:
    if (options.teacher_is, options.tail) != ("log_probs", "bucket"):
        raise ValueError(
            f"{FUNCTION}: teacher_is and tail are of a teacher by teacher_values, which is not "
            f"given, got teacher_is={options.teacher_is!r}, tail={options.tail!r}"
        )


def _check_layer(
    side: str, hidden: Tensor, weight: Tensor, bias: Tensor | None, student: Tensor
) -> None:
    """Check what gives one side's logits."""
    layer = {f"{side}_hidden": hidden, f"{side}_weight": weight}
    if bias is not None:
        layer[f"{side}_bias"] = bias
    for name, tensor in layer.items():
        check_floating(FUNCTION, name, tensor)
        check_device(FUNCTION, name, tensor, student)
    if hidden.ndim == 0 or weight.ndim != 2 or weight.shape[1] != hidden.shape[-1]:
        raise ValueError(
            f"{FUNCTION}: {side}_weight must have shape (V, H) for {side}_hidden of shape "
            f"(..., H), got {tuple(weight.shape)} for {tuple(hidden.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(
            f"{FUNCTION}: {side}_bias must have shape ({weight.shape[0]},), got {tuple(bias.shape)}"
        )
    dtypes = [str(tensor.dtype) for tensor in layer.values()]
    if len(set(dtypes)) > 1 and not autocasts(hidden.device):
        raise TypeError(
            f"{FUNCTION}: {', '.join(layer)} must have one dtype outside of autocast, "
            f"got {', '.join(dtypes)}"
        )


def autocasts(device: torch.device) -> bool:
    """Whether torch.autocast is on for a device."""
    return has_autocast(device) and torch.is_autocast_enabled(device.type)
