# SPDX-License-Identifier: Apache-2.0
"""The pictures of a run: how many times faster, and how near to what the machine can do."""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from loss_case import Kind
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from benchmarks.results import ON_GPU, Results, Row
from benchmarks.tables import STYLES, by_kind, loss_names
from benchmarks.text import count_text, nanoseconds_text

# Okabe and Ito's colours: told apart by colour-blind eyes too.
COLOURS = {"eager": "#0072B2", "torch.compile": "#E69F00", "liger": "#CC79A7"}
MARKERS = {"eager": "o", "torch.compile": "D", "liger": "s"}
SLOWER, BAR, COPY, INK, FAINT = "#D55E00", "#009E73", "#444444", "#222222", "#DDDDDD"
ROW_INCHES = 0.34
# What a name's end shows.
FIGURES: dict[str, tuple[Kind, ...]] = {
    "": ("logits",),
    "-layers-relations-features": ("layers", "relations", "features"),
}
TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


@dataclass(frozen=True)
class _Block:
    """Rows of one kind, at the largest thread count: two panels."""

    kind: Kind
    names: dict[tuple[str, str], str]  # of the kind's losses
    rows: list[Row]

    @property
    def inches(self) -> float:
        return ROW_INCHES * len(self.rows) + 1.3


def draw(results: Results, folder: Path, slug: str) -> list[Path]:
    """A figure for logits, one for all else; those of which there are rows."""
    paths = []
    most = [row for row in results.rows if row.threads == max(results.threads)]
    for end, kinds in FIGURES.items():
        found = by_kind(row for row in most if row.kind in kinds)
        blocks = [_Block(kind, loss_names(rows), list(rows)) for kind, rows in found]
        if blocks:
            paths.append(_draw_figure(results, blocks, folder / f"{slug}{end}.png"))
    return paths


