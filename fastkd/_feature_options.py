# SPDX-License-Identifier: Apache-2.0
"""Options of the losses that torch's own operations serve, validated once."""

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from fastkd._option_checks import check_choice, check_type, check_weight
from fastkd._options import AtTemperature, Reduction

ElementReduction = Literal["mean", "sum", "batchmean"]
ExampleReduction = Literal["mean", "sum"]
RegressorKind = Literal["linear", "conv1x1"]


@dataclass(frozen=True, slots=True)
class LogitMSEOptions:
    """Of `logit_mse_loss`."""

    dim: int = -1
    zero_mean: bool = False
    reduction: Reduction = "mean"

    FUNCTION: ClassVar = "logit_mse_loss"

    def __post_init__(self) -> None:
        check_type(self.FUNCTION, "dim", self.dim, int)
        check_type(self.FUNCTION, "zero_mean", self.zero_mean, bool)
        check_choice(self.FUNCTION, "reduction", self.reduction, get_args(Reduction))


@dataclass(frozen=True, slots=True)
class DISTOptions(AtTemperature):
    """Of `dist_loss`."""

    temperature: float = 1.0
    beta: float = 1.0
    gamma: float = 1.0
    dim: int = -1
    temperature_squared: bool = True

    FUNCTION: ClassVar = "dist_loss"

    def __post_init__(self) -> None:
        self.check_temperature(self.FUNCTION)
        check_weight(self.FUNCTION, "beta", self.beta)
        check_weight(self.FUNCTION, "gamma", self.gamma)
        check_type(self.FUNCTION, "dim", self.dim, int)

    @property
    def inter_factor(self) -> float:
        """What multiplies the relation between classes."""
        return self.beta * self.soft_factor

    @property
    def intra_factor(self) -> float:
        """What multiplies the relation within classes."""
        return self.gamma * self.soft_factor


@dataclass(frozen=True, slots=True)
class HintOptions:
    """Of `hint_loss`."""

    reduction: ElementReduction = "mean"

    FUNCTION: ClassVar = "hint_loss"

    def __post_init__(self) -> None:
        check_choice(self.FUNCTION, "reduction", self.reduction, get_args(ElementReduction))


@dataclass(frozen=True, slots=True)
class FSPOptions:
    """Of `fsp_loss`."""

    reduction: ExampleReduction = "mean"

    FUNCTION: ClassVar = "fsp_loss"

    def __post_init__(self) -> None:
        check_choice(self.FUNCTION, "reduction", self.reduction, get_args(ExampleReduction))


@dataclass(frozen=True, slots=True)
class NSTOptions:
    """Of `nst_loss`."""

    interpolate: bool = False
    reduction: ExampleReduction = "mean"

    FUNCTION: ClassVar = "nst_loss"

    def __post_init__(self) -> None:
        check_type(self.FUNCTION, "interpolate", self.interpolate, bool)
        check_choice(self.FUNCTION, "reduction", self.reduction, get_args(ExampleReduction))
