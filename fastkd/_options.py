# SPDX-License-Identifier: Apache-2.0
"""Arguments of the losses of rows of logits, as the layers below the public functions pass them."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple, get_args

from torch import Tensor

from fastkd._option_checks import check_choice, check_ignore_index, check_real, check_type

Reduction = Literal["none", "sum", "mean", "batchmean"]
Divergence = Literal["forward_kl", "reverse_kl", "js", "tv"]
Tail = Literal["bucket", "renormalize", "renormalize_teacher", "truncate"]
TeacherValues = Literal["log_probs", "logits"]


class KDLossInputs(NamedTuple):
    """The arguments that change from call to call; see `kd_loss` for their meaning."""

    student: Tensor
    teacher: Tensor
    target: Tensor | None
    sample_weight: Tensor | None
    num_items: float | Tensor | None
    indices: Tensor | None = None  # the classes that a top-k teacher's values are of

    # A method: the compiler of torch 2.10 does not trace a property of a NamedTuple.
    def constants(self) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """The tensors that get no gradient, but for num_items."""
        return self.teacher, self.target, self.sample_weight, self.indices

    def constant(self) -> "KDLossInputs":
        """The same with a gradient for the student only."""
        student, teacher, target, weight, num_items, indices = self
        weight = None if weight is None else weight.detach()
        num_items = num_items.detach() if isinstance(num_items, Tensor) else num_items
        return KDLossInputs(student, teacher.detach(), target, weight, num_items, indices)


class AtTemperature:
    """Of options of a loss of softmax(logits / T)."""

    __slots__ = ()
    temperature: float
    temperature_squared: bool

    def check_temperature(self, function: str) -> None:
        """Check both fields; beyond these bounds T^2 or 1 / T leave float32."""
        rule = "in [1e-6, 1e6]"
        check_real(function, "temperature", self.temperature, rule, lambda x: 1e-6 <= x <= 1e6)
        check_type(function, "temperature_squared", self.temperature_squared, bool)

    @property
    def soft_factor(self) -> float:
        """What multiplies a divergence: T^2 or 1."""
        return self.temperature**2 if self.temperature_squared else 1.0


class RowOptions(AtTemperature):
    """Of options of a loss of rows of logits."""

    __slots__ = ()
    dim: int
    ignore_index: int
    reduction: Reduction
    inplace: bool

    def check_rows(self, function: str) -> None:
        """Check these fields, and those of the temperature."""
        self.check_temperature(function)
        check_type(function, "dim", self.dim, int)
        check_ignore_index(function, self.ignore_index)
        check_choice(function, "reduction", self.reduction, get_args(Reduction))
        check_type(function, "inplace", self.inplace, bool)


@dataclass(frozen=True, slots=True)
class KDLossOptions(RowOptions):
    """The other arguments of `kd_loss`, validated once."""

    temperature: float = 1.0
    alpha: float = 0.5
    divergence: Divergence = "forward_kl"
    beta: float = 0.5
    dim: int = -1
    ignore_index: int = -100
    label_smoothing: float = 0.0
    reduction: Reduction = "mean"
    temperature_squared: bool = True
    common_vocab: bool = False
    standardize_logits: bool = False
    inplace: bool = False
    function: str = field(default="kd_loss", repr=False)  # that a message names

    def __post_init__(self) -> None:
        name = self.function
        self.check_rows(name)
        check_real(name, "alpha", self.alpha, "in [0, 1]", lambda x: 0 <= x <= 1)
        check_choice(name, "divergence", self.divergence, get_args(Divergence))
        # Between an end and 1e-6 from it the mixture would lose a side to float32.
        check_real(
            name,
            "beta",
            self.beta,
            "0, 1 or in [1e-6, 1 - 1e-6]",
            lambda x: x in (0, 1) or 1e-6 <= x <= 1 - 1e-6,
        )
        check_real(
            name, "label_smoothing", self.label_smoothing, "in [0, 1]", lambda x: 0 <= x <= 1
        )
        check_type(name, "common_vocab", self.common_vocab, bool)
        check_type(name, "standardize_logits", self.standardize_logits, bool)

    @property
    def formula(self) -> Divergence:
        """The divergence by whose formula it is computed: "js" is a KL at both ends of beta."""
        if self.divergence != "js" or 0 < self.beta < 1:
            return self.divergence
        return "forward_kl" if self.beta == 0 else "reverse_kl"


@dataclass(frozen=True, slots=True)
class DecoupledKDLossOptions(RowOptions):
    """The other arguments of `decoupled_kd_loss`, validated once."""

    temperature: float = 4.0
    alpha: float = 1.0
    beta: float = 8.0
    hard_weight: float = 0.0
    dim: int = -1
    ignore_index: int = -100
    reduction: Reduction = "mean"
    temperature_squared: bool = True
    inplace: bool = False

    function: ClassVar = "decoupled_kd_loss"

    def __post_init__(self) -> None:
        self.check_rows(self.function)
        for name in ("alpha", "beta", "hard_weight"):
            rule = "in [0, 1e6]"
            check_real(self.function, name, getattr(self, name), rule, lambda x: 0 <= x <= 1e6)


@dataclass(frozen=True, slots=True)
class TopKKDLossOptions(RowOptions):
    """The other arguments of `topk_kd_loss`, validated once."""

    temperature: float = 1.0
    alpha: float = 0.5
    teacher_is: TeacherValues = "log_probs"
    tail: Tail = "bucket"
    dim: int = -1
    ignore_index: int = -100
    label_smoothing: float = 0.0
    reduction: Reduction = "mean"
    temperature_squared: bool = True
    inplace: bool = False
    function: str = field(default="topk_kd_loss", repr=False)  # that a message names

    def __post_init__(self) -> None:
        name = self.function
        self.check_rows(name)
        check_real(name, "alpha", self.alpha, "in [0, 1]", lambda x: 0 <= x <= 1)
        check_choice(name, "teacher_is", self.teacher_is, get_args(TeacherValues))
        check_choice(name, "tail", self.tail, get_args(Tail))
        check_real(
            name, "label_smoothing", self.label_smoothing, "in [0, 1]", lambda x: 0 <= x <= 1
        )
        if self.teacher_is == "logits" and self.tail in ("bucket", "truncate"):
            raise ValueError(
                f"{name}: tail must be 'renormalize' or 'renormalize_teacher' where "
                f"teacher_is='logits', got {self.tail!r}: K logits do not tell how much all other "
                "classes have (topk_from_logits makes log-probabilities, which do)"
            )
