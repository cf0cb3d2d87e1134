# SPDX-License-Identifier: Apache-2.0
"""The stages of gpu-check, in the order in which they are worth most. Standard library only.

A stage is a generator of groups of steps. The steps of a group run side by side, and the generator
is sent how they ended.
"""

import os
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.commands import Outcome, Step
from benchmarks.gpu_facts import find_nvcc
from benchmarks.gpu_run import PYTHON, Run
from benchmarks.gpu_tests import records
from benchmarks.gpu_tools import (
    ALL_METRICS,
    DRAM_METRICS,
    SANITIZER_ENVIRONMENT,
    SANITIZERS,
    find_tool,
    has_profile,
    ncu_command,
    sanitizer_command,
)

TEST_STAGES = ("values", "tests", "streams")
SILENCE_SECONDS = 60.0  # of programs that name what they do: then a kernel hangs
HUNG, LOST = 137, 3  # exit statuses: killed after a silence; the device faulted
LAST_ROW_SECONDS = {"fastkd": 4.0, "eager": 8.0, "torch.compile": 20.0}  # that began in time
MOST_PARTS = 8  # processes of tests: each has a context, half a gigabyte of the GPU's memory
DRY_PARTS = 2  # of them that run in a dry run
MOST_COMPILERS = 4  # processes of torch.compile: each holds the tensors of a row
PROFILED_ROWS = 5
LEAST_PROFILED_BYTES = 1 << 24  # of a row: below, the launch sets the time and not the memory
HAS_KERNELS = """
import sys, fastkd
info = fastkd.info()
problems = {name: why for name, why in info["failures"].items() if name.startswith("cuda")}
print("fastkd", info["version"], "has CUDA code for", info["cuda"], problems or "")
sys.exit(1 if info["cuda"] is None or problems else 0)
"""

Steps = Generator[Sequence[Step], list[Outcome], None]


@dataclass(frozen=True)
class Stage:
    """Some seconds of work: its share of what is left, in proportion to the stages behind it."""

    name: str
    seconds: float
    steps: Callable[[Run, float], Steps]  # the second: when the stage must end, by time.monotonic()


def build(run: Run, _end: float) -> Steps:
    """Compile for this chip in place, or take the wheel; see that the kernels load."""
    look = [PYTHON, "-c", HAS_KERNELS]
    if run.dry_run:
        look = [PYTHON, "-c", "import fastkd; print('dry run: nothing is built', fastkd.info())"]
    settings = {"FASTKD_NATIVE": "1", "FASTKD_CUDA": "1", "FASTKD_CPU_ISAS": "native"}
    settings["FASTKD_CUDA_ARCHS"] = str(run.machine["capability"])
    compiles = run.package is None and not run.dry_run
    commands = [[PYTHON, "-m", "build_tools.native"]] if compiles else []
    done = yield [run.step("build", *commands, look, environment=settings if compiles else {})]
    if done[0].ok and not run.dry_run:  # not beside the build: both want every core
        run.program.start(run.logs, run.machine["capability"], run.cores - 2)


def wrappers(run: Run, _end: float) -> Steps:
    """Compile the smoke test of device.h as the kernels are compiled, and run it."""
    nvcc, program = find_nvcc(), str((run.logs / "ptx_wrappers").resolve())
    obstacle = "" if nvcc else "there is no nvcc"
    commands = []
    if nvcc:
        from build_tools import modules  # noqa: PLC0415 - not there away from the source tree

        source = [f"-arch=sm_{run.machine['capability']}", "-I", "csrc"]
        source += ["csrc/tests/ptx_wrappers.cu", "-o", program]
        commands = [[*nvcc, *modules.NVCC_FLAGS, *source], *([] if run.dry_run else [[program]])]
    yield [Step("wrappers", tuple(commands), float("inf"), obstacle=obstacle)]


def values(run: Run, _end: float) -> Steps:
    """A small and a large call of every kernel in every type."""
    yield list(tests(run, "values", "tests/test_cuda_device_kernels.py", split=True))


def long_tests(run: Run, _end: float) -> Steps:
    """Every option, type, layout and shape."""
    yield list(tests(run, "tests", "tests/test_cuda_device.py", split=True))


def streams(run: Run, _end: float) -> Steps:
    """Streams, graphs, torch.compile, memory, several GPUs."""
    files = ("tests/test_cuda_device_paths.py", "tests/test_cuda_device_graphs.py")
    yield [
        step
        for file in files
        for step in tests(run, f"streams {Path(file).stem.rpartition('_')[2]}", file, split=False)
    ]


