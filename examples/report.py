# SPDX-License-Identifier: Apache-2.0
"""What the demo prints."""

import os
import platform
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch

import fastkd
from benchmarks.machine import cpu_model
from examples.data import Split
from examples.experiment import OMITTED_DIGIT, SeedResult, Settings
from examples.loss_time import LossTime


def describe_machine() -> str:
    """What runs, where, and which path the loss takes."""
    info = fastkd.info()
    path = f"its {info['cpu']} kernels" if info["cpu"] else "the PyTorch reference (no kernels)"
    return (
        f"fastkd {info['version']}, which runs {path}; torch {torch.__version__}, Python "
        f"{platform.python_version()}\n{cpu_model() or platform.machine()}, {os.cpu_count()} "
        f"cores, {_threads(torch.get_num_threads())}"
    )


def describe_data(parts: Split, settings: Settings) -> str:
    """Sizes of the parts, and who learns from which."""
    recipe = settings.recipe
    digits = sum(map(len, (parts.train, parts.validation, parts.test)))
    of_teacher = "the same" if recipe.transfer is None else f"{recipe.transfer} of these"
    threads = "" if recipe.threads is None else f", {_threads(recipe.threads)}"
    return (
        f"{recipe.title}, {digits} images: {len(parts.train)} for the teacher, {of_teacher} for "
        f"the students, {len(parts.validation)} for validation, {len(parts.test)} for test.\n"
        f"Teacher {_sizes(recipe.teacher.hidden)} hidden units, students "
        f"{_sizes(recipe.student.hidden)}; {settings.epochs} epochs{threads}; "
        f"temperature {settings.temperature:g}, alpha {settings.alpha:g}."
    )


def error_table(results: Sequence[SeedResult], images: int) -> str:
    """Test errors of teacher and students, by seed."""
    head = _head(f"Test errors of {images}", results)
    rows = [
        _row("teacher", results, lambda result: result.teacher),
        _row("student, hard labels", results, lambda result: result.hard),
        _row("student, distilled", results, lambda result: result.distilled),
    ]
    return format_table([head, *rows])


def without_digit_table(results: Sequence[SeedResult], images: int, of_digit: int) -> str:
    """Test errors of the student that was never shown a digit, by seed."""
    digit = OMITTED_DIGIT
    head = _head(f"Distilled without {digit}s, test errors of {images}", results)
    rows = [
        _row("errors", results, lambda result: result.without_digit.errors[0]),
        _row(
            f"  of these on the {of_digit} {digit}s", results, lambda r: r.without_digit.missed[0]
        ),
        _row(f"bias added to class {digit}", results, lambda r: r.without_digit.bias),
        _row("errors with the bias", results, lambda result: result.without_digit.errors[1]),
        _row(
            f"  of these on the {of_digit} {digit}s", results, lambda r: r.without_digit.missed[1]
        ),
    ]
    note = "The bias is the one with the fewest errors on the validation images."
    return f"{format_table([head, *rows])}\n{note}"


def time_table(times: Sequence[LossTime], busy: float | None) -> str:
    """Time of the loss beside eager PyTorch; `busy` is the share of the CPUs used by others."""
    head = ["Loss, forward + backward", "fastkd", "eager PyTorch", "ratio", "relative difference"]
    rows = [
        [
            f"{time.rows} x {time.classes}, {_threads(time.threads)}",
            f"{time.fastkd * 1e6:.0f} us",
            f"{time.eager * 1e6:.0f} us",
            f"{time.eager / time.fastkd:.1f}",
            f"{time.loss_difference:.0e}, gradient {time.gradient_difference:.0e}",
        ]
        for time in times
    ]
    text = format_table([head, *rows])
    if busy is not None and busy > 0.1:
        text += (
            f"\nOther programs used {busy:.0%} of the CPUs meanwhile. That slows eager PyTorch's "
            "thread pool most: for a fair ratio, run again on a quiet machine."
        )
    return text


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell, the first to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def _head(title: str, results: Sequence[SeedResult]) -> list[str]:
    return [title, "mean", *(f"seed {result.seed}" for result in results)]


def _row(
    name: str, results: Sequence[SeedResult], figure: Callable[[SeedResult], Any]
) -> list[str]:
    figures = [figure(result) for result in results]
    return [name, f"{statistics.mean(figures):.1f}", *map(str, figures)]


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"


def _sizes(hidden: tuple[int, ...]) -> str:
    return " and ".join(map(str, hidden))
