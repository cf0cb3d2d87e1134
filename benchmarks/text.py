# SPDX-License-Identifier: Apache-2.0
"""Figures and tables as text."""

from collections.abc import Iterable, Sequence


def format_table(header: Sequence[str], body: Iterable[Sequence[str]], left: int) -> str:
    """A Markdown table whose columns line up in a terminal too; the first `left` flush left."""
    lines = [list(header), *(list(line) for line in body)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]

    def padded(line: Sequence[str]) -> str:
        cells = (
            cell.ljust(width) if index < left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        return f"| {' | '.join(cells)} |"

    rule = (
        "-" * (width + 2) if index < left else "-" * (width + 1) + ":"
        for index, width in enumerate(widths)
    )
    return "\n".join([padded(lines[0]), f"|{'|'.join(rule)}|", *map(padded, lines[1:])])


def time_text(seconds: float) -> str:
    """Three digits and a unit, a microsecond at least."""
    for factor, unit in ((1e6, "µs"), (1e3, "ms"), (1.0, "s")):
        if seconds * factor < 999.5:
            return f"{three_digits(seconds * factor)} {unit}"
    return f"{seconds:.0f} s"


def span_text(middle: float, low: float, high: float) -> str:
    """A time and its quartiles, in its unit."""
    text = time_text(middle)
    factor = {"µs": 1e6, "ms": 1e3, "s": 1.0}[text.split()[1]]
    return f"{text} [{three_digits(low * factor)}, {three_digits(high * factor)}]"


def nanoseconds_text(seconds: float) -> str:
    """Three digits, for what takes about a nanosecond."""
    nanoseconds = seconds * 1e9
    text = f"{nanoseconds:.3f}" if nanoseconds < 0.9995 else three_digits(nanoseconds)
    return f"{text} ns"


def byte_text(count: float) -> str:
    """Three digits and a decimal unit."""
    for factor, unit in ((1.0, "B"), (1e3, "kB"), (1e6, "MB")):
        if count / factor < 999.5:
            return f"{three_digits(count / factor)} {unit}"
    return f"{three_digits(count / 1e9)} GB"


def three_digits(value: float) -> str:
    """From 0.01 on; larger numbers whole."""
    decimals = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{decimals}f}"


def count_text(number: int, noun: str) -> str:
    """A number of things."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
