# SPDX-License-Identifier: Apache-2.0
"""Runs the kernels under sanitizers: python -m build_tools.sanitize [job ...], all jobs by default.

cpu-<isa>      the CPU's kernels: addresses and undefined behaviour
cuda-asan      the CUDA kernels on the emulator: the same
cuda-tsan      the CUDA kernels on the emulator: data races between threads
cuda-valgrind  the CUDA kernels on the emulator: reads of what nobody wrote
cuda-device    the CUDA kernels on a GPU, where it is named; compute-sanitizer takes its program
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from build_tools import modules, native, ninja_build, tools
from build_tools.processes import cores
from fastkd._backends import cpu_capabilities

ROOT = modules.ROOT
FOLDER = native.FOLDER  # what a job takes from a module compiles once
ASAN = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
TSAN = ("-fsanitize=thread",)
# -O1 takes 1.4 times as long to compile the emulated kernels, 2.8 times the CPU's, and saves little
# of a run: the emulator and the checks take most of it.
DEBUG = ("-Og", "-g1", "-w", f"-I{ROOT / 'csrc'}", "-pthread")
FAST = ("-O2",)  # for all but the kernels
KERNELS = ("csrc/cpu/", "csrc/cuda/")
DEVICE_JOB = "cuda-device"
# The emulator tells ThreadSanitizer itself what orders what: csrc/emulator/sanitizer.h.
UNSEEN_BY_TSAN = ("-fno-sanitize=thread", "-DFASTKD_TSAN")


@dataclass(frozen=True)
class Job:
    """A program to build and how to run it."""

    sources: tuple[str, ...]
    flags: tuple[str, ...]
    link_flags: tuple[str, ...] = ()
    compiler: tuple[str, ...] = ()  # none: the C++ compiler
    emulator_flags: tuple[str, ...] = ()  # for csrc/emulator besides
    kernels: modules.Module | None = None  # whose kernels are linked too, as they are
    runner: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()

    def flags_of(self, source: str) -> tuple[str, ...]:
        """What a source is compiled with."""
        as_they_are = self.compiler or source.startswith(KERNELS)
        flags = self.flags if as_they_are else (*self.flags, *FAST)
        return (*flags, *(self.emulator_flags if source.startswith("csrc/emulator/") else ()))


def jobs() -> dict[str, Job]:
    """All jobs that this machine can run."""
    programs = {
        f"cpu-{isa}": Job(
            modules.sources("csrc/tests/sanitize_cpu.cpp", "csrc/cpu/*.cpp"),
            (*modules.FLAGS, *modules.ISA_FLAGS[isa], *DEBUG, *ASAN),
            ASAN,
        )
        for isa in cpu_capabilities()
    }
    if modules.emulator_runs():
        return {**cuda_jobs(), **programs}  # those that run longest first
    return programs


def cuda_jobs() -> dict[str, Job]:
    """The jobs on the emulator."""
    sources = ("csrc/tests/sanitize_cuda.cpp", *modules.emulated_sources())
    common = (*modules.FLAGS, *modules.EMULATOR_FLAGS, *DEBUG)
    # These see csrc/emulator/sanitizer.h; valgrind gets the other objects of the emulator module.
    own = tuple(
        source for source in sources if source.startswith(("csrc/emulator/", "csrc/tests/"))
    )
    kernels = tuple(source for source in sources if source not in own)
    brief = ("brief",)
    return {
        "cuda-asan": Job(sources, (*common, *ASAN), ASAN),
        "cuda-valgrind": Job(
            own,
            (*common, "-DFASTKD_VALGRIND"),
            kernels=replace(modules.emulated_module(), kernels=kernels),
            runner=("valgrind", "--quiet", "--error-exitcode=9"),
            arguments=brief,
        ),
        "cuda-tsan": Job(
            sources,
            (*common, *TSAN),
            TSAN,
            emulator_flags=UNSEEN_BY_TSAN,
            arguments=brief,
            environment=(("TSAN_OPTIONS", "halt_on_error=1:atexit_sleep_ms=0"),),
        ),
    }


def device_job() -> Job:
    """The job on a GPU, whose program needs nvcc only."""
    nvcc = tuple(tools.find_nvcc())
    module = modules.cuda_module(nvcc)
    kernels = tuple(source for source in module.kernels if source != "csrc/cuda/device_problem.cu")
    flags = (*modules.nvcc_flags(module), "-DFASTKD_ON_DEVICE")
    return Job(
        ("csrc/tests/sanitize_device.cu",),
        flags,
        module.link_flags,
        nvcc,
        kernels=replace(module, kernels=kernels),
    )


def main() -> int:
    """Build and run the jobs, one line each."""
    parser = argparse.ArgumentParser(
        prog="dev.py sanitize", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    available = jobs()
    parser.add_argument("jobs", nargs="*", help=f"of {', '.join([*available, DEVICE_JOB])}")
    parser.add_argument("--build-only", action="store_true", help="run nothing")
    parser.add_argument("--all", action="store_true", help="cuda-asan in all orders of threads")
    given = parser.parse_args()
    wanted = given.jobs or list(available)
    if DEVICE_JOB in wanted:
        if why_not := tools.why_not_cuda():
            parser.error(f"no {DEVICE_JOB}: {why_not}")
        available[DEVICE_JOB] = device_job()
    unknown = sorted(set(wanted) - set(available))
    if unknown:
        parser.error(f"no {', '.join(unknown)}; there is {', '.join(available)}")
    if given.all and "cuda-asan" in available:
        available["cuda-asan"] = replace(available["cuda-asan"], arguments=("all",))
    FOLDER.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    programs = programs_file({name: available[name] for name in wanted})
    if not ninja_build.run(FOLDER, "sanitize.ninja", str(programs)):
        raise SystemExit("the sanitizer build failed, see above")
    print(f"built {len(wanted)} programs ({time.monotonic() - start:.0f} s)", flush=True)
    if given.build_only:
        return 0
    with ThreadPoolExecutor(cores()) as pool:  # the programs run on one core each
        passed = pool.map(passes, wanted, [available[name] for name in wanted])
        failed = [name for name, good in zip(wanted, passed, strict=True) if not good]
    print(f"sanitizers complain on {', '.join(failed) or 'nothing'}")
    return 1 if failed else 0


def programs_file(wanted: Mapping[str, Job]) -> ninja_build.NinjaFile:
    """The build of all programs, so that no core waits while one of them compiles its last file."""
    usual = tools.find_compiler()
    build = ninja_build.NinjaFile()
    for name, job in wanted.items():
        compiler = job.compiler or usual
        threads = () if job.compiler else ("-pthread",)
        objects = [
            build.compile(name, source, compiler, job.flags_of(source)) for source in job.sources
        ]
        objects += build.kernels(job.kernels, usual) if job.kernels else []
        build.link(program(name), objects, [*compiler, *job.link_flags, *threads])
    return build


def program(name: str) -> Path:
    """The program of a job."""
    return FOLDER / name / "program"


def passes(name: str, job: Job) -> bool:
    """Run one job and say how it went."""
    if job.runner and not shutil.which(job.runner[0]):
        print(f"{name:<14} FAILED: {job.runner[0]} is not installed")
        return False
    start = time.monotonic()
    done = subprocess.run(
        [*job.runner, program(name), *job.arguments],
        env={**os.environ, **dict(job.environment)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    seconds = f"{time.monotonic() - start:.0f} s"
    last = (done.stdout.splitlines() or ["no output"])[-1]
    print(f"{name:<14} {'FAILED' if done.returncode else 'ok'} ({seconds}) {last}", flush=True)
    if done.returncode:
        print(done.stdout)
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
