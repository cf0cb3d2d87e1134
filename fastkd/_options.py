# SPDX-License-Identifier: Apache-2.0
"""Arguments of kd_loss, as the layers below the public function pass them on."""

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from torch import Tensor

from fastkd._option_checks import check_choice, check_real, check_type

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
        check_real(
            "kd_loss", "temperature", self.temperature, "in [1e-6, 1e6]", lambda x: 1e-6 <= x <= 1e6
        )
        check_real("kd_loss", "alpha", self.alpha, "in [0, 1]", lambda x: 0 <= x <= 1)
        check_real(
            "kd_loss", "label_smoothing", self.label_smoothing, "in [0, 1]", lambda x: 0 <= x <= 1
        )
        check_choice("kd_loss", "divergence", self.divergence, get_args(Divergence))
        check_choice("kd_loss", "reduction", self.reduction, get_args(Reduction))
        check_type("kd_loss", "dim", self.dim, int)
        check_type("kd_loss", "ignore_index", self.ignore_index, int)
        check_real(
            "kd_loss", "ignore_index", self.ignore_index, "an int64", lambda x: -_2_63 <= x < _2_63
        )
        check_type("kd_loss", "temperature_squared", self.temperature_squared, bool)
        check_type("kd_loss", "common_vocab", self.common_vocab, bool)

    @property
    def soft_factor(self) -> float:
        """What multiplies the divergence: T^2 or 1."""
        return self.temperature**2 if self.temperature_squared else 1.0
