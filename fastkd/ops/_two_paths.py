# SPDX-License-Identifier: Apache-2.0
"""The two ways to a kernel: an autograd function for eager calls, a registered op for compilers."""

import types
from collections.abc import Callable, Iterable
from dataclasses import Field
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

_TYPES: dict[Any, str] = {float: "float", int: "int", bool: "bool"}  # others: one of some words


Path = TypeVar("Path", bound=Callable[..., Tensor])


class TwoPaths(NamedTuple, Generic[Path]):
    """Both, called alike."""

    eager: Path
    compiled: Path


def autograd_apply(
    name: str, forward: Callable[..., Tensor], backward: Callable[..., tuple[Tensor | None, ...]]
) -> Callable[..., Tensor]:
    """The `apply` of an autograd function: forward(ctx, ...), backward(ctx, grad_loss).

    setup_context would cost 25 us a call.
    """
    # Not by `class`: autograd names the node after the class as it is made, and graphs show it.
    methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    base = torch.autograd.Function
    function: Any = types.new_class(name, (base,), exec_body=lambda d: d.update(methods))
    # Function.apply looks for functorch wrappers and then calls this; the front has excluded them,
    # which saves 2 us a call.
    apply: Callable[..., Tensor] = super(base, function).apply
    return apply


def schema_of(fields: Iterable[Field[Any]]) -> str:
    """Options as they stand in an op's schema, each after a comma."""
    return "".join(f", {_TYPES.get(field.type, 'str')} {field.name}" for field in fields)
