# SPDX-License-Identifier: Apache-2.0
"""Plants known faults, one at a time, and says what finds them.

python -m build_tools.mutants [number ...], all faults of tests/planted_faults.toml by default. Each
goes into a copy of the tree, one module is compiled again, and the quick suite runs up to the first
failure. If the quick suite passes, all tests run. The exit status is 1 if the quick suite does not
find a fault, unless only sanitizers can see the fault.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from build_tools.faults import FAULTS, ROOT, Fault, read_faults
from build_tools.processes import cores
from fastkd._backends import cpu_capabilities

TABLE = ROOT / "docs" / "planted-faults.md"
WORK = ROOT / "build" / "mutants"
# The copy, how it is without a fault, and what was found.
TREE, CLEAN, RESULTS = WORK / "tree", WORK / "clean", WORK / "results.json"
SOURCES = ("build_tools/", "csrc/", "fastkd/", "tests/", "pyproject.toml", "setup.py")

ENVIRONMENT = {
    "FASTKD_REQUIRE_NATIVE": "1",
    "OMP_WAIT_POLICY": "PASSIVE",  # a process a core: its threads should not spin
    "PYTHONPATH": str(TREE),
    # What was compiled before a fault was planted must not serve after it.
    "PYTHONDONTWRITEBYTECODE": "1",
    "TORCHINDUCTOR_FX_GRAPH_CACHE": "0",
    "TORCHINDUCTOR_AUTOGRAD_CACHE": "0",
}
BUILD = {  # as dev.py builds for the tests
    **ENVIRONMENT,
    "FASTKD_NATIVE": "1",
    "FASTKD_CUDA": "0",
    "FASTKD_EMULATOR": "1",
    "FASTKD_CPU_ISAS": "runnable",
}
OPTIONS = {
    "--resume": "leave out what was tried before, on the same sources",
    "--sanitizers": "run the sanitizer jobs that a fault names, too",
    "--write": "write docs/planted-faults.md, when all results are there",
}
HEAD = """\
# Planted faults

`python3 dev.py mutants` plants these faults in a copy of the tree, one at a time, and runs the
quick suite (`dev.py test`) up to the first failure. If the quick suite passes, all tests run
(`dev.py test --all`). A fault in C++ is compiled into one build of the kernels. The other builds
stay correct. The code of each fault is in
[tests/planted_faults.toml](../tests/planted_faults.toml). The seconds are those of a run up to its
first failure, beside other work on the machine. The last column has the jobs of `dev.py sanitize`
that were tried. `dev.py mutants --sanitizers --write` writes this page.

The quick suite finds {found} of {count}.

