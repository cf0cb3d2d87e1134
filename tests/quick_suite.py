# SPDX-License-Identifier: Apache-2.0
"""Which tests run without --all: each combination of parameters on one backend, by rotation.

The choice assumes that a fault of a kernel shows on any geometry, and a fault of a geometry in any
dtype. Of tests that differ in nothing but the parameters listed in ROTATED, one runs, or more if a
function has few other combinations. It is the one whose backend and dtype have met the other
parameters least. So every test function meets every backend and dtype, and so does every case that
has many geometries.

All tests run of a function that is marked `unrotated`: it has few other parameters, and kernels
have code of their own for each combination. All tests run of a file that is named.
"""

import argparse
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

ROTATED = ("backend", "cpu_backend", "dtype", "dtypes", "order")

# Whole files that run with --all only: programs and examples, each of which takes long.
ONLY_WITH_ALL = (
    "test_benchmark*.py",
    "test_cuda_gates.py",
    "test_demo.py",
    "test_gpu_*.py",
    "test_*_example.py",
)

GAPS = pytest.StashKey[set[str]]()

Words = tuple[str, ...]  # parameters and their values, as in "dtype=torch.float32"
Groups = Mapping[Words, Sequence[Words]]  # what is kept -> what varies


def names_a_file(argument: str) -> bool:
    """Whether an argument of pytest is a file, or a test in one, and no folder."""
    return Path(argument.partition("::")[0]).suffix != ""


def part_of(argument: str) -> tuple[int, int]:
    """I and N of "I/N"."""
    number, _, count = argument.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise argparse.ArgumentTypeError(f"must be I/N with 1 <= I <= N, as in 2/4, got {argument}")
    return int(number), int(count)


def runs(items: Sequence[pytest.Item]) -> list[bool]:
    """Whether each test runs in the quick suite."""
    functions: dict[str, dict[Words, dict[Words, int]]] = {}
    for place, item in enumerate(items):
        kept, varied = _words(item, False), _words(item, True)
        groups = functions.setdefault(item.nodeid.partition("[")[0], {})
        while varied in groups.get(kept, ()):  # different values that read alike
            kept = (*kept, "once more")
        groups.setdefault(kept, {})[varied] = place
    chosen = {
        groups[kept][varied]
        for groups in functions.values()
        for kept, varied in rotate({kept: [*group] for kept, group in groups.items()})
    }
    marks = [{mark.name for mark in item.iter_markers()} for item in items]
    return [
        (place in chosen or "unrotated" in names) and "slow" not in names
        for place, names in enumerate(marks)
    ]


def rotate(groups: Groups) -> Iterator[tuple[Words, Words]]:
    """Yield one variant of each group, or more of few groups: each backend and dtype occurs."""
    variants = {word for group in groups.values() for varied in group for word in varied}
    values = Counter(word.partition("=")[0] for word in variants)
    each = max(1, math.ceil(max(values.values(), default=1) / len(groups)))
    met: Counter[tuple[str, str | Words]] = Counter()

    def meetings(kept: Words, varied: Words) -> tuple[int, int, int, int]:
        times = [met[word, part] for word in kept for part in varied]
        whole = [met[word, varied] for word in ("", *kept)]
        new = [met["", part] for part in varied].count(0)  # to the whole function
        return -new, -times.count(0), -whole.count(0), sum(times) + sum(whole)

    for kept, group in groups.items():
        left = [*group]
        for _ in range(min(each, len(left))):
            chosen = min(left, key=lambda varied: meetings(kept, varied))
            left.remove(chosen)
            met.update((word, part) for word in ("", *kept) for part in (*chosen, chosen))
            yield kept, chosen


def gaps(items: Sequence[pytest.Item], chosen: Sequence[bool]) -> set[str]:
    """The parameter values that no chosen test of a function has, but another test has."""
    met, available = set(), set()
    for item, run in zip(items, chosen, strict=True):
        if item.get_closest_marker("slow") is None:
            function = item.nodeid.partition("[")[0]
            words = {f"{function} {word}" for word in _words(item, True)}
            available |= words
            met |= words if run else set()
    return available - met


def _words(item: pytest.Item, rotated: bool) -> Words:
    """The parameters of a test that are rotated, or the others."""
    call = getattr(item, "callspec", None)
    parameters = {} if call is None else call.params
    return tuple(f"{k}={v}" for k, v in parameters.items() if (k in ROTATED) == rotated)
