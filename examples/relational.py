# SPDX-License-Identifier: Apache-2.0
"""Distil an embedding by the distances and angles between images, with fastkd.rkd_loss.

    python -m examples.relational

A teacher learns an embedding of scikit-learn's digits with a triplet loss from all labels. Small
students learn their embeddings with the triplet loss from labels, or with RKD from the teacher's
embedding, without labels (Park et al.: Relational Knowledge Distillation, arXiv:1904.05068,
section 4.1).
"""

import argparse
import functools
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from benchmarks.command_line import exit_with
from examples import data, report
from examples.options import count
from examples.recipes import RELATIONAL, RKD_LEARNING_RATE, Network, Recipe
from examples.relational_experiment import (
    MARGIN,
    NETWORKS,
    PIXELS,
    RKD_ALL,
    RKD_FEW,
    TEACHER,
    TRIPLET_ALL,
    TRIPLET_FEW,
    RelationalResult,
    batches_of_network,
    run_seed,
)


def main(arguments: Sequence[str] | None = None, recipe: Recipe = RELATIONAL) -> None:
    """Run the command line."""
    parser = _parser(recipe)
    given = parser.parse_args(arguments)
    try:
        given.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(str(error))

    start = time.perf_counter()
    images = data.load("digits")
    parts = data.split(images, recipe, seed=0)
    print(f"{report.describe_machine()}\n\n{describe_setting(parts, recipe)}\n", flush=True)
    results = _train(images, recipe, given.seeds, batches_of_network(parts, recipe))
    print(f"\n{recall_table(results, parts)}\n\n{comparisons(results, parts)}")

    from examples import relational_plot  # noqa: PLC0415 - matplotlib takes a second to import

    picture = given.output / "relational.png"
    relational_plot.draw(results, parts, picture)
    print(f"\nPicture: {picture}\n{time.perf_counter() - start:.0f} seconds")


def describe_setting(parts: data.Split, recipe: Recipe) -> str:
    """Who learns from what."""
    teacher, student = recipe.teacher, recipe.student
    return (
        f"{recipe.title}: {len(parts.train)} images for training, {len(parts.validation)} for "
        f"validation, {len(parts.test)} for test.\n"
        f"Teacher {_sizes(parts, teacher)}, triplet loss with all labels. Students "
        f"{_sizes(parts, student)}, triplet loss with\nlabels, or RKD from the teacher without. "
        f"Embeddings have length 1, the margin is {MARGIN:g}. Every\nnetwork sees "
        f"{batches_of_network(parts, recipe)} batches; learning rates {teacher.learning_rate:g} "
        f"(teacher), {student.learning_rate:g} (triplet), {RKD_LEARNING_RATE:g} (RKD)."
    )


def recall_table(results: Sequence[RelationalResult], parts: data.Split) -> str:
    """Recall@1 in percent: mean, standard deviation, and every seed."""
    seeds = [f"seed {result.seed}" for result in results]
    rows = [[f"Recall@1 of {len(parts.test)} test images, %", "mean", "sd", *seeds]]
    for name in (PIXELS, *NETWORKS):
        figures = [100 * result.recall[name] for result in results]
        rows.append([
            row_title(name, parts), f"{statistics.mean(figures):.1f}", _deviation(figures),
            *(f"{figure:.1f}" for figure in figures),
        ])  # fmt: skip
    note = (
        "The nearest other test image shows the same digit. RKD students see no label, but learn\n"
        "from a teacher that has seen all."
    )
    return f"{report.format_table(rows)}\n{note}"


def comparisons(results: Sequence[RelationalResult], parts: data.Split) -> str:
    """What RKD gains over the triplet loss, whichever way it went."""
    few, everything = len(parts.transfer), len(parts.train)
    pairs = [
        (f"RKD, {everything} images - triplet, {few} labels", RKD_ALL, TRIPLET_FEW),
        (f"RKD - triplet, the same {few} images", RKD_FEW, TRIPLET_FEW),
        (f"RKD - triplet, the same {everything} images", RKD_ALL, TRIPLET_ALL),
    ]
    rows = [["Difference of students, points", "mean", "sd", "RKD ahead"]]
    for title, first, second in pairs:
        gains = [100 * (result.recall[first] - result.recall[second]) for result in results]
        ahead = sum(gain > 0 for gain in gains)
        rows.append([
            title, f"{statistics.mean(gains):+.1f}", _deviation(gains),
            f"{ahead} of {len(gains)} seeds",
        ])  # fmt: skip
    return report.format_table(rows)


def row_title(name: str, parts: data.Split) -> str:
    """What the row of the table is about."""
    few, everything = len(parts.transfer), len(parts.train)
    return {
        PIXELS: "the pixels, no network",
        TEACHER: f"teacher, triplet, {everything} labels",
        TRIPLET_FEW: f"student, triplet, {few} labels",
        RKD_FEW: f"student, RKD, the same {few} images",
        RKD_ALL: f"student, RKD, all {everything} images",
        TRIPLET_ALL: f"student, triplet, all {everything} labels",
    }[name]


def _train(images: data.Images, recipe: Recipe, seeds: int, batches: int) -> list[RelationalResult]:
    with tqdm(total=seeds * len(NETWORKS) * batches, unit="batch", mininterval=0.5) as bar:

        def progress(seed: int, network: str, batches: int) -> None:
            bar.set_description(f"seed {seed + 1} of {seeds}, {network}", refresh=False)
            bar.update(batches)

        return [
            run_seed(images, recipe, seed, functools.partial(progress, seed))
            for seed in range(seeds)
        ]


def _sizes(parts: data.Split, network: Network) -> str:
    return "-".join(map(str, (parts.train.pixels[0].numel(), *network.hidden, network.outputs)))


def _deviation(figures: Sequence[float]) -> str:
    return f"{statistics.stdev(figures):.1f}" if len(figures) > 1 else "-"


def _parser(recipe: Recipe) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m examples.relational", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--seeds", type=count, default=recipe.seeds,
        help=f"how often everything is repeated (default: {recipe.seeds})",
    )  # fmt: skip
    parser.add_argument(
        "--output", type=Path, default=Path("demo-output"),
        help="folder for the picture (default: demo-output)",
    )  # fmt: skip
    return parser


if __name__ == "__main__":
    exit_with(main)
