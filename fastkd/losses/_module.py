# SPDX-License-Identifier: Apache-2.0
"""What the module forms of the losses share."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from fastkd._relational_options import Criterion, RelationReduction


class LossModule(torch.nn.Module):
    """Stores the options of a loss, and shows them in its repr."""

    def __init__(self, options: Any) -> None:
        super().__init__()
        self.options = options

    def extra_repr(self) -> str:
        """Return the options."""
        return repr(self.options).partition("(")[2].removesuffix(")")


class EmbeddingsModule(LossModule):
    """The module form of a loss between two batches of embeddings."""

    _call: ClassVar[Callable[[Tensor, Tensor, Any], Tensor]]

    def forward(self, student_embeddings: Tensor, teacher_embeddings: Tensor) -> Tensor:
        """Compute the loss; see the function of the same name in `fastkd`."""
        return type(self)._call(student_embeddings, teacher_embeddings, self.options)


class CosinesModule(EmbeddingsModule):
    """The module form of a loss between cosines, with a criterion."""

    _options: ClassVar[Callable[..., Any]]

    def __init__(
        self,
        *,
        criterion: Criterion = "smooth_l1",
        beta: float = 1.0,
        reduction: RelationReduction = "mean",
        eps: float = 1e-12,
    ) -> None:
        """Store the options; see the function of the same name in `fastkd`."""
        super().__init__(type(self)._options(criterion, beta, reduction, eps))
