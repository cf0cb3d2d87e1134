# SPDX-License-Identifier: Apache-2.0
"""Sets up an environment, builds fastkd in it and runs one command.

    python3 dev.py demo      distil a student on real data, and time the loss against eager PyTorch
    python3 dev.py test      pass the tests
    python3 dev.py check     lint, formats, types, import layers, spelling; or some: check ruff mypy
    python3 dev.py bench     measure and draw the benchmark table
    python3 dev.py wheel     build a wheel into dist/
    python3 dev.py sanitize  run the kernels under the address and undefined-behaviour sanitizers

What follows the command goes to the tool behind it: python3 dev.py test -k layout -x

An environment that is active and has torch is used as it is; otherwise .venv is made, with torch
for a GPU that nvidia-smi sees, else torch's CPU build. FASTKD_TORCH overrides that choice with what
pip should install, as in FASTKD_TORCH="torch==2.14.0". Needs the standard library only.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - an older Python gets here, and deserves a sentence
    sys.exit(
        "dev.py: fastkd needs Python 3.11 or newer, this is %d.%d (%s)"  # noqa: UP031 - as above
        % (sys.version_info[0], sys.version_info[1], sys.executable)
    )

import argparse
import hashlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import time
import tomllib
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
CPU_TORCH = "torch==2.13.0+cpu"  # no CUDA build, gigabytes in size, has this version
CPU_TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
OLDEST_TORCH = "2.10"

# Extras of pyproject.toml that a command needs besides the build tools.
EXTRAS = {"demo": ["demo"], "test": ["test"], "check": ["dev"], "bench": ["demo"]}
MODULES = {"demo": "examples.demo", "test": "pytest", "bench": "benchmarks.run"}
CHECKS = {
    "ruff": ["ruff", "check", "--quiet", "."],
    "ruff-format": ["ruff", "format", "--quiet", "--check", "."],
    "mypy": ["mypy", "--no-error-summary"],
    "lint-imports": ["lint-imports"],
    "codespell": ["codespell"],
    "clang-format": ["clang-format", "--dry-run", "--Werror"],  # and the C++ files
}

FACTS = """
import importlib.metadata, json, sys, sysconfig
print(json.dumps({
    "python": [sys.version, sys.prefix], "suffix": sysconfig.get_config_var("EXT_SUFFIX"),
    "installed": {d.name: d.version for d in importlib.metadata.distributions()}}))
"""
SANITIZER_FACTS = """
import json, sys
sys.path.insert(0, "")
import setup
from fastkd._native import cpu_capabilities
print(json.dumps({
    "compile": [*setup.find_compiler(), *setup.FLAGS],
    "isas": {isa: setup.ISA_FLAGS[isa] for isa in cpu_capabilities()}}))
