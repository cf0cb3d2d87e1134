# SPDX-License-Identifier: Apache-2.0
"""What all stages of gpu-check need to know of the run. Standard library only."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import ROOT
from benchmarks.commands import Step
from benchmarks.gpu_facts import slug
from benchmarks.gpu_program import SanitizerProgram

PYTHON = sys.executable


@dataclass
class Run:
    """What a run is about."""

    machine: dict[str, Any]
    output: Path
    tree: Path = ROOT  # from which the steps run
    package: Path | None = None  # an unpacked wheel
    dry_run: bool = False
    rows: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    program: SanitizerProgram = field(default_factory=SanitizerProgram)

    @property
    def logs(self) -> Path:
        """The folder of all that the steps say."""
        return self.output / "logs"

    @property
    def results(self) -> Path:
        """The file of the benchmark."""
        return self.output / f"{slug(self.machine['gpu'])}.json"

    @property
    def cores(self) -> int:
        """Of this machine, at least two."""
        return max(2, os.cpu_count() or 2)

    @property
    def dry(self) -> list[str]:
        """What programs are told in a dry run."""
        return ["--dry-run"] if self.dry_run else []

    def step(self, name: str, *commands: Sequence[str], **more: Any) -> Step:
        """A step with the environment that all have."""
        environment = {**self.environment, "PYTHONUNBUFFERED": "1", "FASTKD_REQUIRE_NATIVE": "1"}
        if self.package is not None:
            environment["PYTHONPATH"] = str(self.package)
        if self.dry_run:
            environment["FASTKD_TEST_DEVICE"] = "cpu"
        environment |= more.pop("environment", {})
        seconds = more.pop("seconds", float("inf"))  # the stage has a limit
        return Step(name, commands, seconds, environment, folder=self.tree, **more)

    def module(self, name: str, *arguments: str) -> list[str]:
        """The command line of one of our programs."""
        return [PYTHON, "-m", f"benchmarks.{name}", *arguments, *self.dry]
