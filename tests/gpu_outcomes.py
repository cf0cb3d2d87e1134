# SPDX-License-Identifier: Apache-2.0
"""Steps of gpu-check that have ended, for tests."""

import sys
import time
from pathlib import Path

from benchmarks.commands import Outcome, Step, run_steps

MACHINE = {
    "gpu": "Chip 1000",
    "capability": 90,
    "driver": "1.0",
    "torch": "2.13",
    "torch_cuda": "13.0",
    "nvcc": "13.0",
    "triton": "3.6",
}


def python(program: str) -> list[str]:
    return [sys.executable, "-c", program]


def run(step: Step, folder: Path, seconds: float = 30) -> Outcome:
    (outcome,) = run_steps([step], folder, time.monotonic() + seconds)
    return outcome


def ended(name: str, code: int | None, output: str, obstacle: str = "") -> Outcome:
    return Outcome(Step(name, (), 1, obstacle=obstacle), code, 12.0, output)