"""


class Failure(Exception):  # noqa: N818 - it is a sentence for the user
    """What ends dev.py with a message."""


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="dev.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["demo", "test", "check", "bench", "wheel", "sanitize"])
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="for the tool behind it")
    given = parser.parse_args(sys.argv[1:] or ["--help"])
    try:
        python = environment_for(given.command)
        if given.command == "check":
            return check(python, given.arguments)
        if given.command == "wheel":
            return wheel(python, given.arguments)
        if given.command == "sanitize":
            return sanitize(python, given.arguments)
        return watch([python, "-m", MODULES[given.command], *given.arguments], given.command)
    except Failure as failure:
        print(f"dev.py: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def watch(command: Sequence[str | Path], name: str) -> int:
    """Run a command for the user to watch; tests and timings of the fallback would mislead."""
    strict = {"FASTKD_REQUIRE_NATIVE": "1"} if name in ("test", "bench") else {}
    return subprocess.run(command, cwd=ROOT, env={**strict, **os.environ}, check=False).returncode


def step(title: str, command: Sequence[str | Path], **environment: str) -> None:
    """Run a command with one line on the screen; its own words follow only if it fails."""
    print(f"dev.py: {title} ...", end=" ", flush=True)
    start = time.monotonic()
    code, output = run_quietly(command, **environment)
    print(f"{'failed' if code else 'done'} ({time.monotonic() - start:.0f} s)", flush=True)
    if code:
        raise Failure(f"{title} failed: {shlex.join(map(str, command))}\n{output}")


def run_quietly(command: Sequence[str | Path], **environment: str) -> tuple[int, str]:
    """Exit status and output of a command."""
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def ask(python: str | Path, script: str) -> dict[str, Any]:
    """What a script prints as JSON in another environment."""
    code, output = run_quietly([python, "-P", "-c", script])  # -P: not the egg-info in the tree
    if code:
        raise Failure(f"{python} fails:\n{output}")
    answer: dict[str, Any] = json.loads(output)
    return answer


def environment_for(command: str) -> Path:
    """The Python that runs the command, with fastkd built for it."""
    if Path(sys.prefix) != VENV and importlib.util.find_spec("torch"):
        python = Path(sys.executable)
        print(f"dev.py: {sys.prefix} has torch, using it as it is", flush=True)
        require_tools(python, command)
    else:
        python = make_venv()
        install_torch(python)
        wanted = list(requirements("dev"))
        if missing(wanted, python):
            step("installing pyproject.toml's dev extra", pip_install(python, *wanted))
    build(python)
    return python


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


def install_torch(python: str | Path) -> None:
    """The torch that was asked for, or where there is none the one that fits the machine."""
    wanted = shlex.split(os.environ.get("FASTKD_TORCH", ""))
    if wanted:
        step(f"installing {shlex.join(wanted)}", pip_install(python, *wanted))
    elif not missing(["torch"], python):
        return
    elif sees_gpu():
        step("installing torch for the GPU", pip_install(python, "torch"))
    elif sys.platform == "darwin":  # its wheels have no CUDA, nor +cpu in their version
        step("installing torch", pip_install(python, CPU_TORCH.removesuffix("+cpu")))
    else:
        try:
            step(f"installing {CPU_TORCH}", pip_install(python, CPU_TORCH))
        except Failure:
            from_torch = [CPU_TORCH, "--index-url", CPU_TORCH_INDEX]
            step(f"installing {CPU_TORCH} from PyTorch", pip_install(python, *from_torch))


def sees_gpu() -> bool:
    """Whether there is an NVIDIA GPU with a driver."""
    if not shutil.which("nvidia-smi"):
        return False
    code, output = run_quietly(["nvidia-smi", "-L"])
    return code == 0 and "GPU " in output


def require_tools(python: Path, command: str) -> None:
    """Name what an environment that isn't ours lacks."""
    wanted = [*project()["build-system"]["requires"]]
    for extra in EXTRAS.get(command, ()):
        wanted += requirements(extra)
    lacking = missing(wanted, python)
    if lacking:
        install = shlex.join(map(str, pip_install(python, *lacking)))
        raise Failure(
            f"this environment lacks packages that `dev.py {command}` needs. Install them:\n"
            f"    {install}\nor leave the environment, then dev.py makes one of its own"
        )


def missing(wanted: Sequence[str], python: str | Path) -> list[str]:
    """The requirements that are not installed; of versions only exact pins are compared."""

    def normal(name: str) -> str:  # PEP 503
        return re.sub(r"[-_.]+", "-", name).lower()

    installed = {normal(name): version for name, version in ask(python, FACTS)["installed"].items()}

    def satisfied(requirement: str) -> bool:
        found = installed.get(normal(re.split(r"[^\w.-]", requirement)[0]))
        return found is not None and requirement.partition("==")[2] in ("", found)

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


