# SPDX-License-Identifier: Apache-2.0
"""Calls of the relational kernels, which read float32 embeddings [N, D]."""

from typing import Any

import torch
from torch import Tensor

from fastkd import _native
from fastkd.ops._module import module_of


def run(
    kernel: _native.PairKernel,
    function: str,
    make_options: Any,
    student: Tensor,
    teacher: Tensor,
    with_grad: bool,
) -> tuple[Tensor, Tensor | None]:
    """Loss and gradient by the native `kernel`, on plain tensors of a device that has a module."""
    module = module_of(function, student)
    student_rows, teacher_rows = _rows(student), _rows(teacher)
    # The device is named: torch.set_default_device must not move what the kernel writes.
    loss = torch.empty((), dtype=torch.float32, device=student.device)
    grad = torch.empty_like(student_rows) if with_grad else None
    _native.run_pairs(module, kernel, make_options(module), student_rows, teacher_rows, loss, grad)
    if grad is not None and grad.shape != student.shape:
        grad = grad.view(student.shape)
    return loss, grad


def _rows(batch: Tensor) -> Tensor:
    if batch.ndim == 2 and batch.dtype == torch.float32 and batch.is_contiguous():
        return batch
    return batch.detach().reshape(len(batch), -1).to(torch.float32).contiguous()