| # | fault | what a user would see | file | quick suite | all tests | sanitizers |
|---|---|---|---|---|---|---|
"""
FAILED = re.compile(r"^(?:FAILED|ERROR|ImportError while loading) (\S+)", re.MULTILINE)
CRASHED = re.compile(r"crashed while running '(\S+)'|^(Fatal Python error.*)$", re.MULTILINE)


class Run(NamedTuple):
    """How a run of the tests, or a build, ended."""

    how: str  # passed, failed, crashed, hung, does not compile
    by: str  # the first test that failed
    seconds: int

    def __str__(self) -> str:
        test = self.by.removeprefix("tests/").partition("[")[0]
        words = {"passed": "**not found**", "failed": test}.get(self.how, f"{self.how} {test}")
        return words.strip() + (f" ({self.seconds} s)" if self.seconds else "")


class Result(NamedTuple):
    """What is known of a fault."""

    quick: Run
    every: Run | None  # of all tests, where the quick suite passes
    sanitizers: dict[str, bool]  # which of those that ran complain

    def is_bad(self, fault: Fault) -> bool:
        """Whether the quick suite should have found it."""
        if self.every is None:
            return self.quick.how == "does not compile"
        left = [job for job in fault.sanitizers if self.sanitizers.get(job, True)]
        return self.every.how != "passed" or not left

    def cells(self) -> tuple[str, str, str]:
        """What the quick suite, all tests, and sanitizers find."""
        jobs = ", ".join(f"{'' if sees else 'not '}{job}" for job, sees in self.sanitizers.items())
        return str(self.quick), "" if self.every is None else str(self.every), jobs


def main() -> int:
    """Try the faults, a line each."""
    parser = argparse.ArgumentParser(
        prog="dev.py mutants", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("numbers", nargs="*", type=int, metavar="number")
    for option, what in OPTIONS.items():
        parser.add_argument(option, action="store_true", help=what)
    given = parser.parse_args()
    faults = read_faults()
    for number in set(given.numbers) - {fault.number for fault in faults}:
        parser.error(f"there is no fault {number}, they are 1 to {len(faults)}")
    problems = [problem for fault in faults if (problem := fault.problem())]
    if problems:
        raise SystemExit("\n".join(problems))
    names = files()
    sources = hashed(names)
    known = results(sources)
    chosen = [fault for fault in faults if not given.numbers or fault.number in given.numbers]
    done = {
        fault
        for fault in chosen
        if fault.key in known
        and (not given.sanitizers or known[fault.key].sanitizers.keys() == set(fault.sanitizers))
    }
    left = [fault for fault in chosen if not (given.resume and fault in done)]
    if left:
        tests = Tests(
            names, {job for fault in left for job in fault.sanitizers if given.sanitizers}
        )
        for fault in left:
            known[fault.key] = result = tests.look_for(fault, given.sanitizers)
            RESULTS.write_text(json.dumps([sources, known], indent=1))
            cells = "; ".join(filter(None, result.cells()))
            print(f"{fault.number:>2} {fault.name}: {cells}", flush=True)
    tried = {fault: known[fault.key] for fault in faults if fault.key in known}
    if given.write:
        if len(tried) < len(faults):
            raise SystemExit(f"--write: {len(tried)} of {len(faults)} faults are tried (--resume)")
        TABLE.write_text(table(tried))
    bad = [fault.number for fault in chosen if tried[fault].is_bad(fault)]
    if bad:
        print(f"not found by the quick suite: {', '.join(map(str, bad))}")
    return 1 if bad else 0


def files() -> list[str]:
    """What git tracks, or would."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    if listed.returncode:
        raise SystemExit(f"faults are planted in a git checkout: {listed.stderr.strip()}")
    return sorted({name for name in listed.stdout.split("\0") if (ROOT / name).is_file()})


def hashed(names: Iterable[str]) -> str:
    """A hash of the sources that a result depends on."""
    content = hashlib.sha256()
    for name in names:
        if name.startswith(SOURCES) and name != FAULTS:
            content.update(name.encode() + (ROOT / name).read_bytes())
    return content.hexdigest()


def results(sources: str) -> dict[str, Result]:
    """What earlier runs have found in the same sources."""
    of_earlier, earlier = json.loads(RESULTS.read_text()) if RESULTS.exists() else ("", {})
    if of_earlier != sources:
        return {}
    return {
        key: Result(Run(*quick), every and Run(*every), sanitizers)
        for key, (quick, every, sanitizers) in earlier.items()
    }


