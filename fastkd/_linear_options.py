# SPDX-License-Identifier: Apache-2.0
"""Arguments of linear_kd_loss, as the layers below the public function pass them on."""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from torch import Tensor

from fastkd._option_checks import check_real, check_type
from fastkd._options import (
    Divergence,
    KDLossOptions,
    Reduction,
    Tail,
    TeacherValues,
    TopKKDLossOptions,
)

FUNCTION = "linear_kd_loss"


class LinearKDLossInputs(NamedTuple):
    """The arguments of `linear_kd_loss` that change from call to call; see there."""

    student_hidden: Tensor
    student_weight: Tensor
    student_bias: Tensor | None
    teacher_hidden: Tensor | None
    teacher_weight: Tensor | None
    teacher_bias: Tensor | None
    teacher_logits: Tensor | None  # in place of the three
    teacher_values: Tensor | None  # the same, by K classes a row
    teacher_indices: Tensor | None
    target: Tensor | None
    sample_weight: Tensor | None
    num_items: float | Tensor | None

    # A method: the compiler of torch 2.10 does not trace a property of a NamedTuple.
    def of_student(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """What gets a gradient."""
        return self[:3]


@dataclass(frozen=True, slots=True)
class LinearKDLossOptions:
    """The other arguments of `linear_kd_loss`, validated once."""

    logit_softcap: float | None = None
    chunk_rows: int | Literal["auto"] = "auto"
    temperature: float = 1.0
    alpha: float = 0.5
    divergence: Divergence = "forward_kl"
    beta: float = 0.5
    ignore_index: int = -100
    label_smoothing: float = 0.0
    reduction: Reduction = "mean"
    temperature_squared: bool = True
    common_vocab: bool = False
    standardize_logits: bool = False
    teacher_is: TeacherValues = "log_probs"
    tail: Tail = "bucket"
    kd: KDLossOptions = field(init=False, repr=False)  # of a chunk's logits
    topk: TopKKDLossOptions = field(init=False, repr=False)  # the same, of a top-k teacher

    def __post_init__(self) -> None:
        if self.logit_softcap is not None:
            # Beyond these bounds a half type loses the logits, or the cap.
            rule = "in [1e-3, 1e4]"
            softcap = self.logit_softcap
            check_real(FUNCTION, "logit_softcap", softcap, rule, lambda x: 1e-3 <= x <= 1e4)
        if self.chunk_rows != "auto":
            check_type(FUNCTION, "chunk_rows", self.chunk_rows, int, "auto")
            check_real(FUNCTION, "chunk_rows", self.chunk_rows, ">= 1", lambda x: x >= 1)
        of_logits = KDLossOptions(
            temperature=self.temperature,
            alpha=self.alpha,
            divergence=self.divergence,
            beta=self.beta,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            reduction=self.reduction,
            temperature_squared=self.temperature_squared,
            common_vocab=self.common_vocab,
            standardize_logits=self.standardize_logits,
            function=FUNCTION,
        )
        object.__setattr__(self, "kd", of_logits)
        of_topk = TopKKDLossOptions(
            temperature=self.temperature,
            alpha=self.alpha,
            teacher_is=self.teacher_is,
            tail=self.tail,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            reduction=self.reduction,
            temperature_squared=self.temperature_squared,
            function=FUNCTION,
        )
        object.__setattr__(self, "topk", of_topk)
