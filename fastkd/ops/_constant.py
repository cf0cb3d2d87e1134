# SPDX-License-Identifier: Apache-2.0
"""What gets no gradient, for losses of torch's own operations: inference_mode may have made it."""

import torch
from torch import Tensor


def constant(tensor: Tensor) -> Tensor:
    """The tensor without a gradient, such that a compiled backward pass may keep it.

    In eager mode the references see to that. Dynamo can't tell what inference_mode made, and what
    compiles the backward pass may keep the input of a clone in place of the clone; it can't see
    through this copy.
    """
    tensor = tensor.detach()
    if not torch.compiler.is_compiling():
        return tensor
    from fastkd._compiling import is_exporting  # noqa: PLC0415 - it imports torch._dynamo

    return _copy(tensor) if torch.is_grad_enabled() and not is_exporting() else tensor


@torch.library.custom_op("fastkd::copy", mutates_args=())
def _copy(tensor: Tensor) -> Tensor:
    return tensor.clone()


@_copy.register_fake
def _(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor)


@_copy.register_vmap
def _(info: object, in_dims: tuple[int], tensor: Tensor) -> tuple[Tensor, int]:
    return _copy(tensor), in_dims[0]
