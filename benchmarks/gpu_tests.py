# SPDX-License-Identifier: Apache-2.0
"""A pytest plugin: a run that a kernel has ended goes on behind the test that ended it.

    python -m pytest -p benchmarks.gpu_tests --journal FILE ...

A kernel that faults takes all later tests of its process along, and one that hangs must be killed.
The journal has what began and how it ended; a run leaves out what an earlier one began. The process
exits with status 3 if the GPU is lost.
"""

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

LOST = 3  # exit status: the device faulted, start again
MOST_CHARACTERS = 300  # of a failure's words


def pytest_addoption(parser: "pytest.Parser") -> None:
    """Add the option."""
    parser.addoption("--journal", type=Path, required=True, metavar="FILE")


def pytest_configure(config: "pytest.Config") -> None:
    """Put the plugin's hooks that need the journal in place."""
    config.pluginmanager.register(_Resuming(config.getoption("--journal")), "fastkd_journal")


class _Resuming:
    def __init__(self, path: Path) -> None:
        self._path = path

    def _write(self, **record: Any) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def pytest_collection_finish(self, session: "pytest.Session") -> None:
        """Leave out what was begun. Other plugins have chosen by now."""
        begun = read_journal(self._path).begun
        left_out = [item for item in session.items if item.nodeid in begun]
        if left_out:
            session.config.hook.pytest_deselected(items=left_out)
            session.items[:] = [item for item in session.items if item.nodeid not in begun]
        else:
            self._write(collected=len(session.items))

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """A test runs: if the process ends now, it was this test's fault."""
        self._write(begun=nodeid)

    def pytest_runtest_logreport(self, report: "pytest.TestReport") -> None:
        """A part of a test has ended: its setup, its call or its teardown."""
        if report.outcome == "passed" and report.when != "call":
            return
        words = _words_of(report) if report.outcome != "passed" else ""
        self._write(ended=report.nodeid, outcome=report.outcome, words=words)
        if report.outcome == "failed" and (why := _why_lost()):
            print(f"\n{report.nodeid}: {words}\nthe GPU is lost: {why}", flush=True)
            os._exit(LOST)


@dataclass
class Verdicts:
    """How tests ended."""

    collected: int = 0
    begun: dict[str, None] = field(default_factory=dict)  # in their order
    outcomes: dict[str, str] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def hung(self) -> list[str]:
        """Those that ended their process, or that were running when the time was up."""
        return [name for name in self.begun if name not in self.outcomes]


def read_journal(path: Path) -> Verdicts:
    """What a journal holds; nothing if there is none."""
    found = Verdicts()
    for record in records(path):
        if "begun" in record:
            found.begun[record["begun"]] = None
        elif "ended" in record:
            name, outcome = record["ended"], record["outcome"]
            if found.outcomes.get(name) != "failed":
                found.outcomes[name] = outcome
            if outcome == "failed":
                found.failures.setdefault(name, record["words"])
        else:
            found.collected += record["collected"]
    return found


def records(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a journal that were written to their end."""
    lines = path.read_text(encoding="utf-8").splitlines(True) if path.exists() else []
    return (json.loads(line) for line in lines if line.endswith("\n"))


def _words_of(report: "pytest.TestReport") -> str:
    """The error in a line."""
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash is not None else str(report.longrepr)
    return " ".join(text.split())[:MOST_CHARACTERS]


def _why_lost() -> str:
    """Why the GPU answers no more, or ""."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return ""
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        return str(error).partition("\n")[0]
    return ""
