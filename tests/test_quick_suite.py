# SPDX-License-Identifier: Apache-2.0
"""The quick suite leaves out no combination: what it has of each case, geometry and backend."""

import argparse
import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import pytest_collection_modifyitems
from quick_suite import GAPS, Words, names_a_file, part_of, rotate, runs
from test_values import RUNS


def groups_of_values(backends: int) -> dict[Words, list[Words]]:
    """The runs of test_loss_and_gradient_match_float64, as the quick suite groups them."""
    groups: dict[Words, list[Words]] = {}
    for run, backend in itertools.product(RUNS, range(backends)):
        case, geometry, dtype = map(str, run.values)
        groups.setdefault((case, geometry), []).append((dtype, f"backend={backend}"))
    return groups


@pytest.mark.parametrize("backends", [1, 3, 4, 5])
def test_every_case_and_geometry_runs_once_and_meets_all_it_can(backends: int) -> None:
    groups = groups_of_values(backends)
    chosen = [*rotate(groups)]
    assert [kept for kept, _ in chosen] == [*groups]
    for place, word in {(i, kept[i]) for kept in groups for i in (0, 1)}:
        possible = {varied for kept in groups if kept[place] == word for varied in groups[kept]}
        met = [varied for kept, varied in chosen if kept[place] == word]
        for part in (0, 1):
            available = {varied[part] for varied in possible}
            seen = {varied[part] for varied in met}
            # What runs often meets all; what runs a few times, all but one at least.
            assert len(seen) >= min(len(available), len(met)) - 1, word
            assert seen == available or len(met) < 2 * len(available), word
        assert len({*met}) >= 0.75 * min(len(possible), len(met)), word


@pytest.mark.parametrize("backends", [1, 4, 5])
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_every_backend_runs_each_function(count: int, backends: int) -> None:
    group = [(f"backend={backend}",) for backend in range(backends)]
    chosen = [*rotate({(f"case={number}",): group for number in range(count)})]
    assert {varied for _, varied in chosen} == {*group}
    assert len(chosen) == len({*chosen})


def test_a_function_without_variants_runs_whole() -> None:
    groups = {("case=1",): [()], ("case=2",): [()]}
    assert [*rotate(groups)] == [(("case=1",), ()), (("case=2",), ())]


@pytest.mark.parametrize(
    ("marks", "share"),
    [((), 0.25), (("unrotated",), 1), (("slow",), 0), (("slow", "unrotated"), 0)],
)
def test_marks_say_what_runs(marks: tuple[str, ...], share: float) -> None:
    items = [
        SimpleNamespace(
            nodeid=f"test_x.py::test_x[{case}-{backend}]",
            callspec=SimpleNamespace(params={"case": case, "backend": backend}),
            iter_markers=lambda: [SimpleNamespace(name=mark) for mark in marks],
        )
        for case, backend in itertools.product(range(8), range(4))
    ]
    assert sum(runs(items)) == share * len(items)


def test_every_function_meets_every_backend_and_dtype(request: pytest.FixtureRequest) -> None:
    if GAPS not in request.config.stash:
        pytest.skip("this run leaves nothing out")
    assert request.config.stash[GAPS] == set()


@pytest.mark.parametrize(
    ("argument", "named"),
    [
        ("tests", False),
        ("/a.b/tests/", False),
        ("tests/test_errors.py", True),
        ("tests/test_errors.py::test_x[a.b]", True),
        ("README.md", True),
    ],
)
def test_a_file_that_is_named_runs_whole(argument: str, named: bool) -> None:
    assert names_a_file(argument) == named


def test_parts_are_the_whole() -> None:
    tests = [SimpleNamespace(path=Path("test_x.py"), number=number) for number in range(8)]
    parts = []
    for part in ("1/3", "2/3", "3/3"):
        config: Any = SimpleNamespace(
            option=SimpleNamespace(all=True, part=part_of(part)),
            hook=SimpleNamespace(pytest_deselected=lambda items: None),
        )
        items: list[Any] = [*tests]
        pytest_collection_modifyitems(config, items)
        parts.append([item.number for item in items])
    assert parts == [[0, 3, 6], [1, 4, 7], [2, 5]]


@pytest.mark.parametrize("argument", ["", "2", "0/3", "4/3", "1/x", "1/0"])
def test_a_part_that_is_none_is_refused(argument: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="must be I/N"):
        part_of(argument)
