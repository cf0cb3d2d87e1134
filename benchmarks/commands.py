# SPDX-License-Identifier: Apache-2.0
"""Other programs: what they say, and steps with a time limit. Standard library only."""

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import ROOT

TIMED_OUT = -1
MOST_RESTARTS = 20  # of a step: what ends before it has done anything is not started forever
_POLL_SECONDS = 0.2
_TELL_SECONDS = 15  # between two words about steps that still run
_LAST_WORDS_SECONDS = 5  # after SIGINT, before SIGKILL


def output_of(*command: str) -> str:
    """What a command prints, or "" where it fails or is missing."""
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout


def first_line(*command: str) -> str:
    """What a command says first, or "" where it fails or is missing."""
    return next(iter(output_of(*command).splitlines()), "").strip()


def commit() -> str:
    """The checkout's commit, "-dirty" if files differ from it; results do not count."""
    head = first_line("git", "rev-parse", "--short=12", "HEAD")
    if not head:  # a copy without its history: whoever made it may tell
        return os.environ.get("FASTKD_COMMIT", "unknown")
    changes = first_line("git", "status", "--porcelain", "--", ".", ":(exclude)benchmarks/results")
    return f"{head}-dirty" if changes else head


def last_line(output: str) -> str:
    """The last words of a program."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "it said nothing"


@dataclass(frozen=True)
class Step:
    """Commands that run one after the other while they succeed, with one limit for all."""

    name: str
    commands: tuple[Sequence[str], ...]
    seconds: float  # at most
    environment: Mapping[str, str] = field(default_factory=dict)
    silence: float | None = None  # seconds without output after which a command has hung
    restart_on: Callable[[int], bool] = lambda _code: False  # by exit status, the same command
    obstacle: str = ""  # why it can't run here
    folder: Path = ROOT  # where they run

    @property
    def file_name(self) -> str:
        """What its files are called."""
        return self.name.replace(" ", "-")


@dataclass(frozen=True)
class Outcome:
    """How a step ended."""

    step: Step
    code: int | None  # None: not run
    seconds: float
    output: str

    @property
    def ok(self) -> bool:
        """Whether all its commands ran and succeeded."""
        return self.code == 0

    @property
    def bad(self) -> bool:
        """Whether it failed, or should have run and did not."""
        return not self.ok and not self.step.obstacle

    @property
    def words(self) -> str:
        """The end in a word or two."""
        if self.code is None:
            return f"not run: {self.step.obstacle or 'no time left'}"
        if self.code == TIMED_OUT:
            return "TIMED OUT"
        return "ok" if self.code == 0 else f"FAILED ({self.code})"


def run_steps(
    steps: Sequence[Step],
    folder: Path,
    deadline: float,
    tell: Callable[[str], None] = lambda _words: None,
) -> list[Outcome]:
    """Run steps side by side, each with its output in a file of the folder; none stops another.

    Now and then `tell` hears what a step that still runs said last.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stop = threading.Event()
    with ThreadPoolExecutor(max(1, len(steps))) as pool:
        try:
            running = {pool.submit(_run_step, each, folder, deadline, stop): each for each in steps}
            left = set(running)
            while left:
                left = wait(left, timeout=_TELL_SECONDS).not_done
                for step in [running[future] for future in left][:1]:
                    tell(f"{step.name}: {last_line(_read(_log(step, folder)))}")
        except BaseException:  # the steps are in sessions of their own and did not hear of it
            stop.set()
            raise
        return [future.result() for future in running]


def _run_step(step: Step, folder: Path, deadline: float, stop: threading.Event) -> Outcome:
    begin = time.monotonic()
    end = min(begin + step.seconds, deadline)
    log = _log(step, folder)
    if step.obstacle or end <= begin:
        return Outcome(step, None, 0.0, "")
    code = 0
    with log.open("wb") as file:
        for command in step.commands:
            for _ in range(1 + MOST_RESTARTS):
                code = _run_command(command, step, file.fileno(), end, stop)
                again = code not in (0, TIMED_OUT) and step.restart_on(code)
                if not again or time.monotonic() > end:
                    break
            if code:
                break
    return Outcome(step, code, time.monotonic() - begin, _read(log))


def _log(step: Step, folder: Path) -> Path:
    return folder / f"{step.file_name}.log"


def _read(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""


def _run_command(
    command: Sequence[str], step: Step, log: int, end: float, stop: threading.Event
) -> int:
    """Exit status; TIMED_OUT where the limit came first; 137 (killed) after too long a silence."""
    try:
        process = start(command, step, log)
    except OSError as error:
        os.write(log, f"{command[0]}: {error}\n".encode())
        return 127
    size, spoke = -1, time.monotonic()
    while process.poll() is None:
        now = time.monotonic()
        if (written := os.fstat(log).st_size) != size:
            size, spoke = written, now
        silent = step.silence is not None and now - spoke > step.silence
        if silent or now > end or stop.is_set():
            end_process(process)
            return 137 if silent and now <= end else TIMED_OUT
        time.sleep(_POLL_SECONDS)
    return process.returncode


def start(command: Sequence[str], step: Step, log: int) -> subprocess.Popen[bytes]:
    """Start a command of a step, its output in an open file."""
    return subprocess.Popen(
        command,
        cwd=step.folder,
        env={**os.environ, **step.environment},
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # so that its children can be ended with it
    )


def end_process(process: subprocess.Popen[bytes]) -> None:
    """First as Ctrl-C does, which lets pytest tell what it has; then for good."""
    for number, seconds in ((signal.SIGINT, _LAST_WORDS_SECONDS), (signal.SIGKILL, 30)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
            if number == signal.SIGINT:  # whatever it left behind
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            return
