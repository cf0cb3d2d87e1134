# SPDX-License-Identifier: Apache-2.0
"""The picture of a run: how many times faster, and how near to the copy bandwidth."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from benchmarks.results import ON_GPU, Results, Row

# Okabe and Ito's colours: told apart by colour-blind eyes too.
COLOURS = {"eager": "#0072B2", "torch.compile": "#E69F00", "liger": "#CC79A7"}
MARKERS = {"eager": "o", "torch.compile": "D", "liger": "s"}
SLOWER, BAR, COPY, INK, FAINT = "#D55E00", "#009E73", "#444444", "#222222", "#DDDDDD"
ROW_INCHES = 0.34
TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


def draw(results: Results, path: Path) -> Path:
    """Two panels for every thread count, one line per row of the table."""
    blocks = [(n, [row for row in results.rows if row.threads == n]) for n in results.threads]
    blocks = [(threads, rows) for threads, rows in reversed(blocks) if rows]
    heights = [ROW_INCHES * len(rows) + 1.3 for _, rows in blocks]
    figure = Figure(figsize=(11, sum(heights) + 1.1), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(
        len(blocks), 2, squeeze=False, height_ratios=heights, width_ratios=(3, 2)
    )
    ratios = [ratio for row in results.rows for ratio in _ratios(row).values()]
    # Room for the figures beside the outermost dots.
    limits = min([0.8, *(0.6 * ratio for ratio in ratios)]), 1.5 * max([1.2, *ratios])
    most = max(*results.copy_bandwidth.values(), *(row.bandwidth or 0 for row in results.rows))
    for (threads, rows), (left, right) in zip(blocks, grid, strict=True):
        words = "GPU" if threads == ON_GPU else f"{threads} thread{'s' if threads > 1 else ''}"
        _draw_ratios(left, rows, limits)
        left.set_title(f"Times faster, {words}", loc="left", fontweight="bold", color=INK)
        _draw_bandwidth(right, rows, results.copy_bandwidth[threads])
        right.set_xlim(0, 1.25 * most / 1e9)
        right.set_title(f"GB/s, {words}", loc="left", fontweight="bold", color=INK)
    figure.suptitle(
        "fastkd: forward and backward, beside eager PyTorch and torch.compile of it",
        x=0.01, ha="left", fontsize=14, fontweight="bold", color=INK,
    )  # fmt: skip
    footer = (
        f"{_machine_words(results)}, torch {results.versions['torch']}; commit {results.commit}, "
        f"{results.date}. GB/s counts the bytes that any implementation must move."
    )
    if any(row.is_disturbed for row in results.rows):
        footer += " † Other work used the CPUs meanwhile: not fit to be quoted."
    figure.supxlabel(
        "\n".join(textwrap.wrap(footer, 165)), x=0.01, ha="left", fontsize=8, color="#666666"
    )
    figure.savefig(path, dpi=150)
    return path


def _machine_words(results: Results) -> str:
    device, versions = results.device, results.versions
    if results.is_gpu:
        return f"{device['gpu']}; fastkd {versions['fastkd']}, driver {versions['driver']}"
    return (
        f"{device['cpu']}, {device['cores']} cores; fastkd {versions['fastkd']} "
        f"({versions['fastkd_cpu_build']})"
    )


def row_label(row: Row, with_loss: bool) -> str:
    """What stands left of a row."""
    loss = f"{row.loss} {row.label}  " if with_loss else ""
    return f"{loss}{row.name}  {row.dtype}{' †' if row.is_disturbed else ''}"


def _ratios(row: Row) -> dict[str, float]:
    found = ((name, row.ratio(name)) for name in COLOURS)
    return {name: ratio for name, ratio in found if ratio is not None}


def _draw_ratios(axes: Axes, rows: Sequence[Row], limits: tuple[float, float]) -> None:
    lines = range(len(rows))
    axes.set_xscale("log")
    axes.set_xlim(*limits)
    axes.axvspan(limits[0], 1, color=SLOWER, alpha=0.08, linewidth=0)
    axes.axvline(1, color=SLOWER, linewidth=1)
    for line, row in zip(lines, rows, strict=True):
        ratios = _ratios(row)
        axes.plot([1, max([1, *ratios.values()])], [line, line], color=FAINT, linewidth=3, zorder=1)
        for name, ratio in ratios.items():
            colour = COLOURS[name] if ratio >= 1 else SLOWER
            axes.scatter(ratio, line, s=46, color=colour, marker=MARKERS[name], zorder=3)
        if ratios:
            _write_ratios(axes, line, ratios)
    axes.xaxis.set_major_locator(FixedLocator(TICKS))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    several = len({(row.loss, row.label) for row in rows}) > 1
    axes.set_yticks(lines, [row_label(row, several) for row in rows], color=INK)
    names = [name for name in COLOURS if any(name in _ratios(row) for row in rows)]
    for name in names:
        axes.scatter([], [], color=COLOURS[name], marker=MARKERS[name], label=f"than {name}")
    if names:
        axes.legend(
            loc="lower right", bbox_to_anchor=(1, 1), ncols=3, frameon=False, fontsize=9,
            borderpad=0, handletextpad=0.1, columnspacing=1,
        )  # fmt: skip
    _finish(axes, len(rows))


def _write_ratios(axes: Axes, line: int, ratios: dict[str, float]) -> None:
    """Figures outside of the outermost two dots, so that they don't meet."""
    ordered = sorted(ratios.values())
    for ratio, side in zip((ordered[0], ordered[-1]), (-1, 1), strict=True):
        if side < 0 and len(ordered) == 1:
            continue
        axes.annotate(
            _figure(ratio), (ratio, line), (7 * side, 0), textcoords="offset points", va="center",
            ha="left" if side > 0 else "right", fontsize=8, color=INK if ratio >= 1 else SLOWER,
        )  # fmt: skip


def _figure(value: float) -> str:
    return f"{value:.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def _draw_bandwidth(axes: Axes, rows: Sequence[Row], copy: float) -> None:
    rates = [(row.bandwidth or 0.0) / 1e9 for row in rows]
    axes.barh(range(len(rows)), rates, height=0.62, color=BAR, zorder=2)
    axes.axvline(
        copy / 1e9, color=COPY, linestyle="--", linewidth=1.2, zorder=3,
        label=f"torch copy {_figure(copy / 1e9)}",
    )  # fmt: skip
    axes.legend(
        loc="lower right", bbox_to_anchor=(1, 1), frameon=False, fontsize=9, borderpad=0,
        handlelength=1.6, handletextpad=0.5,
    )  # fmt: skip
    for line, rate in enumerate(rates):
        text = f"{_figure(rate)} ({rate * 1e9 / copy:.0%})"
        axes.annotate(
            text, (rate, line), (4, 0), textcoords="offset points", va="center", fontsize=8,
            color=INK, zorder=4, bbox={"color": "white", "alpha": 0.75, "pad": 0.6},
        )  # fmt: skip
    axes.set_yticks([])
    _finish(axes, len(rows))


def _finish(axes: Axes, lines: int) -> None:
    axes.set_ylim(lines - 0.4, -0.6)
    axes.grid(axis="x", color="#EEEEEE", zorder=0)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=9)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