def project() -> dict[str, Any]:
    """pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def build(python: Path) -> None:
    """Compile and install in place, unless nothing changed since the last time."""
    facts = ask(python, FACTS)
    torch = facts["installed"]["torch"]
    found, oldest = ([int(part) for part in v.split(".")[:2]] for v in (torch, OLDEST_TORCH))
    if found < oldest:
        raise Failure(f"fastkd needs torch {OLDEST_TORCH} or newer, {python} has {torch}")
    # Where the kernels can't be built the user should hear it here, not find the reference at work.
    settings = {"FASTKD_NATIVE": "1", **os.environ}
    switches = [settings.get(name) for name in ("FASTKD_NATIVE", "FASTKD_WERROR", "CXX")]
    inputs = hashlib.sha256(repr([facts["python"], torch, switches]).encode())
    for name in ("setup.py", "pyproject.toml", "fastkd/_version.py", *cpp_files()):
        inputs.update((ROOT / name).read_bytes())
    stamp = ROOT / "build" / f"stamp-{hashlib.sha256(str(python).encode()).hexdigest()[:16]}"
    built = list((ROOT / "fastkd").glob(f"_cpu_*{facts['suffix']}"))
    current = stamp.exists() and stamp.read_text() == f"{inputs.hexdigest()} {len(built)}"
    if current and "fastkd" in facts["installed"]:
        return
    for module in built:  # or a build without the kernels would find these
        module.unlink()
    in_place = pip_install(python, "--no-deps", "--no-build-isolation", "--editable", ".")
    step("building fastkd in place", in_place, FASTKD_NATIVE=settings["FASTKD_NATIVE"])
    built = list((ROOT / "fastkd").glob(f"_cpu_*{facts['suffix']}"))
    stamp.parent.mkdir(exist_ok=True)
    stamp.write_text(f"{inputs.hexdigest()} {len(built)}")


def cpp_files() -> list[str]:
    """All C++ files, from the root."""
    files = (path.relative_to(ROOT) for path in (ROOT / "csrc").rglob("*.*"))
    return sorted(str(path) for path in files if path.suffix in (".h", ".cpp"))


def check(python: Path, names: Sequence[str]) -> int:
    """Run all checks, or those named; one line each, and what failed in full."""
    unknown = sorted(set(names) - set(CHECKS))
    if unknown:
        raise Failure(f"check: no {', '.join(unknown)}; there is {', '.join(CHECKS)}")
    scripts = os.pathsep.join([str(python.parent), os.environ.get("PATH", "")])
    failed = 0
    for name in names or CHECKS:
        tool, *arguments = CHECKS[name]
        files = cpp_files() if name == "clang-format" else []
        start = time.monotonic()
        code, output = run_quietly([shutil.which(tool, path=scripts) or tool, *arguments, *files])
        failed += code != 0
        print(f"{name:<13} {'FAILED' if code else 'ok'} ({time.monotonic() - start:.1f} s)")
        print(output if code else "", end="", flush=True)
    return min(failed, 1)


def wheel(python: Path, arguments: Sequence[str]) -> int:
    """Build a wheel into dist/ and tell what is in it."""
    for leftovers in (ROOT / "build").glob("lib*"):  # setuptools would pack what was deleted since
        shutil.rmtree(leftovers)
    options = ["--no-deps", "--no-build-isolation", "--wheel-dir", "dist", *arguments]
    step("building a wheel", [python, "-m", "pip", "wheel", *options, "."], FASTKD_NATIVE="1")
    wheels = sorted((ROOT / "dist").glob("*.whl"), key=lambda path: path.stat().st_mtime)
    if not wheels:
        raise Failure("pip wrote no wheel into dist/")
    made = wheels[-1]
    print(f"{made.relative_to(ROOT)}  {made.stat().st_size:,} bytes")
    for entry in zipfile.ZipFile(made).infolist():
        if entry.filename.endswith((".so", ".pyd")):
            print(f"  {entry.filename}  {entry.file_size:,} bytes")
    return 0


def sanitize(python: Path, arguments: Sequence[str]) -> int:
    """Compile the kernels with sanitizers for every instruction set of this CPU and run them."""
    facts = ask(python, SANITIZER_FACTS)
    sources = sorted(str(path) for path in ROOT.glob("csrc/cpu/*.cpp"))
    checks = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-O1", "-g", "-pthread"]
    folder = ROOT / "build" / "sanitize"
    folder.mkdir(parents=True, exist_ok=True)

    def compile_for(isa: str) -> tuple[int, str]:
        flags = [*facts["compile"], *facts["isas"][isa], *checks, "-w", f"-I{ROOT / 'csrc'}"]
        return run_quietly([*flags, "csrc/tests/sanitize.cpp", *sources, "-o", folder / isa])

    print(f"dev.py: compiling {', '.join(facts['isas'])} with sanitizers ...", flush=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for code, output in pool.map(compile_for, facts["isas"]):
            if code:
                raise Failure(f"the sanitizer build failed:\n{output}")
    failed = [isa for isa in facts["isas"] if watch([folder / isa, *arguments], "sanitize")]
    print(f"dev.py: sanitizers complain on {', '.join(failed) or 'nothing'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