class Tests:
    """The copy of the tree, built and green, in which faults are planted."""

    def __init__(self, names: Iterable[str], sanitizers: Iterable[str]) -> None:
        copy(names)
        print("building a copy of the tree: minutes, the first time", flush=True)
        if run("build", [sys.executable, "-m", "build_tools.native"], environment=BUILD)[0]:
            raise SystemExit(f"it does not compile, see {WORK / 'build.log'}")
        for job in sorted(sanitizers):  # with a fault, only what it touches is compiled again
            if complains(job, "no-fault"):
                raise SystemExit(f"{job} complains without a fault, see {WORK}/no-fault-{job}.log")
        shutil.rmtree(CLEAN, ignore_errors=True)
        shutil.copytree(TREE, CLEAN)
        self.seconds: dict[str, int] = {}  # of a suite without a fault
        self.pass_without_fault("quick")

    def look_for(self, fault: Fault, with_sanitizers: bool) -> Result:
        """Plant a fault, and see who finds it."""
        self.restore()
        place = TREE / fault.file
        place.write_text(place.read_text().replace(fault.code, fault.fault))
        if fault.module:
            module = f"_cpu_{cpu_capabilities()[0]}" if fault.module == "cpu" else "_cuda_emulated"
            (target,) = TREE.glob(f"fastkd/{module}.*.so")
            ninja = [sys.executable, "-m", "ninja", "-C", "build/native", str(target)]
            if run(f"{fault.number}-build", ninja)[0]:
                return Result(Run("does not compile", "", 0), None, {})
        quick = self.run_suite("quick", str(fault.number))
        every = self.run_suite("all", str(fault.number)) if quick.how == "passed" else None
        jobs = fault.sanitizers if with_sanitizers else ()
        sees = {job: complains(job, str(fault.number)) for job in jobs}
        if every and every.how != "passed" and "all" not in self.seconds:
            self.pass_without_fault("all")  # so that it was the fault that failed
        return Result(quick, every, sees)

    def restore(self) -> None:
        """Take a fault out, and all that was built with it."""
        shutil.rmtree(TREE)
        shutil.copytree(CLEAN, TREE)

    def pass_without_fault(self, suite: str) -> None:
        """Run a suite without a fault, and stop if it fails."""
        self.restore()
        found = self.run_suite(suite, "no-fault")
        told = f"{found.how} {found.by} ({found.seconds} s)"
        print(f"without a fault, {suite} tests: {told}", flush=True)
        if found.how != "passed":
            raise SystemExit(f"the {suite} tests must pass without a fault")
        self.seconds[suite] = found.seconds

    def run_suite(self, suite: str, name: str) -> Run:
        """Run the quick suite, or all, up to the first failure."""
        # test_mutants.py would find every fault: it wants the code that has been replaced.
        options = ["-q", "-p", "no:cacheprovider", "--maxfail=1", "--ignore=tests/test_mutants.py"]
        options += ["-n", str(cores()), *(["--all"] if suite == "all" else [])]
        # All tests took 491 s where the quick suite took 208 s.
        patience = (15 if suite == "all" else 5) * self.seconds.get("quick", 0) + 300
        limit = patience if self.seconds else None
        start = time.monotonic()
        status, output = run(f"{name}-{suite}", [sys.executable, "-m", "pytest", *options], limit)
        seconds = round(time.monotonic() - start)
        if status == 0:
            return Run("passed", "", seconds)
        if status is None:
            return Run("hung", "", seconds)
        if crash := CRASHED.search(output):
            return Run("crashed", crash[1] or crash[2], seconds)
        if failure := FAILED.search(output):
            return Run("failed", failure[1], seconds)
        raise SystemExit(f"pytest ends with {status}, no test failed: {WORK / name}-{suite}.log")


def complains(job: str, name: str) -> bool:
    """Whether a sanitizer job reports the fault; "cpu" is that of the best instruction set."""
    wanted = f"cpu-{cpu_capabilities()[0]}" if job == "cpu" else job
    status, output = run(f"{name}-{job}", [sys.executable, "-m", "build_tools.sanitize", wanted])
    if status and f"sanitizers complain on {wanted}" not in output:
        raise SystemExit(f"{job} does not run, see {WORK / name}-{job}.log")
    return status != 0


def copy(names: Iterable[str]) -> None:
    """Make the copy like the tree; what did not change keeps its time, for ninja."""
    if CLEAN.exists():  # the copy may hold a fault, of a run that was stopped
        shutil.rmtree(TREE, ignore_errors=True)
        CLEAN.rename(TREE)
    wanted = {TREE / name: ROOT / name for name in names}
    for there in [path for path in TREE.rglob("*") if path.is_file()]:
        built = there.suffix == ".so" or there.is_relative_to(TREE / "build")
        if not built and there not in wanted:
            there.unlink()
    for there, source in wanted.items():
        if not there.exists() or there.read_bytes() != source.read_bytes():
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, there)


def run(
    name: str,
    command: Sequence[str],
    limit: float | None = None,
    environment: Mapping[str, str] = ENVIRONMENT,
) -> tuple[int | None, str]:
    """Exit status, None where it took too long, and output of a command in the copy."""
    log = WORK / f"{name}.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            command, cwd=TREE, env={**os.environ, **environment},
            stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            status: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # the tests' processes too
                process.wait()
    return status, log.read_text(errors="replace")


def table(tried: dict[Fault, Result]) -> str:
    """docs/planted-faults.md."""
    found = sum(result.quick.by != "" or result.quick.how == "hung" for result in tried.values())
    rows = (
        (str(fault.number), fault.name, fault.seen, fault.file, *result.cells())
        for fault, result in tried.items()
    )
    lines = "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
    return HEAD.format(found=found, count=len(tried)) + lines + "\n"


if __name__ == "__main__":
    sys.exit(main())
