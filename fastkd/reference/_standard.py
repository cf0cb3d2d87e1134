# SPDX-License-Identifier: Apache-2.0
"""Logits as z-scores."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fastkd.reference._scale import near_one

EPS = 1e-7  # of the original code, beside the deviation


class Standard(NamedTuple):
    """What z-scores are made of, relative to a power of two at each row's spread."""

    masked: Tensor  # classes that are not of the sample
    level: Tensor  # rows whose other classes are equal
    sampled: Tensor  # how many others there are
    power: Tensor
    centred: Tensor  # x - mean, over the power; 0 where masked or level
    deviation: Tensor  # over the power; 1 where level
    damped: Tensor  # deviation + eps, over the power


def is_masked(logits: Tensor) -> Tensor:
    """Classes at -inf, or where masks are the dtype's lowest number."""
    return logits <= torch.finfo(logits.dtype).min / 2


def standard_of(logits: Tensor, dim: int) -> Standard:
    """The parts of the z-scores along `dim`, with the sample's deviation (C - 1)."""
    masked = is_masked(logits)
    count = (~masked).sum(dim, keepdim=True)
    # Relative to the largest, so that a common offset costs no digits; constants to autograd, as
    # the scores do not depend on the offset, nor but for eps on the scale.
    largest = logits.detach().amax(dim, keepdim=True)
    shifted = (logits - largest).masked_fill(masked, 0)
    scaled, power = near_one(shifted, dim)
    mean = scaled.sum(dim, keepdim=True) / count
    centred = (scaled - mean).masked_fill(masked, 0)
    level = (shifted == 0).all(dim, keepdim=True)
    square = centred.square().sum(dim, keepdim=True) / (count - 1).clamp_min(1)
    # sqrt has no derivative at 0, nor may its NaN be multiplied by 0.
    deviation = torch.where(level, 1, square).sqrt()
    damped = deviation + EPS / power
    return Standard(masked, level, count, power, centred.masked_fill(level, 0), deviation, damped)


def standardized(logits: Tensor, dim: int) -> Tensor:
    """(x - mean) / (deviation + eps) along `dim`.

    Masked classes become -inf. Where all others are equal they become 0 without a gradient, which
    would be 0 over eps.
    """
    standard = standard_of(logits, dim)
    return (standard.centred / standard.damped).masked_fill(standard.masked, -math.inf)
