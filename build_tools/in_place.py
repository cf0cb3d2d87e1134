# SPDX-License-Identifier: Apache-2.0
"""fastkd compiled and installed in the tree, for the commands of dev.py that run it there.

Needs the standard library only.
"""

import os
import re
import sys
import time
from pathlib import Path

from build_tools import modules
from build_tools.environment import FACTS, ask, pip_install, provide_nvcc, sees_gpu
from build_tools.processes import ROOT, Failure, cores, process, run_quietly, say, step

OLDEST_CHIP = 75  # that CUDA 13 compiles for
SECONDS_PER_SOURCE = 5  # CPU seconds on a machine with AVX2, for the estimate that is printed


def compile_in_place(python: Path, command: str) -> None:
    """Compile the native modules into fastkd/; ninja leaves alone what has not changed."""
    wishes = build_wishes(command)
    if wishes["FASTKD_CUDA"] != "0":
        provide_nvcc(python)
    start = last = time.monotonic()
    words = []
    with process([python, "-m", "build_tools.native"], **wishes) as native:
        assert native.stdout is not None
        for line in native.stdout:
            words.append(line)
            if said := re.search(r"(\d+) files to compile", line):
                minutes = duration(int(said[1]) * SECONDS_PER_SOURCE)
                say(f"compiling fastkd: {said[1]} files, {minutes}")
            elif re.match(r"\[\d+/\d+\]", line):
                passing = sys.stdout.isatty()
                if passing or time.monotonic() - last > 15:
                    last = time.monotonic()
                    say(line.strip(), passing=passing)
    if native.returncode:
        raise Failure(f"compiling fastkd failed\n{''.join(words)}")
    if len(words) > 1:
        say(f"compiled fastkd ({time.monotonic() - start:.0f} s)")


def install_in_place(python: Path) -> None:
    """Let the environment import fastkd from this folder."""
    if ask(python, FACTS)["in_place"] != ROOT.as_uri():
        in_place = pip_install(python, "--no-deps", "--no-build-isolation", "--editable", ".")
        step("installing fastkd in place", in_place, FASTKD_NATIVE="0")  # compiled apart


def build_wishes(command: str) -> dict[str, str]:
    """setup.py's variables for a build in place, where the user has not set them."""
    # Where the kernels can't be built the user should hear it here, not find the reference at work.
    wishes = {"FASTKD_NATIVE": "1", "FASTKD_CUDA": "0", "FASTKD_EMULATOR": "0"}
    wishes["FASTKD_CPU_ISAS"] = "runnable" if command == "test" else "native"
    chips = gpu_archs()
    if chips:
        wishes |= {"FASTKD_CUDA": "1", "FASTKD_CUDA_ARCHS": ";".join(chips)}
    if command == "test" and modules.emulator_runs():
        wishes["FASTKD_EMULATOR"] = "1"
    return {name: os.environ.get(name) or wish for name, wish in wishes.items()}


def gpu_archs() -> list[str]:
    """This machine's chips as FASTKD_CUDA_ARCHS has them, but those too old for CUDA 13."""
    if not sees_gpu():
        return []
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    chips = {major + minor for major, minor in re.findall(r"(\d+)\.(\d)", run_quietly(query)[1])}
    return sorted((chip for chip in chips if int(chip) >= OLDEST_CHIP), key=int)


def duration(cpu_seconds: float) -> str:
    """How long so much work takes here, in words."""
    seconds = cpu_seconds / cores()
    about = f"{seconds / 60:.0f} minutes" if seconds > 90 else f"{seconds:.0f} seconds"
    return f"about {about} on {cores()} cores"
