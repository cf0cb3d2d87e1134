# SPDX-License-Identifier: Apache-2.0
"""The gpu-check command, as far as it runs without a GPU."""

import json
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
from gpu_outcomes import MACHINE, ended

from benchmarks import (
    gpu_check,
    gpu_facts,
    gpu_program,
    gpu_run,
    gpu_stages,
    gpu_wheel,
)
from benchmarks.commands import Step

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(
    not (ROOT / "csrc").is_dir(), reason="the source tree is not beside the tests"
)
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")


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
    assert memcheck[-1] == "program"
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


def test_gpu_tests_need_no_more_than_pytest() -> None:
    files = [*ROOT.glob("tests/test_cuda_device*.py"), *ROOT.glob("benchmarks/*.py")]
    files += [*ROOT.glob("tests/*case*.py"), ROOT / "tests/test_values.py"]
    files += [ROOT / f"tests/{name}.py" for name in ("test_layouts", "test_inplace", "devices")]
    for file in files:
        text = file.read_text(encoding="utf-8")
        assert "import hypothesis" not in text
        assert "from hypothesis" not in text


def test_a_run_that_is_cut_off_keeps_what_it_has(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And a run in the folder of an earlier one replaces its files, and no others."""

    def cut_off(check: gpu_check.Check) -> int:
        check.about.machine = MACHINE
        (check.about.logs / "values.log").write_text("so far")
        (check.about.output / "chip-1000.md").write_text("a table")
        raise SystemExit(143)

    monkeypatch.setattr(gpu_check.Check, "run", cut_off)
    output = tmp_path / "out"
    for _ in range(2):
        with pytest.raises(SystemExit, match="143"):
            gpu_check.main(["--output", str(output)])
        assert (output / "summary.txt").read_text().startswith("Cut off here.")
        with tarfile.open(output / "gpu-check.tar.gz") as archive:
            names = {entry.name for entry in archive if entry.isfile()}
        assert names == {
            f"gpu-check/{name}" for name in ("summary.txt", "chip-1000.md", "logs/values.log")
        }
        (output / "notes.md").write_text("mine")
    gpu_check.Check(gpu_check._parser().parse_args(["--output", str(output)]))
    assert sorted(path.name for path in output.iterdir()) == ["logs", "notes.md", "work"]
