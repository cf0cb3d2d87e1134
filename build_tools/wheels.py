# SPDX-License-Identifier: Apache-2.0
"""dev.py's wheels: what is in them, and what their CUDA code may cost.

Needs the standard library only.
"""

import argparse
import os
import shutil
import subprocess
import zipfile
from collections.abc import Sequence
from pathlib import Path

from build_tools.environment import (
    BUILT,
    ask,
    install,
    missing,
    pinned,
    project,
    provide,
    provide_nvcc,
)
from build_tools.processes import ROOT, Failure, environ, run_quietly, step

ARCHS = """
import importlib.util, json
spec = importlib.util.spec_from_file_location("fastkd._cuda", {module!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print(json.dumps({{"archs": module.archs}}))
"""


def wheel(python: Path, arguments: Sequence[str]) -> int:
    """Build a wheel into dist/ and tell what is in it. pip gets the arguments that are not ours."""
    parser = argparse.ArgumentParser(prog="dev.py wheel", add_help=False, allow_abbrev=False)
    parser.add_argument("--cuda", action="store_true")
    parser.add_argument("--archs")
    parser.add_argument("--python")
    given, others = parser.parse_known_args(arguments)
    if given.archs and not given.cuda:
        raise Failure("wheel: --archs names the chips of --cuda, which is not given")
    python = python_of(given.python) if given.python else python
    made = make_wheel(python, others, cuda=given.cuda, archs=given.archs)
    print(f"{made.relative_to(ROOT)}  {made.stat().st_size:,} bytes")
    for entry in zipfile.ZipFile(made).infolist():
        if entry.filename.endswith((".so", ".pyd")):
            print(f"  {entry.filename}  {entry.file_size:,} bytes")
    module = cuda_module(made)
    if module:
        print(f"  CUDA code for {ask(python, ARCHS.format(module=str(module)))['archs']}")
    return 0


def make_wheel(
    python: Path, options: Sequence[str] = (), *, cuda: bool, archs: str | None = None
) -> Path:
    """Build a wheel into dist/ for a Python; `archs`: the chips, in place of the default."""
    wishes = {"FASTKD_NATIVE": "1", "FASTKD_CUDA": os.environ.get("FASTKD_CUDA", "0")}
    wishes |= {"FASTKD_CUDA_ARCHS": archs} if archs else {}
    if cuda:
        wishes["FASTKD_CUDA"] = "1"
        provide_nvcc(python)
    for leftovers in (ROOT / "build").glob("lib*"):  # setuptools would pack what was deleted since
        shutil.rmtree(leftovers)
    options = ["--no-deps", "--no-build-isolation", "--wheel-dir", "dist", *options]
    step("building a wheel", [python, "-m", "pip", "wheel", *options, "."], **wishes)
    wheels = sorted((ROOT / "dist").glob("*.whl"), key=lambda path: path.stat().st_mtime)
    if not wheels:
        raise Failure("pip wrote no wheel into dist/")
    return wheels[-1]


def python_of(version: str) -> Path:
    """Another Python with the build tools, in an environment in build/."""
    found = shutil.which(f"python{version}")
    if not found or run_quietly([found, "-c", "import ensurepip, venv"])[0]:
        raise Failure(
            f"wheel --python {version}: no python{version} on the PATH runs and makes "
            "environments; install one, with its headers"
        )
    folder = BUILT / f"python{version}"
    if not (folder / "bin" / "python").exists():
        step(f"making {folder.relative_to(ROOT)}", [found, "-m", "venv", folder])
    python = folder / "bin" / "python"
    install(python, "the build tools", pinned(project()["build-system"]["requires"]))
    return python


def cuda_module(made: Path) -> Path | None:
    """fastkd._cuda out of a wheel, in build/wheel; None where the wheel has none."""
    with zipfile.ZipFile(made) as archive:
        for name in archive.namelist():
            if name.startswith("fastkd/_cuda."):
                return Path(archive.extract(name, BUILT / "wheel"))
    return None


def gates(python: Path, arguments: Sequence[str]) -> int:
    """Read the machine code of a wheel's CUDA kernels; what it may cost is in the tests."""
    provide(
        python,
        "cuda-gates",
        there=not missing(project()["dependency-groups"]["cuda-gates"], python),
    )
    module = str(cuda_module(make_wheel(python, cuda=True)))
    program = ["-m", "pytest", "tests/test_cuda_gates.py", *arguments]
    if "--write" in arguments:
        program = ["tests/cuda_code.py", module]
    command: list[str | Path] = [python, *program]
    settings = environ(FASTKD_CUDA_MODULE=module)
    return subprocess.run(command, cwd=ROOT, env=settings, check=False).returncode