def _draw_figure(results: Results, blocks: Sequence[_Block], path: Path) -> Path:
    """Two panels for every block, one line per row of the table."""
    heights = [block.inches for block in blocks]
    figure = Figure(figsize=(11, sum(heights) + 1.1), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(
        len(blocks), 2, squeeze=False, height_ratios=heights, width_ratios=(3, 2)
    )
    ratios = [r for block in blocks for row in block.rows for r in _ratios(row).values()]
    # Room for the figures beside the outermost dots.
    limits = min([0.8, *(0.4 * ratio for ratio in ratios)]), 1.5 * max([1.2, *ratios])
    threads = max(results.threads)
    where = "GPU" if threads == ON_GPU else count_text(threads, "thread")
    for block, (left, right) in zip(blocks, grid, strict=True):
        _draw_ratios(left, block.rows, limits)
        left.set_yticks(range(len(block.rows)), row_labels(block.rows, block.names), color=INK)
        title = f"{block.kind.capitalize()}, {where}"
        left.set_title(title, loc="left", fontweight="bold", color=INK)
        if floor := STYLES[block.kind].floor:
            _draw_over_floor(right, block.rows, f"{floor} alone")
            rate = f"fastkd / {floor}"
        elif any(row.work_count for row in block.rows):
            _draw_time_for_each(right, block.rows)
            rate = "ns a pair or triplet"
        else:
            _draw_bandwidth(right, block.rows, results.copy_bandwidth[threads])
            rate = "GB/s"
        right.set_title(rate, loc="left", fontweight="bold", color=INK)
    figure.suptitle(
        "fastkd: times faster, forward and backward, than eager PyTorch and torch.compile of it",
        x=0.01, ha="left", fontsize=14, fontweight="bold", color=INK,
    )  # fmt: skip
    footer = (
        f"{_machine_words(results)}, torch {results.versions['torch']}; commit {results.commit}, "
        f"{results.date}. GB/s counts the bytes that any implementation must move."
    )
    if any(row.is_disturbed for block in blocks for row in block.rows):
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


def row_labels(rows: Sequence[Row], names: dict[tuple[str, str], str]) -> list[str]:
    """What stands left of the rows; the loss where there are several."""
    labels = []
    for row in rows:
        loss = f"{names[row.loss, row.label]}  " if len(names) > 1 else ""
        labels.append(f"{loss}{row.name}  {row.dtype}{' †' if row.is_disturbed else ''}")
    return labels


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
        elif row.failures:
            words = "; ".join(f"{name}: {why}" for name, why in _by_reason(row).items())
            axes.annotate(
                words, (1, line), (7, 0), textcoords="offset points", va="center", fontsize=8,
                color="#666666",
            )  # fmt: skip
    axes.xaxis.set_major_locator(FixedLocator(TICKS))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    names = [name for name in COLOURS if any(name in _ratios(row) for row in rows)]
    for name in names:
        axes.scatter([], [], color=COLOURS[name], marker=MARKERS[name], label=f"than {name}")
    if names:
        axes.legend(
            loc="lower right", bbox_to_anchor=(1, 1), ncols=3, frameon=False, fontsize=9,
            borderpad=0, handletextpad=0.1, columnspacing=1,
        )  # fmt: skip
    _finish(axes, len(rows))


def _by_reason(row: Row) -> dict[str, str]:
    """Who has no figures, together where for one reason."""
    reasons = dict.fromkeys(row.failures.values())
    return {
        ", ".join(name for name, why in row.failures.items() if why == reason): reason
        for reason in reasons
    }


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
    texts = [f"{_figure(rate)} ({rate * 1e9 / copy:.0%})" for rate in rates]
    _draw_bars(axes, rates, texts, copy / 1e9, f"torch copy {_figure(copy / 1e9)}")


def _draw_over_floor(axes: Axes, rows: Sequence[Row], floor: str) -> None:
    found = [row.over_floor for row in rows]
    texts = ["" if over is None else f"{over:.2f}" for over in found]
    _draw_bars(axes, [over or 0.0 for over in found], texts, 1.0, floor)


def _draw_bars(
    axes: Axes, values: Sequence[float], texts: Sequence[str], mark: float, label: str
) -> None:
    """A bar a row, and a line at the mark."""
    axes.barh(range(len(values)), values, height=0.62, color=BAR, zorder=2)
    axes.axvline(mark, color=COPY, linestyle="--", linewidth=1.2, zorder=3, label=label)
    axes.legend(
        loc="lower right", bbox_to_anchor=(1, 1), frameon=False, fontsize=9, borderpad=0,
        handlelength=1.6, handletextpad=0.5,
    )  # fmt: skip
    for line, (value, text) in enumerate(zip(values, texts, strict=True)):
        axes.annotate(
            text, (value, line), (4, 0), textcoords="offset points", va="center", fontsize=8,
            color=INK, zorder=4, bbox={"color": "white", "alpha": 0.75, "pad": 0.6},
        )  # fmt: skip
    axes.set_xlim(0, 1.25 * max([mark, *values]))
    axes.set_yticks([])
    _finish(axes, len(values))


def _draw_time_for_each(axes: Axes, rows: Sequence[Row]) -> None:
    """Pairs take a hundred times as long as triplets: a logarithmic axis."""
    found = [row.seconds_per_unit for row in rows]
    known = [seconds * 1e9 for seconds in found if seconds is not None] or [1.0]
    limits = 0.5 * min(known), 12 * max(known)
    axes.set_xscale("log")
    axes.set_xlim(*limits)
    for line, (row, seconds) in enumerate(zip(rows, found, strict=True)):
        if seconds is None:
            continue
        place = seconds * 1e9
        axes.plot([limits[0], place], [line, line], color=FAINT, linewidth=3, zorder=1)
        axes.scatter(place, line, s=46, color=BAR, zorder=3)
        axes.annotate(
            f"{nanoseconds_text(seconds)}/{row.work_unit}", (place, line), (7, 0),
            textcoords="offset points", va="center", fontsize=8, color=INK,
        )  # fmt: skip
    axes.xaxis.set_major_locator(LogLocator(10, (1.0, 3.0) if _decades(limits) < 3 else (1.0,)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_yticks([])
    _finish(axes, len(rows))


def _decades(limits: tuple[float, float]) -> float:
    return math.log10(limits[1] / limits[0])


def _finish(axes: Axes, lines: int) -> None:
    axes.set_ylim(lines - 0.4, -0.6)
    axes.grid(axis="x", color="#EEEEEE", zorder=0)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=9)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
