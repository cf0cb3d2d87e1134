# SPDX-License-Identifier: Apache-2.0
"""A teacher's K largest classes in a file, and students that learn from the file alone."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import fastkd
from examples.text import documentation

BYTES = 256
Tail = Literal["bucket", "renormalize_teacher"]
Told = tuple[Tensor, Tensor, Tensor]  # [B, L + 1] windows; [B, L, K] values and indices


@dataclass(frozen=True)
class Settings:
    """Of a run."""

    temperature: float = 2.0
    counts: tuple[int, ...] = (1, 5, 20)
    seeds: int = 2
    teacher_steps: int = 1000
    teacher_width: int = 256
    student_steps: int = 400
    student_width: int = 64
    windows: int = 4096  # that the teacher is cached on
    length: int = 64  # bytes of a window
    batch_size: int = 32
    learning_rate: float = 3e-3


class ByteModel(nn.Module):
    """Logits of the next byte."""

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embedding = nn.Embedding(BYTES, width)
            self.rnn = nn.GRU(width, width, batch_first=True)
            self.head = nn.Linear(width, BYTES)

    def forward(self, text: Tensor) -> Tensor:
        """[B, L] bytes to [B, L, 256] logits."""
        logits: Tensor = self.head(self.rnn(self.embedding(text))[0])
        return logits


class Text:
    """Windows of the documentation, one byte longer than the inputs: [windows, length + 1]."""

    def __init__(self, settings: Settings) -> None:
        whole = documentation()
        width = settings.length + 1
        windows = whole[: len(whole) // width * width].view(-1, width)
        order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(0))
        held_out = len(windows) // 10
        self.test = windows[order[:held_out]]
        self.training = windows[order[held_out:]]

    def batches(self, settings: Settings, seed: int) -> Iterator[Tensor]:
        """Endless random windows of the training part."""
        generator = torch.Generator().manual_seed(seed)
        while True:
            chosen = torch.randint(len(self.training), (settings.batch_size,), generator=generator)
            yield self.training[chosen]


class Cache:
    """A file with the teacher's largest log-probabilities, and the bytes they follow."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @torch.no_grad()
    def write(self, teacher: ByteModel, windows: Tensor, settings: Settings) -> None:
        """Run the teacher once over the windows."""
        values, indices = [], []
        for begin in range(0, len(windows), settings.batch_size):
            window = windows[begin : begin + settings.batch_size]
            told = fastkd.topk_from_logits(
                teacher(window[:, :-1]), max(settings.counts), temperature=settings.temperature
            )
            values.append(told.values.half())
            indices.append(told.indices.to(torch.uint8))
        tensors = {
            "windows": windows.to(torch.uint8),
            "values": torch.cat(values),
            "indices": torch.cat(indices),
        }
        save_file(tensors, self.path, metadata={"temperature": str(settings.temperature)})

    def batches(self, settings: Settings, seed: int) -> Iterator[Told]:
        """Endless batches from the file, of which one is in memory at a time."""
        generator = torch.Generator().manual_seed(seed)
        size = settings.batch_size
        with safetensors.safe_open(self.path, framework="pt") as file:
            tensors = {name: file.get_slice(name) for name in ("windows", "values", "indices")}
            batches = tensors["windows"].get_shape()[0] // size
            while True:
                for batch in torch.randperm(batches, generator=generator).tolist():
                    part = slice(batch * size, (batch + 1) * size)
                    windows, values, indices = (tensor[part] for tensor in tensors.values())
                    yield windows.long(), values, indices


# The loss of a student's step.
StepLoss = Callable[[ByteModel], Tensor]


def from_labels(batches: Iterator[Tensor]) -> StepLoss:
    """Cross-entropy with the text."""

    def loss(model: ByteModel) -> Tensor:
        window = next(batches)
        logits = model(window[:, :-1])
        return nn.functional.cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten())

    return loss


def from_teacher(teacher: ByteModel, batches: Iterator[Told], temperature: float) -> StepLoss:
    """All of a teacher, which has to run beside the student."""

    def loss(model: ByteModel) -> Tensor:
        text = next(batches)[0][:, :-1]
        with torch.no_grad():
            of_teacher = teacher(text)
        return fastkd.kd_loss(model(text), of_teacher, temperature=temperature)

    return loss


def from_cache(batches: Iterator[Told], count: int, tail: Tail, temperature: float) -> StepLoss:
    """The first `count` classes of the cache, with no teacher."""

    def loss(model: ByteModel) -> Tensor:
        window, values, indices = next(batches)
        told = values[..., :count], indices[..., :count]
        return fastkd.topk_kd_loss(model(window[:, :-1]), *told, temperature=temperature, tail=tail)

    return loss


def train(
    width: int, loss: StepLoss, steps: int, seed: int, settings: Settings,
    after_step: Callable[[], object],
) -> ByteModel:  # fmt: skip
    """Train from random weights."""
    model = ByteModel(width, seed)
    optimizer = torch.optim.AdamW(model.parameters(), settings.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.learning_rate, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        after_step()
    return model


@dataclass(frozen=True)
class Quality:
    """Of a model, on text that no model has seen."""

    accuracy: float  # of the next byte
    cross_entropy: float  # nats a byte
    divergence: float  # KL(teacher, it) at temperature 1, nats a byte


@torch.no_grad()
def quality(model: ByteModel, teacher: ByteModel, test: Tensor) -> Quality:
    """Measure a model."""
    logits, target = model(test[:, :-1]), test[:, 1:]
    right = (logits.argmax(-1) == target).float().mean().item()
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten()).item()
    return Quality(right, loss, fastkd.kd_loss(logits, teacher(test[:, :-1])).item())
