# SPDX-License-Identifier: Apache-2.0
"""The processes that gpu-check runs: limits, hangs, and tests that end their process."""

import os
import sys
import time
from pathlib import Path

from gpu_outcomes import MACHINE, python, run

from benchmarks import gpu_run, gpu_stages, gpu_summary, gpu_tests
from benchmarks.commands import TIMED_OUT, Step, run_steps


def test_a_failing_step_does_not_stop_the_others(tmp_path: Path) -> None:
    steps = [
        Step("first", (python("print('one'); raise SystemExit(7)"), python("print('two')")), 30),
        Step("second", (python("print('fine')"), python("print('too')")), 30),
        Step("third", (["no-such-program"],), 30),
        Step("fourth", (python("1"),), 30, obstacle="there is no such tool"),
    ]
    outcomes = run_steps(steps, tmp_path, time.monotonic() + 30)
    assert [outcome.code for outcome in outcomes] == [7, 0, 127, None]
    assert outcomes[0].output == "one\n"
    assert outcomes[1].output == "fine\ntoo\n"
    assert [outcome.bad for outcome in outcomes] == [True, False, True, False]
    assert outcomes[0].words == "FAILED (7)"
    assert outcomes[3].words == "not run: there is no such tool"
    assert (tmp_path / "second.log").read_text() == "fine\ntoo\n"


def test_a_step_ends_at_its_limit_or_at_that_of_all(tmp_path: Path) -> None:
    sleep = python("print('begun', flush=True); import time; time.sleep(60)")
    begin = time.monotonic()
    outcome = run(Step("slow", (sleep,), 1.5), tmp_path)
    assert (outcome.code, outcome.words, outcome.bad) == (TIMED_OUT, "TIMED OUT", True)
    assert outcome.output.startswith("begun")
    assert run(Step("slow", (sleep,), 60), tmp_path, 1.5).code == TIMED_OUT
    late = run(Step("late", (sleep,), 60), tmp_path, -1)
    assert (late.code, late.words, late.bad) == (None, "not run: no time left", True)
    assert time.monotonic() - begin < 30


def test_a_step_that_says_nothing_is_ended_and_started_again(tmp_path: Path) -> None:
    program = f"""
import pathlib, time
count = pathlib.Path({str(tmp_path / "count")!r})
times = len(count.read_text()) if count.exists() else 0
count.write_text("x" * (times + 1))
print("run", times, flush=True)
if times == 0:
    time.sleep(60)
raise SystemExit(3 if times == 1 else 0)
"""
    again = Step(
        "hangs", (python(program),), 40, silence=1.5, restart_on=lambda code: code in (3, 137)
    )
    outcome = run(again, tmp_path, 60)
    assert outcome.ok
    assert [line for line in outcome.output.splitlines() if line.startswith("run")] == [
        *("run 0", "run 1", "run 2")
    ]


def test_a_step_has_its_environment_and_no_input(tmp_path: Path) -> None:
    program = "import os, sys; print(os.environ['KEY'], repr(sys.stdin.read()))"
    outcome = run(Step("says", (python(program),), 30, {"KEY": "value"}), tmp_path)
    assert outcome.output == "value ''\n"


def test_tests_go_on_behind_the_one_that_ended_their_process(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(
        "import os\ndef test_a(): pass\ndef test_b(): os._exit(137)\ndef test_c(): assert 1 == 2\n"
    )
    journal = tmp_path / "journal.jsonl"
    command = [sys.executable, "-m", "pytest", str(tmp_path / "test_some.py"), "-q"]
    command += ["-c", os.devnull, "--rootdir", str(tmp_path), "-p", "benchmarks.gpu_tests"]
    command += ["-p", "no:cacheprovider", "--journal", str(journal)]
    step = Step(
        "values", (command,), 60, {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        restart_on=gpu_stages.goes_on,
    )  # fmt: skip
    outcome = run(step, tmp_path, 60)
    found = gpu_tests.read_journal(journal)
    assert outcome.code == 1
    assert found.collected == 3
    assert list(found.outcomes.values()) == ["passed", "failed"]
    assert [name.rpartition("::")[2] for name in found.hung] == ["test_b"]
    about = gpu_run.Run(MACHINE, tmp_path)
    about.logs.mkdir()
    journal.rename(gpu_stages.journal_of(about, "values"))
    text = gpu_summary.section(about, "values", [outcome])
    assert "1 passed, 1 failed, 0 skipped, 1 ended without a verdict, of 3" in text
    assert "test_b: hung, faulted or was cut off" in text
    assert "test_c: assert 1 == 2" in text
