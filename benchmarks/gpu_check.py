# SPDX-License-Identifier: Apache-2.0
"""Everything that only a GPU can tell, in one command: `python3 dev.py gpu-check`.

    facts       the GPU and the versions
    build       fastkd in place, with CUDA code for this chip only; or --wheel, which is unpacked
    wrappers    device.h's inline assembly, one by one (csrc/tests/ptx_wrappers.cu)
    values      a small and a large call of every kernel and type, all losses, against float64
    bench       fastkd alone over all rows, beside a copy's rate
    ncu         DRAM traffic of the rows furthest from that rate, and how busy the chip is
    peers       eager PyTorch and liger-kernel beside fastkd, then torch.compile
    tests       the long list of tests
    streams     streams, graphs, several GPUs
    sanitizers  compute-sanitizer on a torch-free program, or on tiny calls from Python

What tells most comes first, and every stage prints its table and saves it as it ends, so that a run
may be cut off at any time. None stops the next. Nothing is installed and no network is used.
Standard library only: the steps are processes of their own, and a kernel that faults takes only
its step with it.
"""

import argparse
import json
import shutil
import signal
import sys
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import ROOT
from benchmarks.command_line import exit_with
from benchmarks.commands import Outcome, Step, commit, last_line, run_steps
from benchmarks.gpu_run import PYTHON, Run
from benchmarks.gpu_stages import STAGES, Stage
from benchmarks.gpu_summary import checks, heading, section
from benchmarks.gpu_wheel import unpack, why_not

