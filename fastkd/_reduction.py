# SPDX-License-Identifier: Apache-2.0
"""From row losses to the reduced loss, for the reference; the kernels do the same in csrc."""

from torch import Tensor

from fastkd._options import Reduction


def reduce_rows(
    row_loss: Tensor,
    weight: Tensor,
    reduction: Reduction,
    batch_size: int,
    num_items: float | Tensor | None,
) -> Tensor:
    """Reduce weighted row losses; a denominator of 0 gives 0 with a zero gradient.

    Args:
        row_loss: losses times weights, [rows].
        weight: weights, 0 for rows that do not count, [rows].
        reduction: how to reduce.
        batch_size: denominator of "batchmean".
        num_items: replaces the denominator of "mean" and "batchmean".
    """
    if reduction == "none":
        return row_loss
    return reduce_total(row_loss.sum(), weight.sum(), reduction, batch_size, num_items)


def reduce_total(
    total: Tensor,
    count: float | Tensor,
    reduction: Reduction,
    batch_size: int,
    num_items: float | Tensor | None,
) -> Tensor:
    """The same from the sum of the row losses, and of the weights: `count`."""
    if reduction == "sum":
        return total
    denominator: float | Tensor
    if num_items is not None:
        denominator = num_items
    elif reduction == "mean":
        denominator = count
    else:
        denominator = batch_size
    if isinstance(denominator, Tensor):
        denominator = denominator.to(total)
        empty = denominator == 0
        return (total / denominator.masked_fill(empty, 1)).masked_fill(empty, 0)
    return total / denominator if denominator else (total * 0).nan_to_num()
