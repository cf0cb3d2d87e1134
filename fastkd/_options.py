# SPDX-License-Identifier: Apache-2.0
"""Arguments of the losses, as the layers below the public functions pass them on."""

import numbers
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

# torch.compile passes symbols where a number may change from call to call.
_INTEGER = (int, torch.SymInt)
_REAL = (numbers.Real, torch.SymFloat, torch.SymInt)

_2_63 = 1 << 63

Reduction = Literal["none", "sum", "mean", "batchmean"]
Divergence = Literal["forward_kl"]


class KDLossInputs(NamedTuple):
    """The arguments of `kd_loss` that change from call to call; see there for their meaning."""

    student: Tensor
    teacher: Tensor
    target: Tensor | None
    sample_weight: Tensor | None
    num_items: float | Tensor | None

    def constant(self) -> "KDLossInputs":
        """The same with a gradient for the student only."""
        student, teacher, target, weight, num_items = self
        weight = None if weight is None else weight.detach()
        num_items = num_items.detach() if isinstance(num_items, Tensor) else num_items
        return KDLossInputs(student, teacher.detach(), target, weight, num_items)


@dataclass(frozen=True, slots=True)
class KDLossOptions:
    """The other arguments of `kd_loss`, validated once."""

    temperature: float = 1.0
    alpha: float = 0.5
    divergence: Divergence = "forward_kl"
    dim: int = -1
    ignore_index: int = -100
    label_smoothing: float = 0.0
    reduction: Reduction = "mean"
    temperature_squared: bool = True
    common_vocab: bool = False

    def __post_init__(self) -> None:
        # Beyond these bounds T^2 or 1 / T leave float32.
        _check_real("temperature", self.temperature, "in [1e-6, 1e6]", lambda x: 1e-6 <= x <= 1e6)
        _check_real("alpha", self.alpha, "in [0, 1]", lambda x: 0 <= x <= 1)
        _check_real("label_smoothing", self.label_smoothing, "in [0, 1]", lambda x: 0 <= x <= 1)
        _check_choice("divergence", self.divergence, get_args(Divergence))
        _check_choice("reduction", self.reduction, get_args(Reduction))
        _check_type("dim", self.dim, int)
        _check_type("ignore_index", self.ignore_index, int)
        _check_real("ignore_index", self.ignore_index, "an int64", lambda x: -_2_63 <= x < _2_63)
        _check_type("temperature_squared", self.temperature_squared, bool)
        _check_type("common_vocab", self.common_vocab, bool)

    @property
    def soft_factor(self) -> float:
        """What multiplies the divergence: T^2 or 1."""
        return self.temperature**2 if self.temperature_squared else 1.0


def _check_real(name: str, value: Any, rule: str, is_valid: Any) -> None:
    if isinstance(value, bool | Fraction) or not isinstance(value, _REAL):
        raise TypeError(f"kd_loss: {name} must be a real number, got {_describe(value)}")
    if not is_valid(value):
        raise ValueError(f"kd_loss: {name} must be {rule}, got {value}")


def _check_type(name: str, value: Any, wanted: type) -> None:
    types = _INTEGER if wanted is int else wanted
    if not isinstance(value, types) or (wanted is int and isinstance(value, bool)):
        raise TypeError(f"kd_loss: {name} must be {wanted.__name__}, got {_describe(value)}")


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"kd_loss: {name} must be one of {', '.join(choices)}, got {value!r}")


def _describe(value: Any) -> str:
    return f"{type(value).__name__} {value!r}"
