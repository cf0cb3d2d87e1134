# SPDX-License-Identifier: Apache-2.0
"""The picture of a run: errors, soft targets, and the digit that the student never saw."""

import statistics
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from examples.data import Images
from examples.experiment import OMITTED_DIGIT, SeedResult, Settings

# Okabe and Ito's colours: told apart by colour-blind eyes too.
TEACHER, HARD, DISTILLED, CORRECTED = "#777777", "#D55E00", "#0072B2", "#009E73"
INK, SOFT_INK, FAINT = "#222222", "#666666", "#DDDDDD"
PICTURES = 4


def draw(results: Sequence[SeedResult], test: Images, settings: Settings, path: Path) -> None:
    """Save three panels as a PNG."""
    figure = Figure(
        figsize=(15, 6), facecolor="white", layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08)
    )
    FigureCanvasAgg(figure)
    figure.suptitle(finding(results), x=0.012, ha="left", fontsize=17, fontweight="bold", color=INK)
    figure.supxlabel(_conditions(results, settings), x=0.012, ha="left", fontsize=9, color=SOFT_INK)
    left, middle, right = figure.subfigures(
        1, 3, squeeze=False, width_ratios=(1, 1.25, 1.15), wspace=0.03
    )[0]
    _draw_errors(left, results, len(test))
    _draw_soft_targets(middle, results[0].teacher_logits, test, settings.temperature)
    _draw_without_digit(right, results, test)
    figure.savefig(path, dpi=140)


def finding(results: Sequence[SeedResult]) -> str:
    """The run's result in a sentence, whichever way it went."""
    hard = statistics.mean(result.hard for result in results)
    distilled = statistics.mean(result.distilled for result in results)
    if distilled < hard:
        return (
            f"A teacher's soft targets spare the student {1 - distilled / hard:.0%} of its errors"
        )
    return f"Distillation did not help here: {distilled:.1f} errors, {hard:.1f} with hard labels"


def choose_pictures(logits: Tensor, test: Images, temperature: float) -> list[int]:
    """Images of different digits that show best what soft targets tell besides the label.

    The teacher is right and sure of them, and has another digit in mind all the same.
    """
    top = logits.softmax(dim=1).amax(dim=1)
    sure = (logits.argmax(dim=1) == test.labels) & (top > 0.9)
    runner_up = (logits / temperature).softmax(dim=1).topk(2, dim=1).values[:, 1]
    chosen: dict[int, int] = {}  # label -> position
    for position in (runner_up + sure).argsort(descending=True).tolist():
        chosen.setdefault(int(test.labels[position]), position)
    return list(chosen.values())[:PICTURES]


def _draw_errors(panel: SubFigure, results: Sequence[SeedResult], images: int) -> None:
    axes = panel.subplots()
    columns = {
        "teacher": ([result.teacher for result in results], TEACHER),
        "hard labels": ([result.hard for result in results], HARD),
        "distilled": ([result.distilled for result in results], DISTILLED),
    }
    _join(axes, (1, 2), [(result.hard, result.distilled) for result in results])
    for place, (figures, colour) in enumerate(columns.values()):
        _draw_column(axes, place, figures, colour)
    _finish(axes, columns)
    axes.set_ylabel(f"errors on {images} test images", color=INK)
    _title(axes, "Errors of teacher and student")


def _draw_without_digit(panel: SubFigure, results: Sequence[SeedResult], test: Images) -> None:
    axes = panel.subplots()
    digit = OMITTED_DIGIT
    of_digit = int((test.labels == digit).sum())
    runs = [result.without_digit for result in results]
    columns = {
        "as trained": ([run.errors[0] for run in runs], DISTILLED),
        "with bias": ([run.errors[1] for run in runs], CORRECTED),
        "as trained ": ([run.missed[0] for run in runs], DISTILLED),
        "with bias ": ([run.missed[1] for run in runs], CORRECTED),
    }
    places = (0.0, 1.0, 2.4, 3.4)
    _join(axes, (places[0], places[1]), [run.errors for run in runs])
    _join(axes, (places[2], places[3]), [run.missed for run in runs])
    for place, (figures, colour) in zip(places, columns.values(), strict=True):
        _draw_column(axes, place, figures, colour)
    _finish(axes, columns, places)
    for middle, group in ((0.5, f"all {len(test)} images"), (2.9, f"the {of_digit} {digit}s")):
        axes.annotate(
            group, (middle, 0), (0, -46), xycoords=("data", "axes fraction"), ha="center",
            textcoords="offset points", color=INK, fontsize=11, fontweight="bold",
        )  # fmt: skip
    axes.set_ylabel("test errors", color=INK)
    missed = [statistics.mean(run.missed[after] for run in runs) for after in (0, 1)]
    finds = f"it misses {missed[0]:.0f} of {of_digit}; {missed[1]:.0f} with a bias"
    _title(axes, f"Never shown a {digit}, {finds}")


