# SPDX-License-Identifier: Apache-2.0
"""What only a compiler asks. torch._dynamo, which takes a second to import, comes with it."""

import torch

from fastkd import _backends


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def is_served(device: int) -> bool:
    """Whether a module serves tensors of a device; the answer is a constant of the program."""
    return _backends.module_for(device) is not None


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def is_exporting() -> bool:
    """torch.compiler.is_exporting, which the compiler of torch 2.10 always takes for true."""
    return torch.compiler.is_exporting()
