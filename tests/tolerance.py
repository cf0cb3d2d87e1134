# SPDX-License-Identifier: Apache-2.0
"""How wrong a kernel may be: twice what plain PyTorch is wrong in the same dtype, or a small floor.

Errors are taken against the reference in float64 on the same (rounded) inputs, relative to the
largest true value (absolute where all true values are 0).
"""

import torch
from torch import Tensor

# A few units in the last place of a float32 sum.
LOSS_FLOOR = 6e-7
GRAD_FLOOR = 6e-7

# Half a unit in the last place: what rounding to the dtype costs a value just above a power of two.
HALF_UNIT = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


def relative_error(value: Tensor, truth: Tensor) -> float:
    """Largest absolute error over the largest absolute truth; 0 where both are equal."""
    if value.numel() == 0:
        return 0.0
    value, truth = value.detach().double(), truth.detach().double()
    same = (value == truth) | (value.isnan() & truth.isnan())
    if bool(same.all()):
        return 0.0
    if not bool((value.isfinite() | same).all()):
        return float("inf")
    error = float(torch.where(same, 0, value - truth).abs().max())
    scale = float(torch.where(truth.isfinite(), truth, 0).abs().max())
    return error / scale if scale else error


def assert_as_good(value: Tensor, plain: Tensor, truth: Tensor, floor: float, what: str) -> None:
    """`value` (the kernel's) may err twice as much as `plain` (PyTorch's in that dtype)."""
    assert value.shape == truth.shape, f"{what}: shape {value.shape} is not {truth.shape}"
    error, allowed = relative_error(value, truth), 2 * relative_error(plain, truth) + floor
    assert error <= allowed, f"{what}: error {error:.3g} is above {allowed:.3g}"
