# SPDX-License-Identifier: Apache-2.0
"""What one seed shows: a teacher, two students of the same images, one that never saw a digit."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from examples import training
from examples.bias import best_bias, raised, wrong
from examples.data import Images, Split, split
from examples.recipes import Network, Recipe

OMITTED_DIGIT = 3  # as in the paper
STAGES = ("teacher", "hard labels", "distilled", f"distilled without {OMITTED_DIGIT}s")

Progress = Callable[[str], None]  # told the stage after every epoch


@dataclass(frozen=True)
class Settings:
    """What the command line decides."""

    recipe: Recipe
    temperature: float
    alpha: float
    epochs: int


@dataclass(frozen=True)
class WithoutDigit:
    """Test errors of the student that was never shown one digit, before and after its bias."""

    bias: float
    errors: tuple[int, int]  # on all test images
    missed: tuple[int, int]  # on those of the digit


@dataclass(frozen=True)
class SeedResult:
    """Test errors of one seed."""

    seed: int
    teacher: int
    hard: int
    distilled: int
    without_digit: WithoutDigit
    teacher_logits: Tensor  # of the test images, [N, 10]


def run_seed(images: Images, settings: Settings, seed: int, progress: Progress) -> SeedResult:
    """Train the four networks of a seed and count their test errors."""
    parts = split(images, settings.recipe, seed)
    teacher_recipe, student_recipe = settings.recipe.teacher, settings.recipe.student

    def fit(stage: str, network: Network, images: Images, loss: training.BatchLoss) -> nn.Module:
        return training.train(
            network, images, loss, epochs=settings.epochs, seed=seed,
            after_epoch=lambda: progress(stage),
        )  # fmt: skip

    def distil(stage: str, images: Images) -> nn.Module:
        loss = training.distillation_loss(images, teacher, settings.temperature, settings.alpha)
        return fit(stage, student_recipe, images, loss)

    with training.threads(settings.recipe.threads):
        teacher = fit(STAGES[0], teacher_recipe, parts.train, training.hard_label_loss(parts.train))
        hard_loss = training.hard_label_loss(parts.transfer)
        hard = fit(STAGES[1], student_recipe, parts.transfer, hard_loss)
        distilled = distil(STAGES[2], parts.transfer)
        without = distil(STAGES[3], parts.transfer.without(OMITTED_DIGIT))
        return SeedResult(
            seed,
            teacher=_errors(teacher, parts.test),
            hard=_errors(hard, parts.test),
            distilled=_errors(distilled, parts.test),
            without_digit=_correct_bias(without, parts),
            teacher_logits=training.logits_of(teacher, parts.test),
        )


def _errors(model: nn.Module, images: Images) -> int:
    return int(wrong(training.logits_of(model, images), images.labels).sum())


def _correct_bias(model: nn.Module, parts: Split) -> WithoutDigit:
    validation_logits = training.logits_of(model, parts.validation)
    bias = best_bias(validation_logits, parts.validation.labels, OMITTED_DIGIT)
    before = training.logits_of(model, parts.test)
    after = raised(before, OMITTED_DIGIT, bias)
    labels = parts.test.labels
    is_digit = labels == OMITTED_DIGIT
    mistakes = [wrong(logits, labels) for logits in (before, after)]
    return WithoutDigit(
        bias,
        errors=(int(mistakes[0].sum()), int(mistakes[1].sum())),
        missed=(int(mistakes[0][is_digit].sum()), int(mistakes[1][is_digit].sum())),
    )
