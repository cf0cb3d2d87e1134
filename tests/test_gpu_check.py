# SPDX-License-Identifier: Apache-2.0
"""The gpu-check command, as far as it runs without a GPU."""

import json
import os
import platform
import re
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest
import torch

from benchmarks import (
    gpu_check,
    gpu_facts,
    gpu_program,
    gpu_run,
    gpu_stages,
    gpu_summary,
    gpu_tests,
    gpu_tools,
    gpu_wheel,
)
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
def test_without_a_gpu_it_says_so_in_a_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_check", "--output", str(tmp_path / "out")],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    last = done.stdout.splitlines()[-1]
    assert last.startswith("gpu-check: torch ")
    assert last.endswith("there is nothing to check")


def test_a_dry_run_goes_through_every_stage(tmp_path: Path) -> None:
    recorded = {*(ROOT / "benchmarks" / "results").iterdir()}
    output = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_check", "--dry-run", "--output", str(output)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr
    summary = (output / "summary.txt").read_text(encoding="utf-8")
    assert summary.startswith("DRY RUN on a CPU")
    for name in gpu_check.NAMES:
        assert f"\n== {name}\n" in summary
    assert "FAILED" not in summary
    assert re.search(r"\nvalues: ok \(.* in 2 processes\): [1-9]\d* passed, 0 failed", summary)
    assert re.search(r"\nsanitizers memcheck of calls from Python: ", summary)
    results = json.loads((output / "dry-run-on-a-cpu.json").read_text(encoding="utf-8"))
    assert {"fastkd", "eager", "torch.compile"} <= {*results["rows"][0]["providers"]}
    assert results["device"]["gpu"] == gpu_facts.DRY_RUN
    assert "values" in results["checks"]
    with tarfile.open(output / "gpu-check.tar.gz") as archive:
        names = archive.getnames()
    for name in ("summary.txt", "dry-run-on-a-cpu.md", "logs/values-1.log", "logs/bench.jsonl"):
        assert f"gpu-check/{name}" in names
    assert {*(ROOT / "benchmarks" / "results").iterdir()} == recorded


def groups_of(run: gpu_run.Run, code: int = 0) -> dict[str, Step]:
    """The steps of all stages, where every step ends with a code."""
    steps: dict[str, Step] = {}
    for stage in gpu_stages.STAGES:
        made = stage.steps(run, time.monotonic() + 60)
        try:
            group = next(made)
            while True:
                steps |= {step.name: step for step in group}
                group = made.send([ended(step.name, code, "") for step in group])
        except StopIteration:
            continue
    return steps


class NoProgram(gpu_program.SanitizerProgram):
    def start(self, logs: Path, capability: int, cores: int) -> None:
        self.asked = capability, cores

    def wait(self, deadline: float) -> Path | None:
        return Path("program")


def run_about(tmp_path: Path) -> gpu_run.Run:
    run = gpu_run.Run(MACHINE, tmp_path, rows="bf16", program=NoProgram())
    run.logs.mkdir()
    return run


def test_stages_are_commands_for_the_chip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu_stages, "find_nvcc", lambda: ["nvcc"])
    monkeypatch.setattr(gpu_stages, "find_tool", lambda name: f"/tools/{name}")
    run = run_about(tmp_path)
    row = {"providers": {"fastkd": {"median": 1.0}}, "work_count": 0, "floor": None}
    rows = [
        {"job": f"row {size}", "kernel": size != 7, "row": row | {"ideal_bytes": size << 24}}
        for size in (9, 3, 7, 1, 2, 5, 4, 8)
    ]
    text = "".join(json.dumps(each) + "\n" for each in [{"begun": "row 1"}, *rows])
    (run.logs / "bench.jsonl").write_text(text, encoding="utf-8")
    steps = groups_of(run)
    assert {name.partition(" ")[0] for name in steps} == set(gpu_check.NAMES)
    assert steps["build"].environment["FASTKD_CUDA_ARCHS"] == "90"
    assert "-arch=sm_90" in steps["wrappers"].commands[0]
    assert run.program.asked == (90, run.cores - 2)
    for name, providers in (
        ("bench", "fastkd"),
        ("peers", "fastkd,eager,liger"),
        ("peers compiled", "fastkd,torch.compile"),
    ):
        command = steps[name].commands[0]
        assert command[command.index("--providers") + 1] == providers
        assert command[command.index("--rows") + 1] == "bf16"
    profiled = [step.commands[0][-1] for name, step in steps.items() if name.startswith("ncu")]
    assert profiled[:2] == ["row 1"] * 2  # the second for bytes only; then it is not permitted
    assert len(profiled) == 2
    memcheck = steps["sanitizers memcheck of the program"].commands[0]
    assert memcheck[-2:] == ["program", "brief"]
    assert furthest(run) == ["row 1", "row 2", "row 3", "row 4", "row 5"]


def furthest(run: gpu_run.Run) -> list[str]:
    return gpu_stages.furthest_rows(run)[: gpu_stages.PROFILED_ROWS]


def test_a_wheel_is_used_without_compiling(tmp_path: Path) -> None:
    run = run_about(tmp_path)
    run.package, run.tree = tmp_path / "wheel", tmp_path / "tree"
    (look,) = next(gpu_stages.build(run, 0.0))
    assert len(look.commands) == 1
    assert look.environment["PYTHONPATH"] == str(tmp_path / "wheel")
    assert look.folder == tmp_path / "tree"


def wheel(folder: Path, name: str, *files: str) -> Path:
    path = folder / name
    with zipfile.ZipFile(path, "w") as archive:
        for file in files:
            archive.writestr(file, "")
    return path


