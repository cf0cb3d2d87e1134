# SPDX-License-Identifier: Apache-2.0
"""Options of the relational losses, validated once."""

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from fastkd._option_checks import check_choice, check_real, check_type, check_weight

Criterion = Literal["smooth_l1", "l1", "l2"]
RelationReduction = Literal["mean", "sum", "mean_distinct"]
TableReduction = Literal["mean", "sum"]


def _check_relation(function: str, criterion: str, beta: float, reduction: str) -> None:
    check_choice(function, "criterion", criterion, get_args(Criterion))
    check_real(
        function,
        "beta",
        beta,
        'in [1e-18, 1e18] (for 0, criterion="l1")',
        lambda x: 1e-18 <= x <= 1e18,
    )
    check_choice(function, "reduction", reduction, get_args(RelationReduction))


# Beyond these bounds, and those of beta and gamma, squares or inverses leave float32.
def _check_eps(function: str, eps: float) -> None:
    check_real(function, "eps", eps, "in [1e-18, 1e18]", lambda x: 1e-18 <= x <= 1e18)


@dataclass(frozen=True, slots=True)
class RKDDistanceOptions:
    """Of `rkd_distance_loss`."""

    criterion: Criterion = "smooth_l1"
    beta: float = 1.0
    reduction: RelationReduction = "mean"
    squared: bool = False
    eps: float = 1e-12

    FUNCTION: ClassVar = "rkd_distance_loss"

    def __post_init__(self) -> None:
        _check_relation(self.FUNCTION, self.criterion, self.beta, self.reduction)
        check_type(self.FUNCTION, "squared", self.squared, bool)
        _check_eps(self.FUNCTION, self.eps)


@dataclass(frozen=True, slots=True)
class _CosinesOptions:
    """Of a loss between cosines, by a criterion."""

    criterion: Criterion = "smooth_l1"
    beta: float = 1.0
    reduction: RelationReduction = "mean"
    eps: float = 1e-12

    FUNCTION: ClassVar[str]

    def __post_init__(self) -> None:
        _check_relation(self.FUNCTION, self.criterion, self.beta, self.reduction)
        _check_eps(self.FUNCTION, self.eps)


@dataclass(frozen=True, slots=True)
class RKDAngleOptions(_CosinesOptions):
    """Of `rkd_angle_loss`."""

    FUNCTION: ClassVar = "rkd_angle_loss"


@dataclass(frozen=True, slots=True)
class CosineSimilarityOptions(_CosinesOptions):
    """Of `cosine_similarity_loss`."""

    FUNCTION: ClassVar = "cosine_similarity_loss"


@dataclass(frozen=True, slots=True)
class RKDOptions:
    """Of `rkd_loss`."""

    distance_weight: float = 25.0
    angle_weight: float = 50.0
    criterion: Criterion = "smooth_l1"
    beta: float = 1.0
    reduction: RelationReduction = "mean"
    squared: bool = False
    eps: float = 1e-12

    FUNCTION: ClassVar = "rkd_loss"

    def __post_init__(self) -> None:
        check_weight(self.FUNCTION, "distance_weight", self.distance_weight)
        check_weight(self.FUNCTION, "angle_weight", self.angle_weight)
        _check_relation(self.FUNCTION, self.criterion, self.beta, self.reduction)
        check_type(self.FUNCTION, "squared", self.squared, bool)
        _check_eps(self.FUNCTION, self.eps)

    def distance(self) -> RKDDistanceOptions:
        """The distance part's."""
        return RKDDistanceOptions(self.criterion, self.beta, self.reduction, self.squared, self.eps)

    def angle(self) -> RKDAngleOptions:
        """The angle part's."""
        return RKDAngleOptions(self.criterion, self.beta, self.reduction, self.eps)


@dataclass(frozen=True, slots=True)
class CorrelationOptions:
    """Of `correlation_loss`."""

    gamma: float = 0.4
    reduction: RelationReduction = "mean"
    eps: float = 1e-12

    FUNCTION: ClassVar = "correlation_loss"

    def __post_init__(self) -> None:
        check_real(self.FUNCTION, "gamma", self.gamma, "in [1e-6, 1e6]", lambda x: 1e-6 <= x <= 1e6)
        check_choice(self.FUNCTION, "reduction", self.reduction, get_args(RelationReduction))
        _check_eps(self.FUNCTION, self.eps)


@dataclass(frozen=True, slots=True)
class SimilarityPreservingOptions:
    """Of `similarity_preserving_loss`."""

    reduction: TableReduction = "mean"
    eps: float = 1e-12

    FUNCTION: ClassVar = "similarity_preserving_loss"

    def __post_init__(self) -> None:
        check_choice(self.FUNCTION, "reduction", self.reduction, get_args(TableReduction))
        _check_eps(self.FUNCTION, self.eps)


@dataclass(frozen=True, slots=True)
class PKTOptions:
    """Of `pkt_loss`."""

    reduction: TableReduction = "mean"
    eps: float = 1e-7

    FUNCTION: ClassVar = "pkt_loss"

    def __post_init__(self) -> None:
        check_choice(self.FUNCTION, "reduction", self.reduction, get_args(TableReduction))
        _check_eps(self.FUNCTION, self.eps)
