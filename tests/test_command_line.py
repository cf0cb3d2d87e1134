# SPDX-License-Identifier: Apache-2.0
"""A command of benchmarks/ or examples/ ends quietly where nobody reads its output any more."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAIN = "from benchmarks.command_line import exit_with\n"
ENDINGS = {"returns": "0", "fails": "1", "exits": "exit(0)"}


def run(code: str, output: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", f"{MAIN}exit_with(lambda: {code})"],
        cwd=ROOT,
        stdout=output,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS)
def test_a_closed_pipe_ends_a_command_without_a_word(ending: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = run(f"print('a line') or {ending}", writing)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize(("code", "status"), [("None", 0), ("0", 0), ("3", 3), ("exit('no')", 1)])
def test_a_command_exits_with_its_own_status(code: str, status: int) -> None:
    done = run(f"print('a line') or {code}", subprocess.PIPE)
    assert (done.returncode, done.stdout) == (status, "a line\n")
