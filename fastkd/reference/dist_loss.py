# SPDX-License-Identifier: Apache-2.0
"""Correlations between and within classes, in plain PyTorch."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastkd._feature_options import DISTOptions
from fastkd._validation import check_masked_logits
from fastkd.reference._precision import same_dtype
from fastkd.reference._scale import near_one

EPS = 1e-8  # of the original code, beside the product of the norms
_ROUNDING = 8  # units in the last place that the mean of equal numbers may be off, with room


class Rows(NamedTuple):
    """Which dimensions of the logits are the classes and the rows, and which rows count."""

    dim: int
    others: tuple[int, ...]
    classes: int
    ignored: Tensor | None  # of the logits' shape with size 1 in `dim`
    counted: int | Tensor  # how many, at least 1
    none: Tensor | None  # whether no row counts

    def finish(self, x: Tensor) -> Tensor:
        """0 where no row counts."""
        return x if self.none is None else x.masked_fill(self.none, 0)

    def masked(self, x: Tensor) -> Tensor:
        """0 in the rows that do not count."""
        return x if self.ignored is None else x.masked_fill(self.ignored, 0)


def rows_of(logits: Tensor, mask: Tensor | None, dim: int) -> Rows:
    """Of logits with at least two dimensions and one row; `dim` is counted from the front."""
    others = tuple(i for i in range(logits.ndim) if i != dim)
    classes = logits.shape[dim]
    if mask is None:
        return Rows(dim, others, classes, None, logits.numel() // classes, None)
    count = mask.sum()
    return Rows(dim, others, classes, ~mask.unsqueeze(dim), count.clamp_min(1), count == 0)


def is_level(square: Tensor, count: int | Tensor, mean: float | Tensor) -> Tensor:
    """Whether numbers are equal but for rounding; `square`: of all distances from their mean."""
    noise = _ROUNDING * torch.finfo(square.dtype).eps * mean
    return square <= count * noise**2


def dist_loss(
    student_logits: Tensor, teacher_logits: Tensor, *, mask: Tensor | None = None, **options: Any
) -> Tensor:
    """`fastkd.dist_loss` in plain PyTorch, differentiable in both logits.

    Args:
        student_logits: as in `fastkd.dist_loss`.
        teacher_logits: as in `fastkd.dist_loss`, but gets a gradient if it requires one.
        mask: as in `fastkd.dist_loss`.
        **options: the other keyword options of `fastkd.dist_loss`.

    Returns:
        The loss, float32, or float64 if one of the logits is.
    """
    checked = DISTOptions(**options)
    check_masked_logits("dist_loss", student_logits, teacher_logits, checked.dim, mask)
    return evaluate(student_logits, teacher_logits, mask, checked)


def evaluate(
    student_logits: Tensor, teacher_logits: Tensor, mask: Tensor | None, options: DISTOptions
) -> Tensor:
    """The formula itself, on checked arguments."""
    student, teacher = same_dtype(student_logits, teacher_logits)
    dim = options.dim % student.ndim
    if student.ndim == 1:
        student, teacher, dim = student.unsqueeze(0), teacher.unsqueeze(0), 1
        mask = None if mask is None else mask.unsqueeze(0)
    if student.numel() == 0:
        return student.sum()
    rows = rows_of(student, mask, dim)
    # Rows that do not count may hold anything; zeros make them uniform, which correlates with
    # nothing and has no gradient.
    q = (rows.masked(student) / options.temperature).softmax(rows.dim)
    p = (rows.masked(teacher) / options.temperature).softmax(rows.dim)
    uniform = 1 / rows.classes  # the mean of a row
    of_rows = _correlation(q, p, uniform, uniform, (rows.dim,), rows.classes, rows)
    q_mean, p_mean = (rows.masked(x).sum(rows.others, keepdim=True) / rows.counted for x in (q, p))
    of_columns = _correlation(q, p, q_mean, p_mean, rows.others, rows.counted, rows)
    inter = options.inter_factor * (1 - of_rows.sum() / rows.counted)
    intra = options.intra_factor * (1 - of_columns.mean())
    return rows.finish(inter + intra)


def _correlation(
    q: Tensor,
    p: Tensor,
    q_mean: float | Tensor,
    p_mean: float | Tensor,
    dims: tuple[int, ...],
    count: int | Tensor,
    rows: Rows,
) -> Tensor:
    """Pearson's, damped by EPS; 0 with no gradient where a side is level."""
    # Scaled, so that float32 holds the powers of their norms which derivatives have.
    a, a_power = near_one(rows.masked(q - q_mean), dims)
    b, b_power = near_one(rows.masked(p - p_mean), dims)
    a_norm, a_level = _norm(a, count, q_mean / a_power, dims)
    b_norm, b_level = _norm(b, count, p_mean / b_power, dims)
    damping = EPS / a_power / b_power  # infinite where nothing is left of the correlation
    correlation = (a * b).sum(dims, keepdim=True) / (a_norm * b_norm + damping)
    return correlation.masked_fill(a_level | b_level, 0)


def _norm(
    x: Tensor, count: int | Tensor, mean: Tensor, dims: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """And whether it is that of rounding."""
    square = x.square().sum(dims, keepdim=True)
    level = is_level(square, count, mean)
    return square.masked_fill(level, 1).sqrt(), level
