# SPDX-License-Identifier: Apache-2.0
"""What only a compiler asks. Importing this module imports torch._dynamo, which takes a second."""

import torch

from fastkd import _backends


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def is_served(device: int) -> bool:
    """Whether a module serves tensors of a device; the answer is a constant of the program."""
    return _backends.module_for(device) is not None


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def is_exporting() -> bool:
    """Return torch.compiler.is_exporting(), which torch 2.10's compiler would replace by True."""
    return torch.compiler.is_exporting()
