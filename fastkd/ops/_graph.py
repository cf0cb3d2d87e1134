# SPDX-License-Identifier: Apache-2.0
"""What the autograd functions of all losses need of the graph they stand in."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastkd.reference._precision import without_autocast

Versions = list[int | None]


def graph_is_kept() -> bool:
    """Whether backward may run again; True where torch does not tell."""
    ask = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return True if ask is None else bool(ask())


def versions_of(constants: Sequence[Tensor | None]) -> Versions:
    """Counts of in-place changes, where torch counts."""
    return [None if t is None or t.is_inference() else t._version for t in constants]


def check_unchanged(
    function: str,
    names: str,
    constants: Sequence[Tensor | None],
    versions: Versions,
    reader: str = "backward(create_graph=True)",
) -> None:
    """Raise where backward, double backward mostly, would read what the loss has not seen."""
    if versions_of(constants) != versions:
        raise RuntimeError(
            f"{function}: {names} was changed in place before {reader}, which reads it again"
        )


def backward_of_reference(
    evaluate: Callable[[], Tensor], student: Tensor, grad_loss: Tensor
) -> Tensor:
    """The student's gradient through plain PyTorch, differentiable itself where asked."""
    with without_autocast(student.device):  # which is on where backward runs inside of it
        with torch.enable_grad():
            loss = evaluate()
        grad: Tensor
        (grad,) = torch.autograd.grad(
            loss, student, grad_loss.to(loss.dtype), create_graph=torch.is_grad_enabled()
        )
    return grad
