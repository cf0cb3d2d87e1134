# SPDX-License-Identifier: Apache-2.0
"""Environments for dev.py: one of our own with torch in it, and what is installed where.

Needs the standard library only.
"""

import contextlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"

FACTS = """
import importlib.metadata, json
installed = {d.name: d for d in importlib.metadata.distributions()}
url = json.loads("fastkd" in installed and installed["fastkd"].read_text("direct_url.json") or "{}")
print(json.dumps({
    "installed": {name: d.version for name, d in installed.items()},
    "in_place": url.get("dir_info", {}).get("editable") and url["url"]}))
"""


class Failure(Exception):  # noqa: N818 - it is a sentence for the user
    """What ends dev.py with a message."""


class Stopped(Exception):  # noqa: N818 - nobody's mistake
    """A work was ended, because one beside it has failed."""


_screen = threading.Lock()


def say(text: str, *, passing: bool = False) -> None:
    """Print a line; a passing one gives way to the next, which a terminal can do only."""
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


def ask(python: str | Path, script: str) -> dict[str, Any]:
    """What a script prints as JSON in another environment."""
    code, output = run_quietly([python, "-P", "-c", script])  # -P: not the egg-info in the tree
    if code:
        raise Failure(f"{python} fails:\n{output}")
    answer: dict[str, Any] = json.loads(output)
    return answer


def make_venv() -> Path:
    """.venv, with pip in it."""
    python = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if python.exists() and run_quietly([python, "-c", "import pip"])[0] == 0:
        return python
    if not (importlib.util.find_spec("venv") and importlib.util.find_spec("ensurepip")):
        raise Failure(
            f"{sys.executable} cannot make virtual environments; Debian and Ubuntu keep that "
            "apart: sudo apt-get install python3-venv python3-dev"
        )
    step("making .venv", [sys.executable, "-m", "venv", "--clear", VENV])
    return python


def pip_install(python: str | Path, *arguments: str) -> list[str | Path]:
    """The command line of pip."""
    return [python, "-m", "pip", "install", "--disable-pip-version-check", *arguments]


def sees_gpu() -> bool:
    """Whether there is an NVIDIA GPU with a driver."""
    if not shutil.which("nvidia-smi"):
        return False
    code, output = run_quietly(["nvidia-smi", "-L"])
    return code == 0 and "GPU " in output


def missing(wanted: Sequence[str], python: str | Path) -> list[str]:
    """The requirements that are not installed: exact pins and lower bounds are compared."""

    def normal(name: str) -> str:  # PEP 503
        return re.sub(r"[-_.]+", "-", name).lower()

    installed = {normal(name): version for name, version in ask(python, FACTS)["installed"].items()}

    def satisfied(requirement: str) -> bool:
        found = installed.get(normal(re.split(r"[^\w.-]", requirement)[0]))
        if found is None:
            return False
        numbers = [[int(part) for part in re.findall(r"\d+", version)[:3]]
                   for version in (found, requirement.partition(">=")[2])]  # fmt: skip
        return requirement.partition("==")[2] in ("", found) and numbers[0] >= numbers[1]

    return [requirement for requirement in wanted if not satisfied(requirement)]


def requirements(extra: str) -> Iterator[str]:
    """The requirements of an extra of pyproject.toml."""
    for line in project()["project"]["optional-dependencies"][extra]:
        included = re.fullmatch(r"fastkd\[(.*)\]", line)
        if included:
            for name in included[1].split(","):
                yield from requirements(name.strip())
        else:
            yield line


def pinned(wanted: Sequence[str]) -> list[str]:
    """Requirements, in the version that the dev extra pins."""
    pins = {line.partition("==")[0]: line for line in requirements("dev") if "==" in line}
    named = [pins.get(re.split(r"[^\w.-]", line)[0], line) for line in wanted]
    return [*dict.fromkeys(named)]


def project() -> dict[str, Any]:
    """pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def provide(python: Path, group: str, *, there: bool) -> None:
    """Install a dependency group into our own environment, or name it to the owner of another."""
    wanted = project()["dependency-groups"][group]
    if there:
        return
    install = pip_install(python, *wanted)
    if VENV not in python.parents:
        install_it = shlex.join(map(str, install))
        raise Failure(
            f"this environment lacks {group} of pyproject.toml. Install it:\n    {install_it}\n"
            "or set FASTKD_CUDA=0 to do without CUDA"
        )
    step(f"installing {shlex.join(wanted)}", install)
