# SPDX-License-Identifier: Apache-2.0
"""Other packages' losses, measured where they are installed and never required."""

import importlib
import importlib.metadata
from collections.abc import Callable
from typing import Any

from cases import BenchRow, LossCase
from torch import Tensor
from torch.nn import functional

PEERS = {"liger": "liger-kernel"}  # provider -> its distribution


def peer_versions() -> dict[str, str]:
    """The versions of the peers that are installed."""
    found: dict[str, str] = {}
    for name, distribution in PEERS.items():
        try:
            found[name] = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def serves(name: str, case: LossCase, row: BenchRow) -> bool:
    """Whether a peer that is installed has this loss for this layout."""
    rows_only = row.geometry.dim == -1 and len(row.geometry.shape) == 2
    plain = {"divergence", "standardize_logits"}.isdisjoint(case.options)
    return name in peer_versions() and case.loss == "kd_loss" and plain and rows_only


def peer_function(name: str, case: LossCase) -> Callable[..., Tensor]:
    """The loss as the peer's users write it."""
    assert (name, case.loss) == ("liger", "kd_loss"), f"{name} has no {case.loss}"
    return liger_kd_loss(importlib.import_module("liger_kernel.transformers.kl_div"))


def liger_kd_loss(module: Any) -> Callable[..., Tensor]:
    """LigerKLDIVLoss, which takes log-probabilities, beside torch's cross-entropy.

    LigerCrossEntropyLoss is left out: it writes its gradient over the logits, which the other term
    still needs.
    """
    divergence = module.LigerKLDIVLoss(reduction="batchmean")

    def loss(
        student: Tensor,
        teacher: Tensor,
        target: Tensor,
        *,
        dim: int,
        temperature: float,
        alpha: float,
        reduction: str,
    ) -> Tensor:
        assert (dim, reduction) == (-1, "batchmean")
        soft: Tensor = divergence(
            functional.log_softmax(student / temperature, -1),
            functional.softmax(teacher / temperature, -1),
        )
        hard = functional.cross_entropy(student, target, reduction="sum") / len(student)
        return soft * temperature * temperature * alpha + hard * (1 - alpha)

    return loss
