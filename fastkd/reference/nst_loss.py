# SPDX-License-Identifier: Apache-2.0
"""Neuron selectivity transfer with a polynomial kernel, in plain PyTorch.

Nothing larger than a Gram matrix of one example is built, over its channels or over its positions,
whichever costs less.
"""

from typing import Any

import torch
from torch import Tensor

from fastkd._feature_options import NSTOptions
from fastkd._feature_validation import check_maps
from fastkd.reference._features import over_examples, to_one_size
from fastkd.reference._precision import kept, same_dtype, without_autocast
from fastkd.reference._relations import inverse_root, on_diagonal
from fastkd.reference._scale import power_of_two

_EPS = 1e-12  # of torch.nn.functional.normalize, which the original code calls


def nst_loss(student_features: Tensor, teacher_features: Tensor, **options: Any) -> Tensor:
    """`fastkd.nst_loss` in plain PyTorch, differentiable in both features.

    Args:
        student_features: as in `fastkd.nst_loss`.
        teacher_features: the same, but gets a gradient if it requires one.
        **options: the keyword options of `fastkd.nst_loss`.

    Returns:
        The loss, float32, or float64 if one of the features is.
    """
    checked = NSTOptions(**options)
    check_maps("nst_loss", student_features, teacher_features, checked.interpolate)
    return evaluate(student_features, teacher_features, checked)


def evaluate(student_features: Tensor, teacher_features: Tensor, options: NSTOptions) -> Tensor:
    """The formula itself, on checked arguments."""
    student, teacher = same_dtype(student_features, teacher_features)
    if options.interpolate:
        student, teacher = to_one_size(student, teacher)
    student, teacher = student.flatten(2), kept(teacher).flatten(2)
    # Multiplications of the products: positions^2 (C_s + C_t) against
    # positions (C_s^2 + C_t^2 + C_s C_t).
    examples, s, positions = student.shape
    t = teacher.shape[1]
    by_positions = positions * (s + t) <= s * s + t * t + s * t
    with without_autocast(student.device):
        total = (_by_positions if by_positions else _by_channels)(student, teacher)
    return over_examples(total, options.reduction, examples)


def _by_positions(student: Tensor, teacher: Tensor) -> Tensor:
    """|S^T S / C_s - T^T T / C_t|^2 summed over examples, S and T [N, C, positions]."""
    return (_position_gram(student) - _position_gram(teacher)).square().sum()


def _position_gram(maps: Tensor) -> Tensor:
    unit = maps * _inverse_norm(maps.square().sum(2)).unsqueeze(2)
    return torch.bmm(unit.mT, unit) / maps.shape[1]


def _by_channels(student: Tensor, teacher: Tensor) -> Tensor:
    """The same as |S S^T|^2 / C_s^2 + |T T^T|^2 / C_t^2 - 2 |S T^T|^2 / (C_s C_t).

    The maps are never normalised, their small Gram matrices are: all passes over the maps are
    products. Every Gram matrix is summed in the same way, so that equal maps give exactly 0.
    """
    student_gram = torch.bmm(student, student.mT)
    teacher_gram = torch.bmm(teacher, teacher.mT)
    student_scale = _inverse_norm(_diagonal(student_gram))
    teacher_scale = _inverse_norm(_diagonal(teacher_gram))
    cross = torch.bmm(student, teacher.mT)
    own = _mean_square_cosine(student_gram, student_scale, student_scale)
    teachers_own = _mean_square_cosine(teacher_gram, teacher_scale, teacher_scale)
    return own + teachers_own - 2 * _mean_square_cosine(cross, student_scale, teacher_scale)


def _inverse_norm(square: Tensor) -> Tensor:
    """1 / root; 0 where that is at most _EPS."""
    # Near 1 its derivatives are numbers near 1, whose powers float32 holds. The power of two is a
    # constant to autograd, as what depends on it cancels.
    power = power_of_two(square.detach().sqrt().clamp_min(_EPS))
    return inverse_root(square / power / power, _EPS / power) / power


def _diagonal(gram: Tensor) -> Tensor:
    # Not gram.diagonal(), whose gradient Inductor (torch 2.13, CPU) compiles wrongly here.
    return torch.where(on_diagonal(gram), gram, 0).sum(2)


def _mean_square_cosine(products: Tensor, scale: Tensor, other: Tensor) -> Tensor:
    """Mean over the pairs of channels, summed over the examples."""
    # Scaled before squaring, which would leave float32 for maps of 1e10 and 1e-10.
    cosine = products * (scale.unsqueeze(2) * other.unsqueeze(1))
    return cosine.square().sum() / (scale.shape[1] * other.shape[1])