def tests(run: Run, name: str, file: str, *, split: bool) -> Iterator[Step]:
    """A file of tests in processes that go on behind a fault or a hang; in a dry run some of it."""
    # These tests need neither the environment's plugins nor the settings for the other tests, and a
    # warning of torch's own must not hide what the GPU does.
    options = ["-c", os.devnull, "--rootdir", str(run.tree), "--import-mode=importlib"]
    options += ["-v", "-rfE", "--tb=short", "-p", "no:cacheprovider", "-W", "default"]
    options += ["-p", "benchmarks.gpu_tests"]
    parts = MOST_PARTS if run.dry_run else min(run.cores // 2, MOST_PARTS)
    parts = parts if split else 1
    for part in range(1, min(parts, DRY_PARTS if run.dry_run else parts) + 1):
        words = name if parts == 1 else f"{name} {part}"
        journal = journal_of(run, words)
        command = [PYTHON, "-m", "pytest", file, "--journal", str(journal), *options]
        yield run.step(
            words,
            [*command, "--part", f"{part}/{parts}"],
            environment={"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
            silence=SILENCE_SECONDS,
            restart_on=goes_on,
        )


def journal_of(run: Run, step_name: str) -> Path:
    """Where the tests of a step are kept."""
    return (run.logs / f"{step_name.replace(' ', '-')}.jsonl").resolve()


def goes_on(code: int) -> bool:
    """Whether a process ended by a hang or a fault, and another is to go on behind it."""
    return code in (HUNG, LOST) or code < 0  # by a signal


def bench(run: Run, end: float) -> Steps:
    """fastkd alone over all rows."""
    yield [bench_step(run, "bench", end, run.rows, "fastkd")]


def peers(run: Run, end: float) -> Steps:
    """Other code beside it: first what needs no compiler."""
    begin, rows = time.monotonic(), "kd_loss-t4" if run.dry_run else run.rows
    first = begin + (end - begin) * 0.35
    yield [bench_step(run, "peers", first, rows, "fastkd", "eager", "liger")]
    # Compilers beside a measurement would disturb it: they have a time of their own.
    middle = time.monotonic() + (end - time.monotonic()) * 0.5
    count = 1 if run.dry_run else max(1, min(run.cores // 2, MOST_COMPILERS))
    until = f"{time.time() + middle - time.monotonic() - 5:.0f}"
    yield [
        run.step(
            f"peers compile {part + 1}",
            run.module(
                "gpu_compile", "--until", until, "--part", str(part), str(count), "--rows", rows
            ),
            seconds=middle - time.monotonic(),
            environment=compiling(run),
        )
        for part in range(count)
    ]
    yield [bench_step(run, "peers compiled", end, rows, "fastkd", "torch.compile")]


def compiling(run: Run) -> dict[str, str]:
    """The cache that the processes share."""
    cache = {"TORCHINDUCTOR_CACHE_DIR": str((run.output / "work" / "inductor").resolve())}
    # A CPU's compiler takes ten seconds for a row: in a dry run its turn passes without it.
    return cache | ({"TORCH_COMPILE_DISABLE": "1"} if run.dry_run else {})


def bench_step(run: Run, name: str, end: float, rows: str, *providers: str) -> Step:
    """Some providers of the table."""
    last = LAST_ROW_SECONDS[providers[-1] if providers[-1] in LAST_ROW_SECONDS else "eager"]
    left = end - time.monotonic()
    return run.step(
        name,
        run.module(
            "gpu_bench", "--resume", "--journal", str((run.logs / "bench.jsonl").resolve()),
            "--until", f"{time.time() + left - min(last, left / 3):.0f}", "--rows", rows,
            "--output", str(run.output.resolve()), "--providers", ",".join(providers),
        ),
        seconds=left,
        environment=compiling(run),
        silence=SILENCE_SECONDS,
        restart_on=goes_on,
    )  # fmt: skip


def ncu(run: Run, _end: float) -> Steps:
    """Counters of the rows that are furthest from a copy's rate, one process each."""
    tool = find_tool("ncu")
    obstacle = "" if tool or run.dry_run else "there is no ncu"
    rows = furthest_rows(run)[: 1 if run.dry_run else PROFILED_ROWS]
    metrics: Sequence[str] = ALL_METRICS
    if not rows:
        obstacle = obstacle or "the benchmark has no rows"
        yield [run.step("ncu", obstacle=obstacle)]
    for place, row in enumerate(rows, 1):
        program = run.module("gpu_calls", "profile", row)

        def command(counters: Sequence[str], program: Sequence[str] = program) -> Sequence[str]:
            return program if run.dry_run else ncu_command(tool or "ncu", program, counters)

        done = yield [run.step(f"ncu {place}", command(metrics), seconds=60, obstacle=obstacle)]
        if has_profile(done[0].output) or obstacle or run.dry_run:
            continue
        if metrics is DRAM_METRICS:  # then it is not permitted
            return
        metrics = DRAM_METRICS  # perhaps it does not know a counter
        done = yield [run.step(f"ncu {place} bytes only", command(metrics), seconds=60)]
        if not has_profile(done[0].output):
            return


def furthest_rows(run: Run) -> list[str]:
    """Names of rows whose time is set by bytes and whose rate is least."""
    least = 0 if run.dry_run else LEAST_PROFILED_BYTES
    rates = {}
    for record in records(run.logs / "bench.jsonl"):
        row = record.get("row")
        if row is None or not record["kernel"]:
            continue
        ours = row["providers"].get("fastkd")
        if ours and not row["work_count"] and row["floor"] is None and row["ideal_bytes"] >= least:
            rates[record["job"]] = row["ideal_bytes"] / ours["median"]
    return sorted(rates, key=lambda name: rates[name])


def sanitizers(run: Run, end: float) -> Steps:
    """The tools of compute-sanitizer: on the torch-free program, or on tiny calls from Python."""
    tool = find_tool("compute-sanitizer")
    obstacle = "" if tool or run.dry_run else "there is no compute-sanitizer"
    program = None
    if not obstacle and not run.dry_run:
        program = run.program.wait(time.monotonic() + (end - time.monotonic()) / 3)
    what = [str(program)] if program else run.module("gpu_calls", "small")
    yield [
        run.step(
            f"sanitizers {name} of {'the program' if program else 'calls from Python'}",
            what if run.dry_run else sanitizer_command(name, tool or "", what),
            environment=SANITIZER_ENVIRONMENT,
            obstacle=obstacle,
        )
        for name in (SANITIZERS[:1] if run.dry_run else SANITIZERS)
    ]


STAGES = (
    Stage("build", 130, build),
    Stage("wrappers", 20, wrappers),
    Stage("values", 60, values),
    Stage("bench", 85, bench),
    Stage("ncu", 60, ncu),
    Stage("peers", 110, peers),
    Stage("tests", 80, long_tests),
    Stage("streams", 30, streams),
    Stage("sanitizers", 55, sanitizers),
)
