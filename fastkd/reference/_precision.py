# SPDX-License-Identifier: Apache-2.0
"""In which types the references compute."""

import contextlib
import functools

import torch
from torch import Tensor

from fastkd._validation import has_autocast


def same_dtype(*tensors: Tensor) -> tuple[Tensor, ...]:
    """All in the widest of their types, float32 at least."""
    dtype = widest_dtype(*tensors)
    return tuple(t.to(dtype) for t in tensors)


def widest_dtype(*tensors: Tensor) -> torch.dtype:
    """Of their types and float32."""
    return functools.reduce(torch.promote_types, (t.dtype for t in tensors), torch.float32)


def kept(constant: Tensor) -> Tensor:
    """A tensor as autograd may keep it: what inference_mode made has to be copied."""
    # Dynamo traces no is_inference; fastkd/ops/_constant.py sees to what public functions take.
    if torch.compiler.is_compiling() or not constant.is_inference():
        return constant
    return constant.clone()


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Where products keep their operands' type, which autocast would halve."""
    if not has_autocast(device):
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)