def test_a_wheel_that_does_not_fit_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    this, machine = f"cp{sys.version_info[0]}{sys.version_info[1]}", platform.machine()
    module = "fastkd/_cuda.so"
    good = wheel(tmp_path, f"fastkd-1-{this}-{this}-linux_{machine}.whl", module)
    assert gpu_wheel.why_not(good) == ""
    for name, files, words in (
        (f"fastkd-1-cp38-cp38-linux_{machine}.whl", [module], "is for cp38, this Python is"),
        (f"fastkd-1-{this}-{this}-linux_riscv.whl", [module], "is for linux_riscv, this is"),
        (f"fastkd-2-{this}-{this}-linux_{machine}.whl", ["fastkd/_cpu.so"], "no CUDA kernels"),
        ("other.whl", [module], "is not named as a wheel of fastkd"),
    ):
        bad = wheel(tmp_path, name, *files)
        assert words in gpu_wheel.why_not(bad)
        with pytest.raises(SystemExit):
            gpu_check.main(["--output", str(tmp_path / "out"), "--wheel", str(bad)])
        assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    package, tree = gpu_wheel.unpack(good, tmp_path)
    assert (package / module).exists()
    assert (tree / "tests" / "cases.py").exists()
    assert not (tree / "fastkd").exists()


def test_a_failed_build_names_the_way_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_check, "read_facts", lambda outcome: MACHINE)
    monkeypatch.setattr(gpu_stages, "HAS_KERNELS", "raise SystemExit('there are no kernels')")
    monkeypatch.setattr(gpu_check.Check, "stage", lambda self, stage, _: [ended("build", 1, "")])
    assert gpu_check.main(["--output", str(tmp_path / "out")]) == 1
    assert "--wheel FILE" in capsys.readouterr().out
    assert "--archs 90" in (tmp_path / "out" / "summary.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--only", "bench,nothing"], "must be among build, wrappers"),
        (["--dry-run", "--record"], "--record keeps what a GPU measured"),
        (["--output", str(ROOT / "tests")], "no earlier gpu-check has written it"),
    ],
)
def test_wrong_options_are_refused(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        gpu_check.main(arguments)
    assert words in capsys.readouterr().err


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
called kd_loss 9x7 bfloat16/bfloat16 63 element
========= Invalid __global__ read of size 4 bytes
=========     at rows_in_registers+0x1a0
========= ERROR SUMMARY: 2 errors
"""
NCU = """==PROF== Connected to process 17
called kd_loss 65536x1000 bfloat16/bfloat16 1000 element
==PROF== Disconnected
"ID","Process ID","Kernel Name","dram__bytes_read.sum","dram__bytes_write.sum",\
"gpu__time_duration.sum","launch__registers_per_thread","sm__inst_executed_pipe_xu.avg.\
pct_of_peak_sustained_active"
"","","","byte","Kbyte","ns","register/thread","%"
"0","17","void fastkd::cuda::rows_in_registers<A, B, 1>(C)","4,000","2","1,000","63","41.6"
"1","17","void fastkd::cuda::<unnamed>::angle_ends<A>(C)","8,000","6","2,000","64","n/a"
"2","17","void fastkd::cuda::angle_vertices<A>(C)","4,000","0","2,000","64","n/a"
"""


def test_sanitizer_output_is_one_line() -> None:
    assert gpu_tools.sanitizer_words(MEMCHECK) == (
        "error summary: 2 errors; first: Invalid __global__ read of size 4 bytes"
    )
    assert gpu_tools.sanitizer_words("========= RACECHECK SUMMARY: 0 hazards displayed") == (
        "racecheck summary: 0 hazards displayed"
    )
    assert "no verdict: Device not supported" in gpu_tools.sanitizer_words("Device not supported")


def test_ncu_output_is_bytes_per_element() -> None:
    first, second, third = gpu_tools.ncu_words(NCU)
    assert first == (
        "kd_loss 65536x1000 bfloat16/bfloat16: 6.00 DRAM bytes for each element, 6 GB/s, 1 us, "
        "42% XU, 63 registers (rows_in_registers)"
    )
    assert "14.00 DRAM bytes for each element" in second
    assert "nan% XU" in second
    assert third.endswith("(angle_vertices)")
    assert gpu_tools.ncu_words("==ERROR== ERR_NVGPUCTRPERM") == [
        "no kernel was profiled: ==ERROR== ERR_NVGPUCTRPERM"
    ]
    assert gpu_tools.has_profile(NCU)
    assert not gpu_tools.has_profile("==ERROR== ERR_NVGPUCTRPERM")


def test_a_section_has_what_failed(tmp_path: Path) -> None:
    about = gpu_run.Run(MACHINE, tmp_path)
    wrong = ended("wrappers", 1, "pack_pair FAILED\n1 of device.h's wrappers fail")
    text = gpu_summary.section(about, "wrappers", [wrong])
    assert "wrappers: FAILED (1) (12 s): 1 of device.h's wrappers fail" in text
    assert "  wrappers: pack_pair FAILED" in text
    found = gpu_summary.checks(about, [ended("ncu 1", 0, NCU)])
    assert found["ncu 1, kernel 1"].startswith("kd_loss 65536x1000")
    tools = [ended("sanitizers memcheck", 9, MEMCHECK)]
    assert "2 errors; first: Invalid" in gpu_summary.section(about, "sanitizers", tools)
    assert gpu_summary.heading(MACHINE).startswith("Chip 1000, sm_90")
