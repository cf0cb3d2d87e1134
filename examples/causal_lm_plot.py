# SPDX-License-Identifier: Apache-2.0
"""The picture of the distilled language model: the results of the students after each step."""

from collections.abc import Callable
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from examples.causal_lm import Curves
from examples.causal_lm_experiment import FROM_LABELS, FROM_TEACHER, TEACHER, Quality
from examples.plots import DISTILLED, HARD, INK, SOFT_INK
from examples.plots import TEACHER as TEACHER_COLOUR

COLOURS = {FROM_LABELS: HARD, FROM_TEACHER: DISTILLED}


def draw(curves: Curves, path: Path) -> None:
    """Save two panels as a PNG: cross-entropy with the text, and divergence from the teacher."""
    figure = Figure(figsize=(11, 4.4), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    of_text, of_teacher = figure.subplots(1, 2)
    _draw(of_text, curves, lambda quality: quality.cross_entropy, "Cross-entropy, nats a byte")
    reached = curves[TEACHER][-1][1].cross_entropy
    of_text.axhline(reached, color=TEACHER_COLOUR, linestyle="--", linewidth=1)
    of_text.annotate(
        "teacher", (0, reached), (4, 4), textcoords="offset points", color=TEACHER_COLOUR
    )
    title = "Divergence from the teacher, KL(p, q) in nats"
    _draw(of_teacher, curves, lambda quality: quality.divergence, title)
    figure.savefig(path, dpi=110)


def _draw(axes: Axes, curves: Curves, figure_of: Callable[[Quality], float], title: str) -> None:
    for name, colour in COLOURS.items():
        steps = [step for step, _ in curves[name]]
        values = [figure_of(quality) for _, quality in curves[name]]
        axes.plot(steps, values, color=colour, marker="o", markersize=4, label=name)
    axes.set_title(title, loc="left", color=INK, fontsize=12)
    axes.set_xlabel("steps", color=SOFT_INK)
    axes.set_xlim(left=0)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=SOFT_INK)
