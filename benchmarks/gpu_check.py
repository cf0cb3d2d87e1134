# SPDX-License-Identifier: Apache-2.0
"""Everything that only a GPU can tell, in one command: `python3 dev.py gpu-check`.

    facts       the GPU and the versions
    build       fastkd in place, with CUDA code for this chip only
    wrappers    device.h's inline assembly, one by one (csrc/tests/ptx_wrappers.cu)
    tests       those marked cuda, and beside them the tools of compute-sanitizer on tiny calls
    bench       the ceilings of a copy, the table beside eager PyTorch, torch.compile and peers
    ncu         DRAM bytes per element, and how busy the chip is

Each step has a time limit and none stops the next. No network is used. The last lines of the
output hold all that matters; the whole output of each step is in its log. Standard library only:
the steps are processes of their own, and a kernel that faults takes only its step with it.
"""

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import ROOT
from benchmarks.command_line import exit_with
from benchmarks.commands import Outcome, Step, run_steps
from benchmarks.gpu_facts import find_nvcc, slug
from benchmarks.gpu_summary import print_summary, status
from benchmarks.gpu_tools import (
    ALL_METRICS,
    DRAM_METRICS,
    SANITIZER_ENVIRONMENT,
    SANITIZERS,
    ncu_command,
    sanitizer_command,
)

TOTAL_SECONDS = 540.0
NCU_SECONDS = 45.0  # kept for the last step
LATE_SECONDS = 25.0  # what a row of the benchmark that began in time may take
SILENCE_SECONDS = 60.0  # of the benchmark, which names what it does: then a kernel hangs
HUNG, LOST = 137, 3  # exit statuses of a benchmark that is to go on behind the row
NAMES = ("build", "wrappers", "tests", "sanitizers", "bench", "ncu")
PYTHON = sys.executable
STRICT = {"FASTKD_REQUIRE_NATIVE": "1", "PYTHONUNBUFFERED": "1"}
HAS_CUDA_MODULE = """
import sys, fastkd
info = fastkd.info()
problems = {name: why for name, why in info["failures"].items() if name.startswith("cuda")}
print("fastkd", info["version"], "has CUDA code for", info["cuda"], problems or "")
sys.exit(1 if info["cuda"] is None or problems else 0)
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; exit status 1 if there is no GPU or a step failed."""
    options = _parser().parse_args(arguments)
    begin = time.time()
    deadline = time.monotonic() + options.seconds
    ask = Step("facts", ((PYTHON, "-m", "benchmarks.gpu_facts"),), 60)
    outcomes = run_steps([ask], options.logs, deadline)
    machine = read_facts(outcomes[0])
    if "problem" in machine:
        print(f"gpu-check: {machine['problem']}: there is nothing to check")
        return 1
    print(json.dumps(machine), flush=True)
    for steps in stages(machine, options, deadline, outcomes):
        wanted = [step for step in steps if step.name.partition(" ")[0] in options.only]
        print("".join(f"gpu-check: {step.name} ...\n" for step in wanted), end="", flush=True)
        done = run_steps(wanted, options.logs, deadline) if wanted else []
        for outcome in done:
            print(f"gpu-check: {outcome.step.name}: {status(outcome)}", flush=True)
        outcomes += done
    results = options.output / f"{slug(machine['gpu'])}.json"
    print_summary(machine, outcomes, results, begin)
    return 1 if any(outcome.bad for outcome in outcomes) else 0


def stages(
    machine: dict[str, Any], options: argparse.Namespace, deadline: float, done: list[Outcome]
) -> Iterator[list[Step]]:
    """Steps that may run side by side, stage after stage; `done` grows meanwhile."""
    yield [build_step(machine["capability"])]
    yield [wrappers_step(machine["capability"], options.logs)]
    yield [*test_steps(), *sanitizer_steps()]
    yield [bench_step(options, deadline - time.monotonic())]
    yield [ncu_step("ncu", ALL_METRICS)]
    if done[-1].step.name == "ncu" and done[-1].code:  # perhaps it does not know a counter
        yield [ncu_step("ncu bytes only", DRAM_METRICS)]


def read_facts(outcome: Outcome) -> dict[str, Any]:
    """What the machine is; a "problem" where it can't be told."""
    for line in reversed(outcome.output.splitlines()):
        if line.startswith("{"):
            facts: dict[str, Any] = json.loads(line)
            return facts
    return {"problem": f"the facts step {outcome.words}: {outcome.output.strip()[-300:]}"}


def build_step(capability: int) -> Step:
    """Build in place for one chip, with what is installed, and see that the kernels load."""
    install = [PYTHON, "-m", "pip", "install", "--disable-pip-version-check", "--no-index"]
    install += ["--no-deps", "--no-build-isolation", "--editable", "."]
    settings = {"FASTKD_NATIVE": "1", "FASTKD_CUDA": "1", "FASTKD_CUDA_ARCHS": str(capability)}
    return Step("build", (install, [PYTHON, "-c", HAS_CUDA_MODULE]), 150, settings | STRICT)


