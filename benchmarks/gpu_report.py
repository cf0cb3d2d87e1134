# SPDX-License-Identifier: Apache-2.0
"""The end of a GPU's results: the short table, and the files with what the other checks found.

python -m benchmarks.gpu_report RESULTS.json --checks FILE     adds checks, writes, draws
"""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks.command_line import exit_with
from benchmarks.report import copy_words, host_words, render_summary, save
from benchmarks.results import Results, results_from_json

LEAST_BYTES = 1 << 20  # of the student: below, torch's allocator rounds up more than a call takes


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_report", description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("--checks", type=Path, required=True, help="JSON: name -> words")
    options = parser.parse_args(arguments)
    results = results_from_json(json.loads(options.results.read_text(encoding="utf-8")))
    checks = json.loads(options.checks.read_text(encoding="utf-8"))
    results = dataclasses.replace(results, checks=checks)
    save(results, options.results.parent, options.results.stem)
    try:
        from benchmarks.plot import draw  # noqa: PLC0415 - matplotlib may be missing
    except ImportError as error:
        print(f"no picture: {error}")
    else:
        draw(results, options.results.parent, options.results.stem)
    return 0


def render_rates(results: Results) -> str:
    """The short table with rates beside a copy's, and the worst of fastkd's errors and memory."""
    words = [f"{copy_words(results)}. Commit {results.commit}.", *_fastkd_words(results)]
    return "\n".join([*words, "", render_summary(results, rates=True), ""])


def _fastkd_words(results: Results) -> list[str]:
    """Worst error and memory of fastkd, and what short calls cost the CPU."""
    ours = [(row, row.providers["fastkd"]) for row in results.rows if "fastkd" in row.providers]
    lines = [words for words in (host_words(results),) if words]
    for dtype in dict.fromkeys(row.dtype for row, _ in ours):
        checked = [
            (row, each, each.loss_error, each.grad_error)
            for row, each in ours
            if row.dtype == dtype and each.loss_error is not None and each.grad_error is not None
        ]
        if checked:
            shares = [
                (each.peak_bytes or 0) / row.student_bytes
                for row, each, _, _ in checked
                if row.student_bytes >= LEAST_BYTES and row.kind in ("logits", "features")
            ]
            lines.append(
                f"fastkd {dtype}: loss error at most {max(loss for _, _, loss, _ in checked):.1e}, "
                f"gradient {max(grad for _, _, _, grad in checked):.1e}; "
                f"memory at most {max(shares, default=0.0):.2f} gradients"
            )
    return lines


if __name__ == "__main__":
    exit_with(main)
