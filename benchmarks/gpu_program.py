# SPDX-License-Identifier: Apache-2.0
"""The torch-free program for compute-sanitizer, compiled while other stages run."""

import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import ROOT
from benchmarks.commands import Step, end_process, start
from benchmarks.gpu_facts import find_nvcc

JOB = "cuda-device"  # of build_tools/sanitize.py
PROGRAM = ROOT / "build" / "native" / JOB / "program"


class SanitizerProgram:
    """Its compilation, for this chip only."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, logs: Path, capability: int, cores: int) -> None:
        """Begin to compile it if there is an nvcc, behind all else that wants the cores."""
        if not find_nvcc():
            return
        command = [sys.executable, "-m", "build_tools.sanitize", "--build-only", JOB]
        settings = {"FASTKD_CUDA_ARCHS": str(capability), "MAX_JOBS": str(max(1, cores))}
        PROGRAM.unlink(missing_ok=True)  # of an earlier run
        with (logs / "sanitizer-program.log").open("wb") as log:
            step = Step("sanitizer program", (), 0, settings)
            self._process = start(["nice", "-n", "19", *command], step, log.fileno())

    def wait(self, deadline: float) -> Path | None:
        """The program, if it is ready in time."""
        if self._process is None:
            return None
        try:
            code = self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.end()
            return None
        return PROGRAM if code == 0 and os.access(PROGRAM, os.X_OK) else None

    def end(self) -> None:
        """Stop compiling."""
        if self._process is not None and self._process.poll() is None:
            end_process(self._process)