def wrappers_step(capability: int, folder: Path) -> Step:
    """Compile the smoke test of device.h as the kernels are compiled, and run it."""
    from build_tools import modules  # noqa: PLC0415 - not there away from the source tree

    nvcc = find_nvcc()
    program = str((folder / "ptx_wrappers").resolve())
    source = [f"-arch=sm_{capability}", "-I", "csrc", "csrc/tests/ptx_wrappers.cu", "-o", program]
    compile_it = [*nvcc, *modules.NVCC_FLAGS, *source]
    obstacle = "" if nvcc else "there is no nvcc"
    return Step("wrappers", (compile_it, [program]), 60, obstacle=obstacle)


def test_steps() -> list[Step]:
    """A process for each file of GPU tests: a fault or a hang ends one of them only."""
    files = sorted(ROOT.glob("tests/test_cuda_device*.py"))
    # These tests need neither the environment's plugins nor the settings for the other tests, and a
    # warning of torch's own must not hide what the GPU does.
    settings = {**STRICT, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    options = ["-c", os.devnull, "--rootdir", str(ROOT), "--import-mode=importlib", "-m", "cuda"]
    options += ["-v", "-rfE", "--tb=short", "--maxfail=30", "-p", "no:cacheprovider"]
    options += ["-W", "default"]
    return [
        Step(
            f"tests {path.stem.removeprefix('test_cuda_')}",
            ([PYTHON, "-m", "pytest", str(path.relative_to(ROOT)), *options],),
            140,
            settings,
        )
        for path in files
    ]


def sanitizer_steps() -> list[Step]:
    """The tools of compute-sanitizer, where they are installed."""
    tool = find_tool("compute-sanitizer")
    return [
        Step(
            f"sanitizers {name}",
            (sanitizer_command(name, tool or "compute-sanitizer", PYTHON),),
            140,
            {**STRICT, **SANITIZER_ENVIRONMENT},
            obstacle="" if tool else "there is no compute-sanitizer",
        )
        for name in SANITIZERS
    ]


def bench_step(options: argparse.Namespace, left: float) -> Step:
    """The table, within the time that is left but for the last step."""
    seconds = left - NCU_SECONDS
    journal = options.logs / "bench.jsonl"
    journal.unlink(missing_ok=True)
    command = [PYTHON, "-m", "benchmarks.gpu_bench", "--resume", "--journal", str(journal)]
    command += ["--until", f"{time.time() + seconds - LATE_SECONDS:.0f}"]
    command += ["--rows", options.rows, "--output", str(options.output)]
    return Step(
        "bench",
        (command,),
        seconds,
        STRICT,
        silence=SILENCE_SECONDS,
        restart_on=lambda code: code in (HUNG, LOST),
    )


def ncu_step(name: str, metrics: Sequence[str]) -> Step:
    """Counters of three kernels, where ncu is installed."""
    tool = find_tool("ncu")
    obstacle = "" if tool else "there is no ncu"
    return Step(name, (ncu_command(tool or "ncu", PYTHON, metrics),), 60, STRICT, obstacle=obstacle)


def find_tool(name: str) -> str | None:
    """A tool of the CUDA toolkit: on the path, beside nvcc, in the usual places."""
    folders = [os.environ.get("CUDA_HOME", "") + "/bin", "/usr/local/cuda/bin"]
    if nvcc := find_nvcc():
        folders.append(str(Path(shutil.which(nvcc[0]) or nvcc[0]).resolve().parent))
    places = [str(path) for path in Path("/opt/nvidia/nsight-compute").glob("*")]
    found = (shutil.which(name, path=folder) for folder in (*folders, *sorted(places)[::-1]))
    return shutil.which(name) or next((path for path in found if path), None)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dev.py gpu-check", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--only",
        type=_names,
        default=NAMES,
        metavar="A[,B]",
        help=f"steps, of {','.join(NAMES)} (default: all)",
    )
    parser.add_argument("--rows", default="", metavar="TEXT", help="of the benchmark's rows")
    parser.add_argument("--seconds", type=float, default=TOTAL_SECONDS, help="for all together")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "benchmarks" / "results", metavar="DIR"
    )
    parser.add_argument("--logs", type=Path, default=ROOT / "build" / "gpu-check", metavar="DIR")
    return parser


def _names(text: str) -> tuple[str, ...]:
    unknown = sorted(set(text.split(",")) - set(NAMES))
    if unknown:
        raise argparse.ArgumentTypeError(f"must be among {', '.join(NAMES)}, got {unknown}")
    return tuple(text.split(","))


if __name__ == "__main__":
    exit_with(main)
