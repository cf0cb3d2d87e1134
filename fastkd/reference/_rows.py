# SPDX-License-Identifier: Apache-2.0
"""What the losses of rows of logits share, in plain PyTorch."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from fastkd._options import KDLossInputs, RowOptions
from fastkd._reduction import reduce_rows


class Rows(NamedTuple):
    """Logits with the classes last, in the loss's dtype, and what each row weighs."""

    student: Tensor  # (..., C)
    teacher: Tensor
    weight: Tensor  # (...), 0 for rows that do not count

    def reduce(self, row_loss: Tensor, inputs: KDLossInputs, options: RowOptions) -> Tensor:
        """The loss, from those of the rows."""
        batch_size = row_loss.shape[0] if row_loss.ndim else 1
        weighted = self.weight * row_loss
        return reduce_rows(weighted, self.weight, options.reduction, batch_size, inputs.num_items)


def rows_of(inputs: KDLossInputs, options: RowOptions) -> Rows:
    """Of checked arguments."""
    student_logits, teacher_logits, target, sample_weight, *_ = inputs
    dtype = torch.promote_types(
        torch.promote_types(student_logits.dtype, teacher_logits.dtype), torch.float32
    )
    student = student_logits.movedim(options.dim, -1).to(dtype)
    teacher = teacher_logits.movedim(options.dim, -1).to(dtype)
    weight = student.new_ones(student.shape[:-1])
    if sample_weight is not None:
        weight = sample_weight.to(dtype)
    if target is not None:
        weight = weight.masked_fill(target == options.ignore_index, 0)
    if target is not None or sample_weight is not None:
        # Rows that do not count may hold anything, NaN too: neither value nor gradient sees them.
        ignored = (weight == 0).unsqueeze(-1)
        student = student.masked_fill(ignored, 0)
        teacher = teacher.masked_fill(ignored, 0)
    return Rows(student, teacher, weight)


def class_of(target: Tensor, ignore_index: int) -> Tensor:
    """(..., 1) class indices; 0 in rows that do not count."""
    return target.masked_fill(target == ignore_index, 0).unsqueeze(-1)


def kl_divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) of each row, of logarithms."""
    p = log_p.exp()
    # p = 0 adds 0 whatever q is, and no NaN of (-inf) - (-inf) reaches a gradient.
    absent = p == 0
    difference = log_p.masked_fill(absent, 0) - log_q.masked_fill(absent, 0)
    return (p * difference).sum(-1)


def cross_entropy(student: Tensor, label: Tensor, smoothing: float = 0.0) -> Tensor:
    """Of each row, at the classes of `class_of`."""
    log_q = log_softmax(student, -1)
    loss = torch.zeros_like(log_q[..., 0])
    if smoothing != 1:
        loss = loss - (1 - smoothing) * log_q.gather(-1, label).squeeze(-1)
    if smoothing != 0:
        loss = loss - smoothing * log_q.mean(-1)
    return loss
