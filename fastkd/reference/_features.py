# SPDX-License-Identifier: Apache-2.0
"""What the feature losses share, in plain PyTorch."""

from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d


def to_one_size(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both averaged down to the smaller height and the smaller width; [N, C, H, W]."""
    size = (min(a.shape[2], b.shape[2]), min(a.shape[3], b.shape[3]))
    return _pooled(a, size), _pooled(b, size)


def _pooled(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return maps if maps.shape[2:] == size else adaptive_avg_pool2d(maps, size)


def over_examples(total: Tensor, reduction: str, examples: int) -> Tensor:
    """From the sum over the examples."""
    return total if reduction == "sum" else total / examples
