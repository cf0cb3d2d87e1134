# SPDX-License-Identifier: Apache-2.0
"""The emulator itself: bug-free kernels pass, and every job finds the planted bugs it should."""

import dataclasses
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = ROOT / "tests" / "emulator"
EMULATOR = sorted((ROOT / "csrc" / "emulator").glob("*.cpp"))

# Which jobs find which bug, and in which orders of threads the plain one does.
EXPECTED: dict[str, dict[str, str]] = json.loads((PROGRAMS / "planted.json").read_text())
# Writes over a red zone, into an array that is written again before it is read.
FOUND_BY_NONE = {"overrun_into_next_array"}

FOUND = 66  # exit status of a sanitizer's report; a program's own statuses are 0, 1 and 2


@dataclasses.dataclass(frozen=True)
class Job:
    """A build, and how its programs run."""

    flags: tuple[str, ...] = ()
    emulator_flags: tuple[str, ...] = ()  # besides
    run_by: tuple[str, ...] = ()


JOBS = {
    "plain": Job(),
    "address": Job(("-fsanitize=address,undefined", "-fno-sanitize-recover=all")),
    "thread": Job(("-fsanitize=thread",), ("-fno-sanitize=thread", "-DFASTKD_TSAN")),
    "valgrind": Job(
        ("-DFASTKD_VALGRIND",), (), ("valgrind", "--quiet", f"--error-exitcode={FOUND}")
    ),
}


def run(command: Sequence[str | Path], timeout: int = 120) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "ASAN_OPTIONS": f"exitcode={FOUND}",
        "UBSAN_OPTIONS": f"exitcode={FOUND}",
        "TSAN_OPTIONS": f"exitcode={FOUND}:halt_on_error=1:atexit_sleep_ms=0",
    }
    return subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, check=False, env=environment
    )


def compile_objects(folder: Path, sources: Sequence[Path], flags: Sequence[str]) -> list[Path]:
    objects = [folder / f"{source.stem}.o" for source in sources]
    for source, target in zip(sources, objects, strict=True):
        common = ["-std=c++20", "-O1", "-g", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'csrc'}"]
        result = run(["g++", *common, *flags, "-c", source, "-o", target])
        assert result.returncode == 0, result.stderr
    return objects


class Built:
    """The two programs of one job."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.job = JOBS[name]
        self.folder = folder
        emulator = compile_objects(folder, EMULATOR, [*self.job.flags, *self.job.emulator_flags])
        for program in ("selftest", "planted"):
            sources = sorted(PROGRAMS.glob(f"{program}*.cpp"))
            objects = compile_objects(folder, sources, self.job.flags)
            linked = run(["g++", *self.job.flags, *objects, *emulator, "-o", folder / program])
            assert linked.returncode == 0, linked.stderr

    def run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        # gcc's ThreadSanitizer cannot start under the address randomisation of newer kernels.
        fixed = ["setarch", "-R"] if self.name == "thread" and addresses_can_be_fixed() else []
        return run([*fixed, *self.job.run_by, self.folder / program, *arguments])

    def bugs_found(self) -> dict[str, str]:
        """What this job sees of the bugs: in which orders (plain), or just that it does."""
        if self.name == "valgrind":
            listed = self.run("planted", "--valgrind")
            assert listed.returncode in {0, FOUND}, listed.stderr
            return dict.fromkeys(listed.stdout.split(), "found")
        if self.name == "plain":
            runs = {name: self.run("planted", name) for name in EXPECTED}
            assert {run.returncode for run in runs.values()} <= {0, 1}
            return {name: run.stdout.strip() for name, run in runs.items() if run.returncode == 1}
        runs = {name: self.run("planted", "--ignore", name) for name in EXPECTED}
        assert {run.returncode for run in runs.values()} <= {0, FOUND}
        return {name: "found" for name, run in runs.items() if run.returncode == FOUND}


def addresses_can_be_fixed() -> bool:
    return shutil.which("setarch") is not None and run(["setarch", "-R", "true"]).returncode == 0


@pytest.fixture(
    scope="module",
    params=[
        "plain",
        *(pytest.param(name, marks=pytest.mark.slow) for name in JOBS if name != "plain"),
    ],
)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    if sys.platform != "linux" or platform.machine() != "x86_64":
        pytest.skip("the emulator's fibers are written for x86-64 Linux")
    if shutil.which("g++") is None:
        pytest.skip("the emulator's tests need g++")
    if request.param == "valgrind" and not (
        shutil.which("valgrind") and Path("/usr/include/valgrind/memcheck.h").exists()
    ):
        pytest.skip("valgrind or its headers are not installed")
    return Built(request.param, tmp_path_factory.mktemp(request.param))


def test_kernels_without_bugs_pass(built: Built) -> None:
    result = built.run("selftest")
    assert result.returncode == 0, result.stdout + result.stderr


def test_each_job_finds_the_bugs_it_should(built: Built) -> None:
    expected = {name: jobs[built.name] for name, jobs in EXPECTED.items() if built.name in jobs}
    assert built.bugs_found() == expected


def test_every_planted_bug_is_in_the_table(built: Built) -> None:
    assert run([built.folder / "planted", "--list"]).stdout.split() == list(EXPECTED)


def test_every_bug_but_one_is_found() -> None:
    assert {name for name, jobs in EXPECTED.items() if not jobs} == FOUND_BY_NONE
