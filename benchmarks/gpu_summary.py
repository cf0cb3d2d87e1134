# SPDX-License-Identifier: Apache-2.0
"""What gpu-check prints of its stages. Standard library only."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.commands import Outcome, last_line
from benchmarks.gpu_facts import DRY_RUN
from benchmarks.gpu_run import Run
from benchmarks.gpu_stages import TEST_STAGES, journal_of
from benchmarks.gpu_tests import Verdicts, read_journal
from benchmarks.gpu_tools import ncu_words, sanitizer_words

MOST_DETAILS = 8  # lines about the failures of a stage
MOST_COLUMNS = 200
TABLES = ("bench", "peers")  # stages that end with the benchmark's table
_WRONG = re.compile(r"FAILED|\berror\b|Error:", re.IGNORECASE)


def heading(machine: dict[str, Any]) -> str:
    """The first lines: whether this was a GPU at all, and which."""
    if machine["gpu"] == DRY_RUN:
        return (
            "DRY RUN on a CPU: it shows that gpu-check itself works. No GPU was used and no number "
            "below tells anything about one.\n"
            f"torch {machine['torch']}, nvcc {machine['nvcc']}"
        )
    return (
        f"{machine['gpu']}, sm_{machine['capability']}, driver {machine['driver']}, "
        f"torch {machine['torch']}, CUDA {machine['torch_cuda']}, nvcc {machine['nvcc']}, "
        f"Triton {machine['triton']}"
    )


def section(run: Run, stage: str, outcomes: Sequence[Outcome]) -> str:
    """How a stage ended: its steps, what failed, its table."""
    lines = [f"== {stage}", *(f"{name}: {words}" for name, words in checks(run, outcomes).items())]
    details = list(failures(run, outcomes))
    lines += [f"  {line}" for line in details[:MOST_DETAILS]]
    if len(details) > MOST_DETAILS:
        lines.append(f"  and {len(details) - MOST_DETAILS} more, in the logs")
    lines = [line[:MOST_COLUMNS] for line in lines]
    if stage in TABLES:
        table = run.logs / "bench.txt"
        lines.append(table.read_text(encoding="utf-8") if table.exists() else "no row is measured")
    return "\n".join([*lines, ""])


def checks(run: Run, outcomes: Sequence[Outcome]) -> dict[str, str]:
    """How steps ended, a line for each; the processes of one file of tests in a line."""
    found: dict[str, str] = {}
    for outcome in outcomes:
        name = outcome.step.name
        stage, _, rest = name.partition(" ")
        if stage in TEST_STAGES:
            name = f"{stage} {rest}" if rest and not rest.isdecimal() else stage
            if name not in found:
                found[name] = _test_words(run, [o for o in outcomes if _is_of(o, name)])
        elif stage == "ncu" and outcome.ok and not run.dry_run:
            for number, line in enumerate(ncu_words(outcome.output), 1):
                found[f"{name}, kernel {number}"] = line
        else:
            found[name] = _words(outcome, run.dry_run)
    return found


def _is_of(outcome: Outcome, name: str) -> bool:
    """Whether a step is a test's file or one of its parts."""
    return re.fullmatch(rf"{re.escape(name)}( \d+)?", outcome.step.name) is not None


def _words(outcome: Outcome, dry_run: bool) -> str:
    name = outcome.step.name.partition(" ")[0]
    if outcome.code is None:
        return outcome.words
    words = f"{outcome.words} ({outcome.seconds:.0f} s)"
    if name == "sanitizers" and not dry_run:
        return f"{words}: {sanitizer_words(outcome.output)}"
    return words if name in TABLES and outcome.ok else f"{words}: {last_line(outcome.output)}"


def _test_words(run: Run, outcomes: Sequence[Outcome]) -> str:
    """The verdicts of all processes together."""
    ran = [outcome for outcome in outcomes if outcome.code is not None]
    if not ran:
        return outcomes[0].words
    found = _verdicts(run, outcomes)
    counts = [list(found.outcomes.values()).count(each) for each in ("passed", "failed", "skipped")]
    words = "{} passed, {} failed, {} skipped".format(*counts)
    words += f", {len(found.hung)} ended without a verdict" if found.hung else ""
    words += f", of {found.collected}"
    seconds = max(outcome.seconds for outcome in ran)
    state = "ok" if all(each.ok for each in ran) else "TIMED OUT" if timed_out(ran) else "FAILED"
    quiet = not found.collected and last_line(next(o for o in ran if not o.ok).output)
    count = f" in {len(ran)} processes" if len(ran) > 1 else ""
    return f"{state} ({seconds:.0f} s{count}): {quiet or words}"


def timed_out(outcomes: Iterable[Outcome]) -> bool:
    """Whether the time was up, and nothing else was wrong."""
    return all(each.ok or each.words == "TIMED OUT" for each in outcomes)


def _verdicts(run: Run, outcomes: Iterable[Outcome]) -> Verdicts:
    together = Verdicts()
    for outcome in outcomes:
        part = read_journal(journal_of(run, outcome.step.name))
        together.collected += part.collected
        together.begun |= part.begun
        together.outcomes |= part.outcomes
        together.failures |= part.failures
    return together


def failures(run: Run, outcomes: Sequence[Outcome]) -> Iterable[str]:
    """What exactly failed: tests, wrappers, the compiler's errors."""
    for outcome in outcomes:
        if outcome.code is None:
            continue
        if outcome.step.name.partition(" ")[0] in TEST_STAGES:
            found = _verdicts(run, [outcome])
            yield from (f"{name}: {words}" for name, words in found.failures.items())
            yield from (f"{name}: hung, faulted or was cut off" for name in found.hung)
        elif not outcome.ok:
            wrong = (line for line in outcome.output.splitlines() if _WRONG.search(line))
            yield from (f"{outcome.step.name}: {line}" for line in wrong)
