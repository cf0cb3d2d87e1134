# SPDX-License-Identifier: Apache-2.0
"""How the references keep squares and products of large numbers within float32."""

import torch
from torch import Tensor

_LEAST = 2.0**-100  # below the norms that count as 0 anywhere, and not subnormal


def near_one(x: Tensor, dim: int | tuple[int, ...], least: float = _LEAST) -> tuple[Tensor, Tensor]:
    """x over the power of two at its largest magnitude along `dim`, and that power.

    Division by a power of two is exact. To autograd the power is a constant: right where the result
    does not depend on it.

    Args:
        x: any numbers; NaN and infinity give NaN.
        dim: what one power is taken over; these dimensions of the power have size 1.
        least: what a smaller magnitude counts as.
    """
    power = power_of_two(x.detach().abs().amax(dim, keepdim=True).clamp_min(least))
    return x / power, power


def power_of_two(x: Tensor) -> Tensor:
    """The power of two at each number, which has to be positive and not subnormal."""
    return x / (2 * torch.frexp(x).mantissa)
