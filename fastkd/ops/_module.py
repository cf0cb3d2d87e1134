# SPDX-License-Identifier: Apache-2.0
"""The compiled module that serves a tensor."""

from torch import Tensor

from fastkd import _backends
from fastkd._native_module import NativeModule


def module_of(function: str, tensor: Tensor) -> NativeModule:
    """The module for the tensor's device; the front has seen to it that there is one."""
    index = tensor.get_device()
    module = _backends.ready_module(index) or _backends.module_for(index)
    if module is None:  # a program may come from another machine
        raise RuntimeError(
            f"fastkd::{function} has no kernel here ({_backends.failure(index)}), and a program "
            f"that was compiled or exported where there is one needs it: fastkd.{function} does not"
        )
    return module
