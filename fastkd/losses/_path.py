# SPDX-License-Identifier: Apache-2.0
"""From a public function's checked arguments to the way that serves them."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from fastkd import _front
from fastkd._validation import check_embeddings
from fastkd.ops._constant import constant
from fastkd.ops._with_gradient import Evaluate, Paths

Options = TypeVar("Options")


def call(
    paths: Paths, evaluate: Evaluate, student: Tensor, teacher: Tensor, options: Any
) -> Tensor:
    """The loss by the kernel, or by the reference where no kernel serves."""
    path = _front.choose_path(student, teacher)
    if path == "eager":
        return paths.eager(student, teacher, options)
    if path == "compiled":
        return paths.compiled(student, teacher, options)
    return evaluate(student, constant(teacher), options)


def call_on_embeddings(
    paths: Paths, evaluate: Evaluate, student: Tensor, teacher: Tensor, options: Any
) -> Tensor:
    """The same of two batches of embeddings, after their checks."""
    check_embeddings(options.FUNCTION, student, teacher)
    return call(paths, evaluate, student, teacher, options)


def options_of(kind: Callable[..., Options], *values: object) -> Options:
    """Validated options; the same values are validated once."""
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
