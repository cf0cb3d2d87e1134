# SPDX-License-Identifier: Apache-2.0
"""Options of attention transfer, validated once."""

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from fastkd._option_checks import check_choice, check_positive, check_type

MapReduction = Literal["mean", "sum"]


@dataclass(frozen=True, slots=True)
class AttentionTransferOptions:
    """Of `attention_transfer_loss`."""

    p: float = 2.0
    interpolate: bool = False
    reduction: MapReduction = "mean"

    FUNCTION: ClassVar = "attention_transfer_loss"

    def __post_init__(self) -> None:
        check_positive(self.FUNCTION, "p", self.p)
        check_type(self.FUNCTION, "interpolate", self.interpolate, bool)
        check_choice(self.FUNCTION, "reduction", self.reduction, get_args(MapReduction))
