# SPDX-License-Identifier: Apache-2.0
"""What the relational losses share, in plain PyTorch."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from fastkd.reference import _precision
from fastkd.reference._scale import near_one

_CRITERIA: dict[str, Callable[..., Tensor]] = {
    "l1": functional.l1_loss,
    "l2": functional.mse_loss,
}


def same_dtype(student: Tensor, teacher: Tensor) -> tuple[Tensor, ...]:
    """Both in the wider of their types, float32 at least."""
    return _precision.same_dtype(student, _precision.kept(teacher))


def gram(x: Tensor) -> Tensor:
    """Inner products of all rows. [..., N, N]."""
    with _precision.without_autocast(x.device):
        return x @ x.mT


def on_diagonal(table: Tensor) -> Tensor:
    """Where the last two indices are the same."""
    # Made from the table and not by torch.eye: what the table is (fake, say), this is too.
    return table.new_ones(table.shape[-1], dtype=torch.bool).diag_embed()


def inverse_root(square: Tensor, eps: Tensor) -> Tensor:
    """1 / sqrt(square), and 0 with no gradient where the root is at most eps."""
    nothing = square <= eps * eps
    return square.masked_fill(nothing, 1).rsqrt().masked_fill(nothing, 0)


def cosine_table(x: Tensor, eps: float) -> Tensor:
    """Cosines between all rows, 0 for rows no longer than eps. [..., N, N] of [..., N, D]."""
    x, power = near_one(x, -1)
    square, floor = x.square().sum(-1), eps / power.squeeze(-1)
    table = gram(x * inverse_root(square, floor).unsqueeze(-1))
    with_itself = (square > floor * floor).to(x.dtype) + square * 0  # NaN stays
    return torch.where(on_diagonal(table), with_itself.detach().unsqueeze(-1), table)


def compare(student: Tensor, teacher: Tensor, criterion: str, beta: float) -> Tensor:
    """The criterion, entry by entry."""
    if criterion == "smooth_l1":
        return functional.smooth_l1_loss(student, teacher, reduction="none", beta=beta)
    return _CRITERIA[criterion](student, teacher, reduction="none")


def reduce_relations(loss: Tensor, reduction: str) -> Tensor:
    """From the losses of all pairs [N, N], or triplets [N, N, N] with the vertex first."""
    rows, order = loss.shape[-1], loss.ndim
    if reduction == "sum":
        return loss.sum()
    if reduction == "mean":
        return loss.mean()
    distinct = 1
    for i in range(order):
        distinct *= max(rows - i, 0)
    return (loss * ~on_diagonal(loss)).sum() / max(distinct, 1)  # NaN stays, of one row too
