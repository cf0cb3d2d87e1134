# SPDX-License-Identifier: Apache-2.0
"""The tables: one for each kind of loss, with the columns that say something of it."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from loss_case import Kind

from benchmarks.accuracy import is_batch_mean
from benchmarks.peers import PEERS
from benchmarks.providers import FLOOR, PROVIDERS
from benchmarks.results import BUSY, ON_GPU, Figures, Results, Row
from benchmarks.text import byte_text, format_table, nanoseconds_text, span_text, time_text

_SHORT = {"torch.compile": "compile"}
NOTHING = "-"
MOST_WORDS = 24  # of a failure, in a cell


@dataclass(frozen=True)
class Style:
    """How the losses of a kind are told of."""

    title: str
    tensor: str  # what the rows are named by
    memory: str  # the unit of peak extra memory, in words
    floor: str = ""  # what any implementation must do, where that sets the time


STYLES: dict[Kind, Style] = {
    "logits": Style("Losses of logits", "logits", "student-sized [N, C] tensors"),
    "layers": Style(
        "Losses of hidden states and output layers",
        "N x H x V",
        "student-sized [N, V] logits",
        "products",
    ),
    "relations": Style("Losses between the examples of a batch", "N x D", "MiB"),
    "features": Style("Losses of features", "features", "student-sized tensors"),
}


def by_kind(rows: Iterable[Row]) -> list[tuple[Kind, list[Row]]]:
    """The rows of each kind that there is."""
    rows = list(rows)
    groups = ((kind, [row for row in rows if row.kind == kind]) for kind in STYLES)
    return [(kind, group) for kind, group in groups if group]


def loss_names(rows: Sequence[Row]) -> dict[tuple[str, str], str]:
    """What a loss and label is called: the loss, with its label where it has several."""
    cases = list(dict.fromkeys((row.loss, row.label) for row in rows))
    losses = [loss for loss, _ in cases]
    return {
        (loss, label): loss if losses.count(loss) == 1 else f"{loss} {label}"
        for loss, label in cases
    }


def time_table(rows: Sequence[Row], results: Results) -> str:
    """Times with quartiles, ratios and rates of rows of one kind."""
    columns = _Columns(rows, results)
    header = [*columns.subject_header(), *([] if results.is_gpu else ["threads"])]
    header += [*columns.providers, *columns.ratio_header(), *columns.rate_header(), "rounds"]
    body = []
    for row in rows:
        line = [*columns.subject(row), *([] if results.is_gpu else [str(row.threads)])]
        line += [_cell(row, name, _timespan) for name in columns.providers]
        body.append([*line, *columns.ratios(row), *columns.rates(row), str(row.rounds)])
    note = (
        f"\n\n† not fit to be quoted: other work used more than {BUSY:.0%} of the CPUs meanwhile."
        if any(row.is_disturbed for row in rows)
        else ""
    )
    return format_table(header, body, left=columns.left) + note


def summary_table(rows: Sequence[Row], results: Results, rates: bool) -> str:
    """Medians and ratios; `rates`: bytes per second too."""
    columns = _Columns(rows, results)
    rates = rates or not columns.moves_bytes
    header = [*columns.subject_header(), *columns.providers, *columns.ratio_header()]
    header += columns.rate_header() if rates else []
    body = []
    for row in rows:
        line = columns.subject(row)
        line += [
            _cell(row, name, lambda each: time_text(each.median)) for name in columns.providers
        ]
        line += columns.ratios(row)
        body.append([*line, *(columns.rates(row) if rates else ())])
    return format_table(header, body, left=columns.left)


def memory_table(rows: Sequence[Row], results: Results) -> str:
    """Peak extra memory and errors of rows of one kind."""
    columns = _Columns(rows, results)
    in_mib = STYLES[rows[0].kind].memory == "MiB"
    header = [*columns.subject_header(), "N x N" if in_mib else "student"]
    for what in ("memory", "loss error", "gradient error"):
        header += [f"{what}: {_SHORT.get(name, name)}" for name in columns.providers]
    body, sampled = [], False
    for row in rows:
        mark = "" if row.error_shape is None else " *"
        sampled |= bool(mark)
        unit = 2**20 if in_mib else row.student_bytes
        size = f"{4 * row.shape[0] ** 2 / unit:.2f}" if in_mib else byte_text(row.student_bytes)
        line = [*columns.subject(row), size]
        # On a GPU it is put together from slices of all rows.
        loss_mark = "" if row.threads == ON_GPU and is_batch_mean(row.options) else mark
        known = [row.providers.get(name) for name in columns.providers]
        line += [NOTHING if each is None else _peak(each, unit) for each in known]
        line += [NOTHING if each is None else f"{each.loss_error:.1e}{loss_mark}" for each in known]
        line += [NOTHING if each is None else f"{each.grad_error:.1e}{mark}" for each in known]
        body.append(line)
    note = "\n\n\\* on fewer rows of the same length, to bound the cost of float64."
    return format_table(header, body, left=columns.left) + (note if sampled else "")


class _Columns:
    """What the tables of some rows of one kind share."""

    def __init__(self, rows: Sequence[Row], results: Results) -> None:
        self._results = results
        self._style = STYLES[rows[0].kind]
        self._names = loss_names(rows)
        known = {name for row in rows for name in (*row.providers, *row.failures)}
        self.providers = [name for name in (*PROVIDERS, *PEERS) if name in known]
        others = self.providers if "fastkd" in known else []
        self._others = [name for name in others if name != "fastkd"]
        self.counts_work = any(row.work_count for row in rows)

    @property
    def moves_bytes(self) -> bool:
        """Whether bytes set the time, and not what a loss is done for or the floor."""
        return not (self.counts_work or self._style.floor)

    @property
    def left(self) -> int:
        """How many columns are words."""
        return len(self.subject_header())

    def subject_header(self) -> list[str]:
        return [*(["loss"] if len(self._names) > 1 else []), self._style.tensor, "dtype"]

    def subject(self, row: Row) -> list[str]:
        loss = [self._names[row.loss, row.label]] if len(self._names) > 1 else []
        return [*loss, row.name + (" †" if row.is_disturbed else ""), row.dtype]

    def ratio_header(self) -> list[str]:
        return [f"vs {_SHORT.get(name, name)}" for name in self._others]

    def ratios(self, row: Row) -> list[str]:
        return [_ratio(row.ratio(name)) for name in self._others]

    def rate_header(self) -> list[str]:
        if floor := self._style.floor:
            return [f"{floor} alone", f"fastkd / {floor}"]
        return ["time for each"] if self.counts_work else ["GB/s", "of copy"]

    def rates(self, row: Row) -> list[str]:
        """Of fastkd: what the floor leaves to win, the time of a pair or triplet, or a rate."""
        if self._style.floor:
            over = row.over_floor
            return [_floor(row), NOTHING if over is None else f"{over:.2f}"]
        if self.counts_work:
            seconds = row.seconds_per_unit
            return [NOTHING if seconds is None else f"{nanoseconds_text(seconds)}/{row.work_unit}"]
        rate = row.bandwidth
        if rate is None:
            return [NOTHING, NOTHING]
        copy = self._results.copy_bandwidth[row.threads]
        return [f"{rate / 1e9:.{0 if self._results.is_gpu else 2}f}", f"{rate / copy:.0%}"]


def option_lines(rows: Sequence[Row]) -> list[str]:
    """The options of the losses that are not called with their defaults."""
    names = loss_names(rows)
    cases = itertools.groupby(rows, lambda row: (row.loss, row.label))
    options = {case: next(group).options for case, group in cases}
    return [
        f"{names[case]}: {', '.join(f'{name}={value!r}' for name, value in each.items())}"
        for case, each in options.items()
        if each
    ]


def _cell(row: Row, provider: str, text: Callable[[Figures], str]) -> str:
    if provider in row.providers:
        return text(row.providers[provider])
    return row.failures.get(provider, NOTHING)[:MOST_WORDS]


def _floor(row: Row) -> str:
    if row.floor is not None:
        return time_text(row.floor.median)
    return row.failures.get(FLOOR, NOTHING)[:MOST_WORDS]


def _peak(figures: Figures, unit: int) -> str:
    return f"{(figures.peak_bytes or 0) / unit:.2f}"


def _timespan(figures: Figures) -> str:
    return span_text(figures.median, figures.q25, figures.q75)


def _ratio(ratio: float | None) -> str:
    if ratio is None:
        return NOTHING
    return f"{ratio:.3g}" if ratio >= 1 else f"**{ratio:.2f} slower**"
