# SPDX-License-Identifier: Apache-2.0
"""The commands that dev.py runs: what is said of them, and how they end.

Needs the standard library only.
"""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


class Failure(Exception):  # noqa: N818 - it is a sentence for the user
    """What ends dev.py with a message."""


class Stopped(Exception):  # noqa: N818 - not an error of this command
    """A command was ended because another one failed."""


_screen = threading.Lock()


def say(text: str, *, passing: bool = False) -> None:
    """Print a line; on a terminal, the next line overwrites a passing one."""
    with _screen:
        erase = "\r\033[K" if sys.stdout.isatty() else ""
        print(f"{erase}dev.py: {text}", end="" if passing else "\n", flush=True)


def step(title: str, command: Sequence[str | Path], **environment: str) -> None:
    """Run a command with a line before and after; its own words follow only if it fails."""
    say(f"{title} ...")
    start = time.monotonic()
    code, output = run_quietly(command, **environment)
    say(f"{title} {'failed after' if code else 'took'} {time.monotonic() - start:.0f} s")
    if code:
        raise Failure(f"{title} failed: {shlex.join(map(str, command))}\n{output}")


def run_quietly(command: Sequence[str | Path], **environment: str) -> tuple[int, str]:
    """Exit status and output of a command."""
    with process(command, **environment) as running:
        assert running.stdout is not None
        output = running.stdout.read()
    if _stopping.is_set():
        raise Stopped
    return running.wait(), output


_running: set["subprocess.Popen[str]"] = set()
_stopping = threading.Event()


@contextlib.contextmanager
def process(command: Sequence[str | Path], **environment: str) -> Iterator["subprocess.Popen[str]"]:
    """A command, its output in a pipe; what it has started ends with it."""
    if _stopping.is_set():
        raise Stopped
    with subprocess.Popen(
        command, cwd=ROOT, env=environ(**environment), text=True, errors="replace",
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    ) as running:  # fmt: skip
        _running.add(running)
        try:
            if _stopping.is_set():  # since the command was started
                raise Stopped
            yield running
        except BaseException:
            end(running)
            raise
        finally:
            _running.discard(running)


def end(running: "subprocess.Popen[str]") -> None:
    """End a command and what it has started."""
    if running.poll() is None:
        if hasattr(os, "killpg"):
            os.killpg(running.pid, signal.SIGTERM)
        else:
            running.terminate()


def side_by_side(*works: Callable[[], None]) -> None:
    """Do works at the same time; the first that fails ends the others."""
    with ThreadPoolExecutor(len(works)) as pool:
        futures = [pool.submit(work) for work in works]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:  # Ctrl-C and a request to end, too
            _stopping.set()
            for running in [*_running]:
                end(running)
            raise


def environ(**more: str) -> dict[str, str]:
    """The environment of a command, which finds the tree's own modules from its root."""
    return {
        **{name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"},
        **more,
    }


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
