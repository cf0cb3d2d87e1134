# SPDX-License-Identifier: Apache-2.0
"""A small language model from a larger one, whose vocabularies differ in their padding."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

import fastkd
from examples.text import documentation

IGNORED = -100  # the label of what is not predicted
TEACHER, FROM_LABELS, FROM_TEACHER = "teacher", "student, from labels", "student, from the teacher"


@dataclass(frozen=True)
class Size:
    """Of a model; the tokens are bytes, the rest of its vocabulary is there to be computed."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int

    def build(self, seed: int) -> Any:
        """A model with random weights."""
        config = Qwen2Config(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=4 * self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=True,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return Qwen2ForCausalLM(config)


@dataclass(frozen=True)
class Settings:
    """Of a run: names and meanings are those of TRL's GKD trainer, where it has them."""

    temperature: float = 0.9
    beta: float = 0.5  # of the teacher in the mixture: 0 is forward KL, 1 reverse KL
    learning_rate: float = 3e-3
    max_steps: int = 40
    per_device_train_batch_size: int = 2
    gradient_accumulation_steps: int = 2
    max_length: int = 64
    seed: int = 0
    teacher_steps: int = 60
    # Both families pad the tokens they share, 151,643 and some: to multiples of 128 and of 256.
    teacher: Size = field(default=Size(152_064, 128, 4))
    student: Size = field(default=Size(151_936, 64, 2))


class Batch(NamedTuple):
    """Sequences of different lengths, padded: [B, L] each."""

    input_ids: Tensor
    labels: Tensor  # IGNORED at the padding


# The mean loss of a batch's tokens when `tokens` are counted in all batches of a step.
BatchLoss = Callable[[Any, Batch, Tensor], Tensor]


class Text:
    """Python's own reference documentation, in bytes."""

    def __init__(self) -> None:
        self.bytes = documentation()
        self.training = len(self.bytes) * 9 // 10

    def batches(self, settings: Settings, seed: int) -> Iterator[Batch]:
        """Endless random pieces of the training part."""
        generator = torch.Generator().manual_seed(seed)
        shape = (settings.per_device_train_batch_size,)
        while True:
            begins = torch.randint(self.training - settings.max_length, shape, generator=generator)
            least = settings.max_length // 2
            lengths = torch.randint(least, settings.max_length + 1, shape, generator=generator)
            yield self._batch(begins, lengths, settings.max_length)

    def test_batch(self, settings: Settings) -> Batch:
        """Sixteen pieces of the part that training does not see."""
        begins = torch.linspace(self.training, len(self.bytes) - settings.max_length, 16).long()
        return self._batch(begins, torch.full((16,), settings.max_length), settings.max_length)

    def _batch(self, begins: Tensor, lengths: Tensor, length: int) -> Batch:
        places = torch.arange(length)
        input_ids = self.bytes[begins.unsqueeze(1) + places]
        return Batch(input_ids, input_ids.masked_fill(places >= lengths.unsqueeze(1), IGNORED))


def label_loss(model: Any, batch: Batch, tokens: Tensor) -> Tensor:
    """Cross-entropy as transformers has it, over whole logits."""
    output = model(input_ids=batch.input_ids, labels=batch.labels, num_items_in_batch=tokens)
    loss: Tensor = output.loss
    return loss


def distillation_loss(teacher: Any, settings: Settings) -> BatchLoss:
    """Generalised knowledge distillation of the teacher's next tokens (arXiv:2306.13649)."""

    def loss(student: Any, batch: Batch, tokens: Tensor) -> Tensor:
        with torch.no_grad():
            of_teacher = teacher.model(input_ids=batch.input_ids).last_hidden_state
        return fastkd.linear_kd_loss(
            student.model(input_ids=batch.input_ids).last_hidden_state,
            student.lm_head.weight,
            of_teacher,
            teacher.lm_head.weight,
            fastkd.shift_labels(batch.labels, ignore_index=IGNORED),
            temperature=settings.temperature,
            temperature_squared=False,
            divergence="js",
            beta=settings.beta,
            alpha=1.0,  # labels say which tokens count, no more
            ignore_index=IGNORED,
            common_vocab=True,
            num_items=tokens,
        )

    return loss


def step_gradients(model: Any, batches: Sequence[Batch], batch_loss: BatchLoss) -> float:
    """Add up the gradients of the mean over all tokens of some batches; gives that mean."""
    targets = [fastkd.shift_labels(batch.labels, ignore_index=IGNORED) for batch in batches]
    tokens = torch.stack([(target != IGNORED).sum() for target in targets]).sum()
    total = 0.0
    for batch in batches:
        loss = batch_loss(model, batch, tokens)
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.item()
    return total


def train(
    size: Size, text: Text, batch_loss: BatchLoss, settings: Settings, steps: int,
    after_step: Callable[[Any], object],
) -> Any:  # fmt: skip
    """Train from random weights. Two losses with one seed start alike and see the same batches."""
    model = size.build(settings.seed)
    optimizer = torch.optim.AdamW(model.parameters(), settings.learning_rate)
    batches = text.batches(settings, settings.seed)
    for _ in range(steps):
        of_step = [next(batches) for _ in range(settings.gradient_accumulation_steps)]
        optimizer.zero_grad()
        step_gradients(model, of_step, batch_loss)
        optimizer.step()
        after_step(model)
    return model


@dataclass(frozen=True)
class Quality:
    """Of a model, on the test pieces."""

    cross_entropy: float  # nats a byte
    accuracy: float
    divergence: float  # KL(teacher, student), nats


@torch.no_grad()
def quality(model: Any, teacher: Any, batch: Batch) -> Quality:
    """Measure a model."""
    logits = model(input_ids=batch.input_ids).logits
    target = fastkd.shift_labels(batch.labels, ignore_index=IGNORED)
    counts = target != IGNORED
    loss = torch.nn.functional.cross_entropy(logits[counts], target[counts])
    right = (logits[counts].argmax(-1) == target[counts]).float().mean()
    of_teacher = teacher(input_ids=batch.input_ids).logits
    divergence = fastkd.kd_loss(
        logits, of_teacher, target, alpha=1.0, ignore_index=IGNORED, common_vocab=True
    )
    return Quality(loss.item(), right.item(), divergence.item())