def _draw_column(axes: Axes, place: float, figures: Sequence[float], colour: str) -> None:
    """A bar up to the mean, and a dot per seed."""
    places = place + _spread(len(figures))
    axes.bar(place, statistics.mean(figures), width=0.62, color=colour, alpha=0.25, zorder=1)
    axes.scatter(places, figures, s=42, color=colour, edgecolor="white", zorder=3)


def _join(axes: Axes, places: tuple[float, float], pairs: Sequence[tuple[int, int]]) -> None:
    """Join the two figures of every seed."""
    for offset, pair in zip(_spread(len(pairs)), pairs, strict=True):
        axes.plot(np.add(places, offset), pair, color="#BBBBBB", linewidth=1.2, zorder=2)


def _spread(seeds: int) -> np.ndarray:
    """Where the seeds' dots stand beside each other: equal figures must not hide each other."""
    return np.linspace(-0.18, 0.18, seeds) if seeds > 1 else np.zeros(1)


def _finish(
    axes: Axes,
    columns: dict[str, tuple[list[int], str]],
    places: Sequence[float] = (0.0, 1.0, 2.0),
) -> None:
    labels = [
        f"{name.strip()}\nmean {statistics.mean(figures):.1f}"
        for name, (figures, _) in columns.items()
    ]
    axes.set_xticks(places, labels, color=INK)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.grid(axis="y", color="#EEEEEE", zorder=0)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=INK)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)


def _draw_soft_targets(panel: SubFigure, logits: Tensor, test: Images, temperature: float) -> None:
    """Pictures of digits, each beside the teacher's probabilities at two temperatures."""
    chosen = choose_pictures(logits, test, temperature)
    grid = panel.subplots(len(chosen), 2, width_ratios=(1, 4.2), squeeze=False)
    for row, (picture, bars) in enumerate(grid):
        position = chosen[row]
        picture.imshow(test.pixels[position].numpy(), cmap="gray_r", vmin=0, vmax=1)
        picture.set_xticks([])
        picture.set_yticks([])
        for spine in picture.spines.values():
            spine.set_color(FAINT)
        _draw_bars(bars, logits[position], temperature, last=row == len(chosen) - 1)
    handles, labels = grid[0, 1].get_legend_handles_labels()
    panel.legend(handles, labels, loc="upper right", ncols=2, frameon=False, bbox_to_anchor=(1, 1))
    panel.suptitle("Probabilities the teacher gives\n", x=0.02, ha="left", fontsize=12, color=INK)


def _draw_bars(axes: Axes, logits: Tensor, temperature: float, *, last: bool) -> None:
    digits = np.arange(len(logits))
    sharp = logits.softmax(dim=0).numpy()
    soft = (logits / temperature).softmax(dim=0).numpy()
    axes.bar(digits - 0.2, sharp, width=0.4, color="#AAAAAA", label="T = 1", zorder=2)
    axes.bar(digits + 0.2, soft, width=0.4, color=DISTILLED, label=f"T = {temperature:g}", zorder=2)
    axes.set_ylim(0, 1.05)
    axes.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes.set_xticks(digits, [str(digit) for digit in digits.tolist()] if last else [])
    if last:
        axes.set_xlabel("digit", color=INK)
    axes.grid(axis="y", color="#EEEEEE", zorder=0)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=INK)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)


def _title(axes: Axes, text: str) -> None:
    axes.set_title(f"{text}\n", loc="left", fontsize=12, color=INK)


def _conditions(results: Sequence[SeedResult], settings: Settings) -> str:
    recipe = settings.recipe
    images = "the teacher's images" if recipe.transfer is None else f"{recipe.transfer} images"
    text = (
        f"{recipe.title}, {len(results)} seeds (dots; bars are means). Both students learn from "
        f"{images}; temperature {settings.temperature:g}, alpha {settings.alpha:g}, "
        f"{settings.epochs} epochs. The bias of class {OMITTED_DIGIT} is chosen on validation "
        "images. After arXiv:1503.02531."
    )
    return "\n".join(textwrap.wrap(text, 220))
