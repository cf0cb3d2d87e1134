# SPDX-License-Identifier: Apache-2.0
"""The last lines of gpu-check: what failed, what was measured. At most a hundred of them."""

import dataclasses
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.commands import Outcome
from benchmarks.gpu_tools import last_line, ncu_words, sanitizer_words

MOST_DETAILS = 14  # lines about failures
MOST_OF_A_STEP = 3
MOST_COLUMNS = 180
LEAST_BYTES = 1 << 20  # of the student: below, torch's allocator rounds up more than a call takes
_WRONG = re.compile(r"FAILED|\berror\b|Error:", re.IGNORECASE)
_FAILED_TEST = re.compile(r"^(?:FAILED|ERROR) (tests/\S+::.*)")
_PYTEST_END = re.compile(r"^=+ (.* in [\d.]+s.*?) =+$")


def status(outcome: Outcome) -> str:
    """How a step ended, in a line."""
    name, output = outcome.step.name, outcome.output
    words = outcome.words if outcome.code is None else f"{outcome.words} ({outcome.seconds:.0f} s)"
    more = ""
    if outcome.code is None:
        return words
    if name.startswith("tests"):
        ends = [found[1] for line in output.splitlines() if (found := _PYTEST_END.match(line))]
        more = ends[-1] if ends else f"the last was {last_line(output)}"
    elif name.startswith("sanitizers"):
        more = sanitizer_words(output)
    elif name.startswith("ncu"):
        more = f"{len(ncu_words(output))} kernels" if outcome.ok else last_line(output)
    elif name in ("build", "wrappers") or not outcome.ok:
        more = last_line(output)
    return f"{words}: {more}" if more else words


def details(outcomes: Iterable[Outcome]) -> list[str]:
    """What exactly failed: tests, wrappers, the compiler's errors. Some of each step."""
    lines: list[str] = []
    for outcome in outcomes:
        if outcome.ok or outcome.code is None:
            continue
        output = outcome.output.splitlines()
        if outcome.step.name.startswith("tests"):
            wrong = [found[1] for line in output if (found := _FAILED_TEST.match(line))]
        else:
            wrong = [f"{outcome.step.name}: {line}" for line in output if _WRONG.search(line)]
        lines += wrong[:MOST_OF_A_STEP]
        if len(wrong) > MOST_OF_A_STEP:
            lines.append(f"{outcome.step.name}: {len(wrong) - MOST_OF_A_STEP} more, in its log")
    return lines


def print_summary(
    machine: dict[str, Any], outcomes: Sequence[Outcome], results: Path, begin: float
) -> None:
    """Print it, and keep how the steps ended in the results file of this run."""
    checks = {outcome.step.name: status(outcome) for outcome in outcomes[1:]}
    counters = [
        line
        for outcome in outcomes
        if outcome.step.name.startswith("ncu") and outcome.ok
        for line in ncu_words(outcome.output)
    ]
    failures = details(outcomes)
    lines = [
        "",
        f"{machine['gpu']}, sm_{machine['capability']}, driver {machine['driver']}, "
        f"torch {machine['torch']}, CUDA {machine['torch_cuda']}, nvcc {machine['nvcc']}, "
        f"Triton {machine['triton']}",
        *(f"{name}: {words}" for name, words in checks.items()),
        *(f"  {line}" for line in failures[:MOST_DETAILS]),
    ]
    lines += [f"ncu: {line}" for line in counters]
    print("\n".join(line[:MOST_COLUMNS] for line in lines))
    checks |= {f"ncu, kernel {i}": line for i, line in enumerate(counters, 1)}
    print(table(results, begin, checks), flush=True)


def table(path: Path, begin: float, checks: dict[str, str]) -> str:
    """The short table of the results that this run recorded, which keep the checks from now on."""
    if not path.exists() or path.stat().st_mtime < begin:
        return "no table: the benchmark recorded nothing"
    try:
        from benchmarks import report  # noqa: PLC0415 - needs torch and fastkd, which may be broken
        from benchmarks.results import results_from_json  # noqa: PLC0415

        results = results_from_json(json.loads(path.read_text(encoding="utf-8")))
        results = dataclasses.replace(results, checks=checks)
        report.save(results, path.parent, path.stem)
        words = [f"{report.copy_words(results)}. Commit {results.commit}.", *_fastkd_words(results)]
        return "\n".join([*words, report.render_summary(results, rates=True)])
    except Exception as error:  # what was measured is in the file all the same
        return f"no table ({type(error).__name__}: {error}); see {path.name}"


def _fastkd_words(results: Any) -> list[str]:
    """Worst error and memory of fastkd, and what short calls cost the CPU."""
    from benchmarks.report import host_words  # noqa: PLC0415 - as above

    ours = [(row, row.providers["fastkd"]) for row in results.rows if "fastkd" in row.providers]
    lines = [words for words in (host_words(results),) if words]
    for dtype in dict.fromkeys(row.dtype for row, _ in ours):
        of_dtype = [(row, each) for row, each in ours if row.dtype == dtype]
        checked = [(row, each) for row, each in of_dtype if each.grad_error is not None]
        if checked:
            loss = max(each.loss_error for _, each in checked)
            grad = max(each.grad_error for _, each in checked)
            shares = [
                each.peak_bytes / row.student_bytes
                for row, each in checked
                if row.student_bytes >= LEAST_BYTES and row.kind in ("logits", "features")
            ]
            lines.append(
                f"fastkd {dtype}: loss error at most {loss:.1e}, gradient {grad:.1e}; "
                f"memory at most {max(shares, default=0.0):.2f} gradients"
            )
    return lines
