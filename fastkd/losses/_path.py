# SPDX-License-Identifier: Apache-2.0
"""The choice between kernel and reference, for the checked arguments of a public function."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from fastkd import _front
from fastkd._feature_validation import check_embeddings
from fastkd._options import KDLossInputs
from fastkd._topk_validation import check_topk
from fastkd._validation import check_not_leaf, check_target_range, read_num_items
from fastkd.ops import _row_loss
from fastkd.ops._constant import constant
from fastkd.ops._with_gradient import Evaluate, Paths

Options = TypeVar("Options")


def call(
    paths: Paths, evaluate: Evaluate, student: Tensor, teacher: Tensor, options: Any
) -> Tensor:
    """Compute the loss by the kernel, or by the reference if no kernel serves."""
    path = _front.choose_path(student, teacher)
    if path == "eager":
        return paths.eager(student, teacher, options)
    if path == "compiled":
        return paths.compiled(student, teacher, options)
    return evaluate(student, constant(teacher), options)


def call_on_embeddings(
    paths: Paths, evaluate: Evaluate, student: Tensor, teacher: Tensor, options: Any
) -> Tensor:
    """Check two batches of embeddings and compute the loss."""
    check_embeddings(options.FUNCTION, student, teacher)
    return call(paths, evaluate, student, teacher, options)


def call_on_rows(
    paths: _row_loss.Paths,
    evaluate: _row_loss.Path,
    inputs: KDLossInputs,
    options: Any,
) -> Tensor:
    """Compute the loss of rows of logits."""
    in_plain_python = not torch.compiler.is_compiling()
    if options.inplace and in_plain_python:
        check_not_leaf(options.function, inputs.student)
    path = _front.choose_path(inputs.student, *inputs.constants())
    if path == "reference" and in_plain_python and not _front.in_transform():
        classes = inputs.student.shape[options.dim]
        check_values(options.function, inputs.target, inputs.num_items, classes, options)
        # On a GPU too, where gather would end the process's use of it: there is no kernel to wait.
        if inputs.indices is not None and _front.is_plain(inputs.indices):
            check_topk(inputs, options, classes)
    if path == "reference":
        return evaluate(inputs.constant()._replace(teacher=constant(inputs.teacher)), options)
    return (paths.eager if path == "eager" else paths.compiled)(inputs, options)


def check_values(
    function: str, target: Tensor | None, num_items: Any, classes: int, options: Any
) -> None:
    """Check what the kernels check as they read, but only on the CPU: a GPU would have to sync."""
    if target is not None and _front.is_plain(target) and not target.is_cuda:
        check_target_range(function, target, options.ignore_index, classes)
    if isinstance(num_items, Tensor) and _front.is_plain(num_items) and not num_items.is_cuda:
        read_num_items(function, num_items)


def options_of(kind: Callable[..., Options], *values: object) -> Options:
    """Return validated options; equal values are validated once."""
    if torch.compiler.is_compiling():  # Dynamo does not trace into a cache
        return kind(*values)
    try:
        options: Options = _cached(kind, *values)
    except TypeError:  # an unhashable value: construct it for the message that names it
        return kind(*values)
    return options


@functools.lru_cache(maxsize=256, typed=True)
def _cached(kind: Any, *values: object) -> Any:
    return kind(*values)
