# SPDX-License-Identifier: Apache-2.0
"""The picture of relational distillation: three embeddings of the test images, and the recall."""

import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patheffects import withStroke
from torch import Tensor

from examples.data import Split
from examples.plots import DISTILLED, FAINT, HARD, INK, SOFT_INK
from examples.plots import TEACHER as TEACHER_COLOUR
from examples.relational_experiment import (
    PIXELS,
    RKD_ALL,
    RKD_FEW,
    TEACHER,
    TRIPLET_ALL,
    TRIPLET_FEW,
    RelationalResult,
)

DIGIT_COLOURS = colormaps["tab10"].colors  # type: ignore[attr-defined]
RECALL_WIDTH = 1.25  # of the first panel, by the others' width
OUTLINE = withStroke(linewidth=3, foreground="white")  # of text over dots


def draw(results: Sequence[RelationalResult], parts: Split, path: Path) -> None:
    """Save four panels as a PNG: recall of every seed, then the embeddings of the first."""
    few, everything = len(parts.transfer), len(parts.train)
    figure = Figure(
        figsize=(17, 5.2), facecolor="white", layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08)
    )
    FigureCanvasAgg(figure)
    figure.suptitle(
        finding(results, parts), x=0.012, ha="left", fontsize=16, fontweight="bold", color=INK
    )
    recall, *maps = figure.subplots(1, 4, width_ratios=(RECALL_WIDTH, 1, 1, 1))
    _draw_recall(recall, results, parts)

    first = results[0]
    reference = plane(first.embeddings[TEACHER])[0]
    titles = {
        TEACHER: f"Teacher: triplet, {everything} labels",
        TRIPLET_FEW: f"Student: triplet, {few} labels",
        RKD_ALL: f"Student: RKD from it, {everything} images",
    }
    for axes, (name, title) in zip(maps, titles.items(), strict=True):
        points, share = plane(first.embeddings[name])
        _draw_map(axes, turned(points, reference), parts.test.labels)
        dimensions = first.embeddings[name].shape[1]
        _title(axes, f"{title}\nrecall@1 {first.recall[name]:.1%}")
        axes.set_xlabel(f"{share:.0%} of the variance of {dimensions} dimensions", color=SOFT_INK)
    figure.legend(
        *maps[0].get_legend_handles_labels(), loc="outside right center", frameon=False,
        title="digit", markerscale=2.2, handletextpad=0.2,
    )  # fmt: skip
    figure.supxlabel(
        f"Maps: seed {first.seed}, the {len(parts.test)} test images, first two principal "
        "components, turned to lie as the teacher's. Recall@1: the nearest other test image, by "
        "Euclidean distance in all dimensions, shows the same digit. After arXiv:1904.05068.",
        x=0.012, ha="left", fontsize=9, color=SOFT_INK,
    )  # fmt: skip
    figure.savefig(path, dpi=120)


def finding(results: Sequence[RelationalResult], parts: Split) -> str:
    """The run's result in a sentence, whichever way it went."""
    labels, distilled = (
        statistics.mean(result.recall[name] for result in results)
        for name in (TRIPLET_FEW, RKD_ALL)
    )
    figures = f"{labels:.1%} recall@1 from {len(parts.transfer)} labels"
    if distilled > labels:
        return f"{figures}, {distilled:.1%} from a teacher's distances and angles"
    return f"Relational distillation did not help here: {figures}, {distilled:.1%} from a teacher"


def plane(embeddings: Tensor) -> tuple[Tensor, float]:
    """The first two principal components of [N, D], [N, 2], and their share of the variance."""
    centred = embeddings.to(torch.float64)
    centred = centred - centred.mean(dim=0)
    left, values, _ = torch.linalg.svd(centred, full_matrices=False)
    variance = values.square()
    return left[:, :2] * values[:2], float(variance[:2].sum() / variance.sum())


def turned(points: Tensor, reference: Tensor) -> Tensor:
    """The points [N, 2], turned or mirrored to lie as near as they can to the reference."""
    left, _, right = torch.linalg.svd(points.T @ reference)
    turn: Tensor = left @ right
    return points @ turn


def _draw_recall(axes: Axes, results: Sequence[RelationalResult], parts: Split) -> None:
    """A dot per seed and a line at their mean."""
    few, everything = len(parts.transfer), len(parts.train)
    rows = [
        (TEACHER, f"teacher, {everything} labels", TEACHER_COLOUR),
        (TRIPLET_ALL, f"triplet, {everything} labels", HARD),
        (RKD_ALL, f"RKD, {everything} images", DISTILLED),
        (TRIPLET_FEW, f"triplet, {few} labels", HARD),
        (RKD_FEW, f"RKD, {few} images", DISTILLED),
    ]
    for place, (name, _, colour) in enumerate(rows):
        figures = [100 * result.recall[name] for result in results]
        mean = statistics.mean(figures)
        spread = np.linspace(-0.16, 0.16, len(figures)) if len(figures) > 1 else np.zeros(1)
        axes.scatter(figures, place + spread, s=36, color=colour, edgecolor="white", zorder=3)
        axes.plot([mean, mean], [place - 0.3, place + 0.3], color=colour, linewidth=2, zorder=2)
        axes.annotate(
            f"{mean:.1f}", (mean, place - 0.3), (0, 3), textcoords="offset points", ha="center",
            color=colour, fontsize=10, fontweight="bold", path_effects=[OUTLINE],
        )  # fmt: skip
    pixels = statistics.mean(100 * result.recall[PIXELS] for result in results)
    axes.axvline(pixels, color="#AAAAAA", linewidth=1, linestyle=":", zorder=1)
    axes.annotate(
        f"pixels {pixels:.1f}", (pixels, len(rows) - 0.45), (-4, 0), textcoords="offset points",
        ha="right", va="bottom", color=SOFT_INK, fontsize=9,
    )  # fmt: skip
    axes.set_yticks(range(len(rows)), [label for _, label, _ in rows], color=INK)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_box_aspect(1 / RECALL_WIDTH)
    axes.set_xlabel(f"recall@1, % of {len(parts.test)} test images", color=INK)
    axes.grid(axis="x", color="#EEEEEE", zorder=0)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=INK)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    _title(axes, f"{len(results)} seeds (dots) and means (lines)\n")


def _draw_map(axes: Axes, points: Tensor, labels: Tensor) -> None:
    for digit, colour in enumerate(DIGIT_COLOURS):
        x, y = points[labels == digit].T.numpy()
        axes.scatter(x, y, s=13, color=colour, alpha=0.8, linewidth=0, label=str(digit))
        axes.annotate(
            str(digit), (np.median(x), np.median(y)), (9, 9), textcoords="offset points",
            ha="center", va="center", fontsize=12, fontweight="bold", color=INK, zorder=3,
            path_effects=[OUTLINE],
        )  # fmt: skip
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_box_aspect(1)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(FAINT)


def _title(axes: Axes, text: str) -> None:
    axes.set_title(text, loc="left", fontsize=11, color=INK)
