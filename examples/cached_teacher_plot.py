# SPDX-License-Identifier: Apache-2.0
"""The picture of the cached teacher: the results of the students, by the number of classes."""

import statistics
from collections.abc import Callable
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from examples.cached_teacher import LABELS, TAILS, WHOLE, Results, student_of
from examples.cached_teacher_experiment import Quality, Settings
from examples.plots import DISTILLED, HARD, INK, SOFT_INK
from examples.plots import TEACHER as TEACHER_COLOUR

COLOURS = dict(zip(TAILS, (DISTILLED, TEACHER_COLOUR), strict=True))


def draw(results: Results, settings: Settings, path: Path) -> None:
    """Save two panels as a PNG: accuracy, and divergence from the teacher."""
    figure = Figure(figsize=(11, 4.4), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    accuracy, divergence = figure.subplots(1, 2)
    _draw(accuracy, results, settings, lambda q: 100 * q.accuracy, "Next byte right, %")
    title = "Divergence from the teacher, KL in nats a byte"
    _draw(divergence, results, settings, lambda q: q.divergence, title)
    figure.savefig(path, dpi=110)


def _draw(
    axes: Axes, results: Results, settings: Settings, figure_of: Callable[[Quality], float],
    title: str,
) -> None:  # fmt: skip
    places = range(len(settings.counts))
    for tail, colour in COLOURS.items():
        found = [[figure_of(q) for q in results[student_of(tail, k)]] for k in settings.counts]
        axes.plot(places, [*map(statistics.mean, found)], color=colour, label=f'tail="{tail}"')
        for place, values in zip(places, found, strict=True):
            axes.scatter([place] * len(values), values, color=colour, s=14)
    for name, colour, word in ((WHOLE, INK, "all of the teacher"), (LABELS, HARD, "labels")):
        level = statistics.mean(figure_of(q) for q in results[name])
        axes.axhline(level, color=colour, linestyle="--", linewidth=1, label=word)
    axes.set_title(title, loc="left", color=INK, fontsize=12)
    axes.set_xticks([*places], [f"K = {k}" for k in settings.counts])
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=SOFT_INK)
