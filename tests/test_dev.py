# SPDX-License-Identifier: Apache-2.0
"""dev.py: its words, and how its works end."""

import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
if not (ROOT / "dev.py").is_file():
    pytest.skip("dev.py is not beside the tests", allow_module_level=True)
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))  # it is no installed package

import dev  # noqa: E402
from build_tools import environment, processes, wheels  # noqa: E402
from build_tools.processes import Failure, Stopped  # noqa: E402


def run_dev(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "dev.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("word", "meant"),
    [("tset", "; did you mean test?"), ("benhc", "; did you mean bench?"), ("x", "")],
)
def test_unknown_command_is_an_error_that_names_the_nearest(word: str, meant: str) -> None:
    done = run_dev(word)
    assert done.returncode == 1
    assert done.stderr.startswith(
        f"dev.py: there is no command {word!r}{meant} (commands: demo, test"
    )


def test_help_of_a_command_sets_nothing_up() -> None:
    done = run_dev("test", "--help")
    assert done.returncode == 0, done.stderr
    assert "python3 dev.py test" in done.stdout
    assert "-m pytest --help" in done.stdout
    assert "installing" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "in_parallel"),
    [
        ([], True),
        (["--all", "-k", "layout or a::b"], True),
        (["tests/test_errors.py"], True),
        (["-n", "3"], False),
        (["-p", "no:xdist"], False),
        (["--pdb"], False),
        (["--trace"], False),
        (["tests/test_errors.py::test_x"], False),
    ],
)
def test_tests_run_on_every_core_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], in_parallel: bool
) -> None:
    commands: list[Sequence[object]] = []
    monkeypatch.setattr(dev, "watch", lambda command, name: commands.append(command) or 0)
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    assert dev.test(Path("python"), arguments) == 0
    (command,) = commands
    assert ("--dist" in command) == in_parallel
    assert list(command[len(command) - len(arguments) :]) == arguments


@pytest.mark.skipif(sys.platform == "win32", reason="there is no sleep to run")
def test_the_first_failure_ends_what_runs_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_stopping", threading.Event())
    ended = []

    def waits() -> None:
        try:
            processes.run_quietly(["sleep", "100"])
        finally:
            ended.append("sleep")
        processes.run_quietly(["sleep", "100"])  # is never started

    def fails() -> None:
        while not processes._running:
            time.sleep(0.01)
        raise Failure("there is no compiler")

    with pytest.raises(Failure, match="there is no compiler"):
        processes.side_by_side(waits, fails)
    assert ended == ["sleep"]
    assert not processes._running
    with pytest.raises(Stopped):
        processes.run_quietly(["sleep", "100"])


def test_requirements_are_pinned_once() -> None:
    pinned = environment.pinned(["pytest>=9", "pytest-xdist", "pytest>=9", "tqdm"])
    assert [line.partition("==")[0] for line in pinned] == ["pytest", "pytest-xdist", "tqdm"]
    assert pinned[0].startswith("pytest==9.")


def test_chips_without_cuda_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheels, "make_wheel", lambda *_, **__: pytest.fail("a wheel was built"))
    with pytest.raises(Failure, match="--archs names the chips of --cuda"):
        wheels.wheel(Path("python"), ["--archs", "90"])
    with pytest.raises(Failure, match=r"no python9\.9 on the PATH"):
        wheels.wheel(Path("python"), ["--cuda", "--archs", "90", "--python", "9.9"])
