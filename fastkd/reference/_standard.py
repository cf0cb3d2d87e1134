# SPDX-License-Identifier: Apache-2.0
"""Logits as z-scores."""

import math

import torch
from torch import Tensor

from fastkd.reference._scale import near_one

EPS = 1e-7  # of the original code, beside the deviation


def standardized(logits: Tensor, dim: int) -> Tensor:
    """(x - mean) / (deviation + eps) along `dim`, with the sample's deviation (C - 1).

    Masked classes become -inf and are not of the sample: those at -inf, or where masks are the
    dtype's lowest number. Where all others are equal they become 0 without a gradient, which would
    be 0 over eps.
    """
    masked = logits <= torch.finfo(logits.dtype).min / 2
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
    scores = centred.masked_fill(level, 0) / (deviation + EPS / power)
    return scores.masked_fill(masked, -math.inf)