TOTAL_SECONDS = 540.0
LAST_SECONDS = 12.0  # kept for the picture and the files
RECORDED = ROOT / "benchmarks" / "results"
NAMES = tuple(stage.name for stage in STAGES)
NO_WHEEL = "gpu-check: {} does not run here: {}"
WAY_OUT = (
    "gpu-check: fastkd does not run here, so no other stage can. A wheel that another machine has "
    "built needs nothing compiled: --wheel FILE, from `python3 dev.py wheel --cuda --archs {} "
    "--python {}.{}`"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; exit status 1 if there is no GPU or a step failed."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.dry_run and options.record:
        parser.error("--record keeps what a GPU measured, and --dry-run uses none")
    if problem := _why_not_there(options.output):
        parser.error(problem)
    if options.wheel and (problem := why_not(options.wheel)):
        parser.error(f"--wheel: {problem}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and ends what it has started
    check = Check(options)
    try:
        return check.run()
    except (KeyboardInterrupt, SystemExit):
        check.keep("Cut off here. The logs tell how far the last stage came.")
        raise
    finally:
        check.close()


class Check:
    """A run of all stages."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.deadline = time.monotonic() + options.seconds
        self.outcomes: list[Outcome] = []
        self.sections: list[str] = []
        self.about = Run({}, options.output, dry_run=options.dry_run, rows=options.rows)
        for file in files_of_earlier_run(options.output):
            file.unlink(missing_ok=True)
        for folder in (self.about.logs, options.output / "work"):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)

    def run(self) -> int:
        """All stages; the exit status."""
        about = self.about
        if self.options.wheel:
            about.package, about.tree = unpack(self.options.wheel, about.output / "work")
        about.environment["FASTKD_COMMIT"] = commit()
        (asked,) = self.steps([about.step("facts", about.module("gpu_facts"))], 60)
        about.machine = read_facts(asked)
        if "problem" in about.machine:
            print(f"gpu-check: {about.machine['problem']}: there is nothing to check")
            return 1
        self.keep(heading(about.machine))
        stages = [stage for stage in STAGES if stage.name in self.options.only]
        for place, stage in enumerate(stages):
            done = self.stage(stage, sum(each.seconds for each in stages[place:]))
            if stage.name == "build" and any(outcome.bad for outcome in done):
                self.keep(self.why_no_kernels(done[-1]))
                return 1
        if about.results.exists():
            self.finish()
        return 1 if any(outcome.bad for outcome in self.outcomes) else 0

    def why_no_kernels(self, build: Outcome) -> str:
        """Why the run ends after its first stage."""
        if self.options.wheel:
            return NO_WHEEL.format(self.options.wheel.name, last_line(build.output))
        return WAY_OUT.format(self.about.machine["capability"], *sys.version_info[:2])

    def stage(self, stage: Stage, seconds_of_all: float) -> list[Outcome]:
        """Run a stage in its share of the time that is left, and keep what it found."""
        now = time.monotonic()
        left = max(0.0, self.deadline - LAST_SECONDS - now)
        share = left * stage.seconds / seconds_of_all
        done: list[Outcome] = []
        steps = stage.steps(self.about, now + share)
        try:
            group = next(steps)
            while True:
                ended = self.steps(group, now + share - time.monotonic())
                done += ended
                group = steps.send(ended)
        except StopIteration:
            pass
        self.outcomes += done
        self.keep(section(self.about, stage.name, done))
        return done

    def steps(self, steps: Sequence[Step], seconds: float) -> list[Outcome]:
        """Run steps side by side, and say what is being done and how much time is left."""
        names = dict.fromkeys(step.name.rstrip(" 0123456789") for step in steps)
        self.tell(f"{', '.join(names)} ... at most {max(0.0, seconds):.0f} s")
        return run_steps(steps, self.about.logs, time.monotonic() + seconds, self.tell)

    def tell(self, words: str) -> None:
        """A line for who watches."""
        left = max(0, round(self.deadline - time.monotonic()))
        print(f"gpu-check [{left // 60}:{left % 60:02} left] {words[:160]}", flush=True)

    def keep(self, words: str) -> None:
        """Print what was found, and save all that is known."""
        print(words, flush=True)
        self.sections.append(words)
        output = self.about.output
        (output / "summary.txt").write_text("\n".join(self.sections) + "\n", encoding="utf-8")
        archive = output / "gpu-check.tar.gz"
        unfinished = archive.with_suffix(".part")
        with tarfile.open(unfinished, "w:gz") as tar:
            for path in (output / "summary.txt", *self.result_files(), self.about.logs):
                tar.add(path, f"gpu-check/{path.name}", filter=_without_programs)
        unfinished.replace(archive)

    def result_files(self) -> list[Path]:
        """What the benchmark wrote; nothing before the machine is known."""
        known = "gpu" in self.about.machine
        return sorted(self.about.output.glob(f"{self.about.results.stem}*")) if known else []

    def finish(self) -> None:
        """Write how the stages ended into the results, draw them, and record them if asked."""
        about = self.about
        found = about.logs / "checks.json"
        found.write_text(json.dumps(checks(about, self.outcomes)), encoding="utf-8")
        command = [PYTHON, "-m", "benchmarks.gpu_report", str(about.results.resolve())]
        report = about.step("report", [*command, "--checks", str(found.resolve())])
        done = self.steps([report], max(LAST_SECONDS, self.deadline - time.monotonic()))
        self.outcomes += done
        if self.options.record:
            for path in self.result_files():
                shutil.copy2(path, RECORDED)
        where = f"recorded in {RECORDED}" if self.options.record else "--record was not asked for"
        self.keep(f"All is in {about.output}, and in its gpu-check.tar.gz; {where}.")

    def close(self) -> None:
        """End what still runs."""
        self.about.program.end()
        shutil.rmtree(self.about.output / "work", ignore_errors=True)


def read_facts(outcome: Outcome) -> dict[str, Any]:
    """What the machine is; a "problem" where it can't be told."""
    for line in reversed(outcome.output.splitlines()):
        if line.startswith("{"):
            facts: dict[str, Any] = json.loads(line)
            return facts
    return {"problem": f"the facts step {outcome.words}: {outcome.output.strip()[-300:]}"}


def files_of_earlier_run(output: Path) -> list[Path]:
    """What an earlier run wrote into its folder, by its archive; other files there stay."""
    archive = output / "gpu-check.tar.gz"
    try:
        with tarfile.open(archive) as tar:
            names = [Path(entry.name) for entry in tar if entry.isfile()]
    except (OSError, EOFError, tarfile.TarError):  # there is none, or not a whole one
        return []
    return [archive, *(output / name.name for name in names if len(name.parts) == 2)]


def _why_not_there(output: Path) -> str:
    """Why nothing may be written into a folder, or "": its logs would be deleted."""
    if output.exists() and any(output.iterdir()) and not (output / "summary.txt").exists():
        return f"--output: {output} is not empty, and no earlier gpu-check has written it"
    return ""


def _without_programs(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """A file of the archive; what was compiled stays out of it."""
    return None if entry.isfile() and not Path(entry.name).suffix else entry


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dev.py gpu-check", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "--output", type=Path, default=ROOT / "build" / "gpu-check", metavar="DIR",
        help="the folder of all that is written (default: build/gpu-check)",
    )  # fmt: skip
    parser.add_argument(
        "--wheel", type=Path, metavar="FILE", help="use a wheel that another machine has built"
    )
    parser.add_argument(
        "--seconds", type=float, default=TOTAL_SECONDS, help="for all together (default: 540)"
    )
    parser.add_argument(
        "--only", type=_names, default=NAMES, metavar="A[,B]", help=f"stages, of {','.join(NAMES)}"
    )
    parser.add_argument("--rows", default="", metavar="TEXT", help="of the benchmark's rows")
    parser.add_argument(
        "--record", action="store_true", help="copy the results into benchmarks/results"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="tiny, on the CPU: whether gpu-check itself works"
    )
    return parser


def _names(text: str) -> tuple[str, ...]:
    unknown = sorted(set(text.split(",")) - set(NAMES))
    if unknown:
        raise argparse.ArgumentTypeError(f"must be among {', '.join(NAMES)}, got {unknown}")
    return tuple(text.split(","))


if __name__ == "__main__":
    exit_with(main)
