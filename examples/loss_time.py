# SPDX-License-Identifier: Apache-2.0
"""Time of the loss, forward and backward, beside the eager PyTorch code that it replaces."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - as everyone calls it
from torch import Tensor

import fastkd
from benchmarks.timing import interleave, warm_up

ROUNDS = 60


@dataclass(frozen=True)
class LossTime:
    """Medians of seconds per call, and how far the two are apart."""

    rows: int
    classes: int
    threads: int
    fastkd: float
    eager: float
    loss_difference: float  # relative
    gradient_difference: float  # largest, relative to the largest gradient


def eager_kd_loss(s: Tensor, t: Tensor, y: Tensor, T: float, alpha: float) -> Tensor:  # noqa: N803
    """The loss as people write it today."""
    soft = F.kl_div(F.log_softmax(s / T, 1), F.softmax(t / T, 1), reduction="batchmean")
    return soft * T * T * alpha + F.cross_entropy(s, y) * (1 - alpha)


def time_loss(rows: int, classes: int, temperature: float, alpha: float) -> LossTime:
    """Time both in turns on random logits [rows, classes]."""
    generator = torch.Generator().manual_seed(0)
    student = 4 * torch.randn(rows, classes, generator=generator)
    teacher = 4 * torch.randn(rows, classes, generator=generator)
    target = torch.randint(classes, (rows,), generator=generator)
    student.requires_grad_()

    def gradient_after(loss_of: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
        loss = loss_of()
        # Not loss.backward(): a gradient that is added to the last one would be timed too.
        return loss.detach(), torch.autograd.grad(loss, student)[0]

    def ours() -> tuple[Tensor, Tensor]:
        return gradient_after(
            lambda: fastkd.kd_loss(student, teacher, target, temperature=temperature, alpha=alpha)
        )

    def eager() -> tuple[Tensor, Tensor]:
        return gradient_after(lambda: eager_kd_loss(student, teacher, target, temperature, alpha))

    (loss, grad), (eager_loss, eager_grad) = ours(), eager()
    calls = {"fastkd": ours, "eager": eager}
    timings = interleave(calls, warm_up(calls), ROUNDS)
    medians = {name: timing.quartiles()[1] for name, timing in timings.items()}
    return LossTime(
        rows,
        classes,
        torch.get_num_threads(),
        fastkd=medians["fastkd"],
        eager=medians["eager"],
        loss_difference=_relative(loss, eager_loss),
        gradient_difference=_relative(grad, eager_grad),
    )


def _relative(ours: Tensor, eager: Tensor) -> float:
    return float((ours - eager).abs().max() / eager.abs().max())
