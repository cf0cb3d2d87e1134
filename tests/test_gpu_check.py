# SPDX-License-Identifier: Apache-2.0
"""The gpu-check command, as far as it runs without a GPU."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_check, gpu_facts, gpu_summary, gpu_tools
from benchmarks.commands import TIMED_OUT, Outcome, Step, run_steps

ROOT = Path(__file__).resolve().parents[1]
MACHINE = {
    "gpu": "Chip 1000",
    "capability": 90,
    "driver": "1.0",
    "torch": "2.13",
    "torch_cuda": "13.0",
    "nvcc": "13.0",
    "triton": "3.6",
}
pytestmark = pytest.mark.skipif(
    not (ROOT / "csrc").is_dir(), reason="the source tree is not beside the tests"
)
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")


def python(program: str) -> list[str]:
    return [sys.executable, "-c", program]


def run(step: Step, folder: Path, seconds: float = 30) -> Outcome:
    (outcome,) = run_steps([step], folder, time.monotonic() + seconds)
    return outcome


def ended(name: str, code: int | None, output: str, obstacle: str = "") -> Outcome:
    return Outcome(Step(name, (), 1, obstacle=obstacle), code, 12.0, output)


# ---- steps ----


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


# ---- the command ----


@no_gpu
def test_without_a_gpu_it_says_so_in_a_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_check"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stdout.startswith("gpu-check: torch ")
    assert done.stdout.endswith("there is nothing to check\n")
    assert done.stdout.count("\n") == 1


@no_gpu
def test_all_steps_run_and_are_told_of(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_check, "read_facts", lambda outcome: MACHINE)
    settings = ["--logs", str(tmp_path / "logs"), "--output", str(tmp_path), "--seconds", "300"]
    code = gpu_check.main([*settings, "--only", "bench,ncu,sanitizers"])
    assert code == 1  # there is no GPU
    printed = capsys.readouterr().out
    assert "bench: FAILED (1) " in printed
    assert "sees no CUDA device" in printed or "is built without CUDA" in printed
    assert printed.rstrip().endswith("no table: the benchmark recorded nothing")
    assert (tmp_path / "logs" / "bench.log").exists()
    assert len(printed.rstrip().splitlines()) < 60


def test_stages_are_commands_for_the_chip(tmp_path: Path) -> None:
    options = gpu_check._parser().parse_args(["--logs", str(tmp_path), "--rows", "bf16"])
    groups = list(gpu_check.stages(MACHINE, options, time.monotonic() + 540, [ended("x", 0, "")]))
    steps = {step.name: step for group in groups for step in group}
    assert {name.partition(" ")[0] for name in steps} == set(gpu_check.NAMES)
    assert steps["build"].environment["FASTKD_CUDA_ARCHS"] == "90"
    assert "--no-index" in steps["build"].commands[0]
    assert "-arch=sm_90" in steps["wrappers"].commands[0]
    assert "bf16" in steps["bench"].commands[0]
    assert 400 < steps["bench"].seconds < 540
    limits = [max(step.seconds for step in group) for group in groups]
    assert sum(limits) - steps["bench"].seconds + 60 < gpu_check.TOTAL_SECONDS
    assert [step.name for group in groups for step in group].count("ncu") == 1


def test_a_failing_ncu_is_asked_for_less(tmp_path: Path) -> None:
    options = gpu_check._parser().parse_args(["--logs", str(tmp_path)])
    done: list[Outcome] = [ended("x", 0, "")]
    names = []
    for group in gpu_check.stages(MACHINE, options, time.monotonic() + 540, done):
        names += [step.name for step in group]
        done += [ended(step.name, 1 if step.name == "ncu" else 0, "") for step in group]
    assert names[-2:] == ["ncu", "ncu bytes only"]


def test_only_knows_its_names(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu_check.main(["--only", "bench,nothing"])
    assert "must be among build, wrappers" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "file"),
    [("NVIDIA H100 80GB HBM3", "nvidia-h100-80gb-hbm3"), ("A (b)", "a-b"), ("", "gpu")],
)
def test_results_are_named_by_the_chip(name: str, file: str) -> None:
    assert gpu_facts.slug(name) == file


def test_gpu_tests_need_no_more_than_pytest() -> None:
    files = [*ROOT.glob("tests/test_cuda_device*.py"), *ROOT.glob("benchmarks/*.py")]
    files += [*ROOT.glob("tests/*case*.py"), ROOT / "tests/test_values.py"]
    files += [ROOT / "tests/test_layouts.py"]
    for file in files:
        text = file.read_text(encoding="utf-8")
        assert "import hypothesis" not in text
        assert "from hypothesis" not in text


# ---- what the tools say ----

MEMCHECK = """========= COMPUTE-SANITIZER
called kd_loss 9x7 bfloat16/bfloat16 63 element 0
========= Invalid __global__ read of size 4 bytes
=========     at rows_in_registers+0x1a0
called kd_loss 5x300 float32/float32 1500 element 0
========= ERROR SUMMARY: 2 errors
"""
NCU = """==PROF== Connected to process 17
called kd_loss 65536x1000 bfloat16/bfloat16 1000 element 1
called rkd_loss 16x8 float32/float32 4000 triplet 2
==PROF== Disconnected
"ID","Process ID","Kernel Name","dram__bytes_read.sum","dram__bytes_write.sum",\
"gpu__time_duration.sum","launch__registers_per_thread","sm__inst_executed_pipe_xu.avg.\
pct_of_peak_sustained_active"
"","","","byte","Kbyte","ns","register/thread","%"
"0","17","void fastkd::cuda::rows_in_registers<A, B, 1>(C)","4,000","2","1,000","63","41.6"
"1","17","void fastkd::cuda::angle_ends<A>(C)","8,000","6","2,000","64","n/a"
"2","17","void fastkd::cuda::angle_vertices<A>(C)","4,000","0","2,000","64","n/a"
"""


def test_sanitizer_output_is_one_line() -> None:
    assert gpu_tools.sanitizer_words(MEMCHECK) == (
        "2 calls, error summary: 2 errors; first: Invalid __global__ read of size 4 bytes"
    )
    assert gpu_tools.sanitizer_words("========= RACECHECK SUMMARY: 0 hazards displayed") == (
        "0 calls, racecheck summary: 0 hazards displayed"
    )
    assert "no verdict: Device not supported" in gpu_tools.sanitizer_words("Device not supported")


def test_ncu_output_is_bytes_per_element() -> None:
    first, second, third = gpu_tools.ncu_words(NCU)
    assert first == (
        "kd_loss 65536x1000 bfloat16/bfloat16: 6.00 DRAM bytes for each element, 6 GB/s, 1 us, "
        "42% XU, 63 registers (rows_in_registers)"
    )
    assert "3.50 DRAM bytes for each triplet" in second
    assert "1.00 DRAM bytes for each triplet" in third
    assert third.startswith("rkd_loss 16x8 float32/float32: ")
    assert third.endswith("(angle_vertices)")
    assert "nan% XU" in second
    assert gpu_tools.ncu_words("==ERROR== ERR_NVGPUCTRPERM") == [
        "no kernel was profiled: ==ERROR== ERR_NVGPUCTRPERM"
    ]


def test_pytest_output_is_its_count_and_its_failures() -> None:
    output = (
        "tests/test_cuda_device.py::test_maps PASSED\n"
        "FAILED tests/test_cuda_device.py::test_maps[1] - AssertionError: loss: error 1\n"
        "=========== 1 failed, 2306 passed in 33.10s ===========\n"
    )
    outcome = ended("tests device", 1, output)
    assert gpu_summary.status(outcome) == "FAILED (1) (12 s): 1 failed, 2306 passed in 33.10s"
    assert gpu_summary.details([outcome]) == [
        "tests/test_cuda_device.py::test_maps[1] - AssertionError: loss: error 1"
    ]
    hung = ended("tests device", TIMED_OUT, "tests/test_cuda_device.py::test_long_rows[3] ")
    assert "the last was tests/test_cuda_device.py::test_long_rows[3]" in gpu_summary.status(hung)


def test_the_end_of_the_output_holds_all_that_matters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded = ROOT / "benchmarks" / "results" / "amd-epyc-1-2-threads.json"
    values = json.loads(recorded.read_text(encoding="utf-8"))
    rows = [row | {"threads": 0} for row in values["rows"]][:24]
    values |= {"rows": rows, "copy_bandwidth": {"0": 3e12}, "add_bandwidth": 2.9e12}
    values["device"] |= {"gpu": "Chip", "multiprocessors": 1, "l2_mib": 1, "gpu_memory_gib": 1}
    values["versions"] |= dict.fromkeys(
        ("fastkd_cuda_archs", "driver", "torch_cuda", "triton", "nvcc"), "1"
    )
    path = tmp_path / "chip-1000.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    many = "".join(f"FAILED tests/test_cuda_device.py::test_{i} - no\n" for i in range(50))
    outcomes = [
        ended("facts", 0, "{}"),
        ended("build", 0, "fastkd 0.1.0 has CUDA code for 90"),
        ended("wrappers", 1, "pack_pair FAILED\n1 of device.h's wrappers fail"),
        *(ended(f"tests {name}", 1, many) for name in ("device", "paths", "graphs")),
        *(ended(f"sanitizers {name}", 9, MEMCHECK) for name in gpu_tools.SANITIZERS),
        ended("bench", 0, ""),
        ended("ncu", 0, NCU),
    ]
    gpu_summary.print_summary(MACHINE, outcomes, path, 0.0)
    lines = capsys.readouterr().out.strip().splitlines()
    assert len(lines) <= 60  # and a line for each further row
    assert lines[0].startswith("Chip 1000, sm_90")
    assert "wrappers: FAILED (1) (12 s): 1 of device.h's wrappers fail" in lines
    assert "  wrappers: pack_pair FAILED" in lines
    for name in ("device", "paths", "graphs"):
        assert f"  tests {name}: 47 more, in its log" in lines
    assert any(line.startswith("ncu: kd_loss 65536x1000") for line in lines)
    assert lines[-1].startswith("| ")
    kept = json.loads(path.read_text(encoding="utf-8"))["checks"]
    assert kept["build"] == "ok (12 s): fastkd 0.1.0 has CUDA code for 90"
    assert "* build: ok" in path.with_suffix(".md").read_text(encoding="utf-8")
    gpu_summary.print_summary(MACHINE, outcomes, path, time.time() + 9)  # of another run
    assert "the benchmark recorded nothing" in capsys.readouterr().out
