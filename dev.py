# SPDX-License-Identifier: Apache-2.0
"""Sets up an environment, builds fastkd in it and runs one command.

    python3 dev.py demo      distil a student on real data, and time the loss against eager PyTorch
    python3 dev.py test      run the quick tests: each case on one backend; test --all: all tests
    python3 dev.py check     lint, formats, types, layers, spelling, workflows; or some: check mypy
    python3 dev.py bench     measure and draw the benchmark table
    python3 dev.py wheel     build a wheel into dist/; with the CUDA kernels: wheel --cuda; for
                             another Python and some chips: wheel --cuda --python 3.12 --archs 90
    python3 dev.py gates     hold the CUDA code to its budgets, no GPU needed; --write: new budgets
    python3 dev.py sanitize  run the kernels under ASan, UBSan, TSan and valgrind; or one: cuda-tsan
    python3 dev.py mutants   plant faults in a copy of the source and see which tests find them
    python3 dev.py gpu-check build for this GPU, test, measure and probe it, within nine minutes;
                             with a wheel of another machine: --wheel FILE; without a GPU: --dry-run

`demo` and `bench` compile for the best instruction set of this CPU, `test` for all that it has and
for the emulator of CUDA. The CUDA kernels are compiled for the GPU that nvidia-smi sees, or if
FASTKD_CUDA=1 asks for them. setup.py lists the variables.

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
import difflib
import importlib.util
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # PYTHONSAFEPATH leaves it out

from build_tools.environment import (
    FACTS,
    VENV,
    ask,
    install,
    make_venv,
    missing,
    pinned,
    pip_install,
    project,
    requirements,
    sees_gpu,
)
from build_tools.in_place import compile_in_place, duration, install_in_place
from build_tools.processes import (
    ROOT,
    Failure,
    cores,
    environ,
    run_quietly,
    say,
    side_by_side,
    step,
)
from build_tools.wheels import gates, wheel

CPU_TORCH = "torch==2.13.0+cpu"  # no CUDA build, which takes gigabytes, has this version
CPU_TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
OLDEST_TORCH = "2.10"

# Extras of pyproject.toml that a command needs besides the build tools.
EXTRAS = {
    "demo": ["demo"],
    "test": ["test"],
    "test --all": ["dev"],
    "check": ["dev"],
    "bench": ["demo"],
    "gates": ["test"],
    "mutants": ["dev"],
    "gpu-check": ["gpu"],
}
MODULES = {
    "demo": "examples.demo",
    "test": "pytest",
    "bench": "benchmarks.run",
    "sanitize": "build_tools.sanitize",
    "mutants": "build_tools.mutants",
    "gpu-check": "benchmarks.gpu_check",
}
COMMANDS = ("demo", "test", "check", "bench", "wheel", "gates", "sanitize", "mutants", "gpu-check")
NEED_NO_TORCH = {"wheel"}
BUILT_IN_PLACE = {"demo", "test", "bench"}  # the others build what they need themselves

# CPU seconds on a machine with AVX2, for the estimates that are printed.
SECONDS_OF_TESTS = {"quick": 420, "all": 1000}

CHECKS = {
    "ruff": ["ruff", "check", "--quiet", "."],
    "ruff-format": ["ruff", "format", "--quiet", "--check", "."],
    "mypy": ["mypy", "--no-error-summary"],
    "lint-imports": ["lint-imports"],
    "codespell": ["codespell"],
    "clang-format": ["clang-format", "--dry-run", "--Werror"],  # and the C++ files
    "zizmor": ["zizmor", "--offline", "--quiet", ".github"],  # which an sdist has not
}


def main() -> int:
    """Run the command line."""
    if hasattr(signal, "SIGPIPE"):  # Windows has none
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `... | head` ends it without a traceback
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and ends what it has started
    parser = argparse.ArgumentParser(
        prog="dev.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", metavar="command", help=", ".join(COMMANDS))
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="for the tool behind it")
    given = parser.parse_args(sys.argv[1:] or ["--help"])
    if {"-h", "--help"} & {*given.arguments} and given.command in COMMANDS:
        parser.print_help()
        tool = MODULES.get(given.command)
        print(f"\nOptions of the tool: .venv/bin/python -m {tool} --help" if tool else "")
        return 0
    try:
        if given.command not in COMMANDS:
            raise Failure(f"there is no command {given.command!r}{suggestion(given.command)}")
        if given.command == "gpu-check" and "--dry-run" not in given.arguments and not sees_gpu():
            raise Failure("gpu-check needs an NVIDIA GPU, and nvidia-smi sees none (--dry-run)")
        python = environment_for(given.command, given.arguments)
        own = {"check": check, "wheel": wheel, "gates": gates, "test": test}
        if given.command in own:
            return own[given.command](python, given.arguments)
        return watch([python, "-m", MODULES[given.command], *given.arguments], given.command)
    except Failure as failure:
        print(f"dev.py: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def suggestion(word: str) -> str:
    """The commands, and the one that was probably meant."""
    close = difflib.get_close_matches(word, COMMANDS, n=1)
    meant = f"; did you mean {close[0]}?" if close else ""
    return f"{meant} (commands: {', '.join(COMMANDS)})"


def watch(command: Sequence[str | Path], name: str) -> int:
    """Run a command for the user to watch; tests and timings of the fallback would mislead."""
    strict = {"FASTKD_REQUIRE_NATIVE": "1"} if name in ("test", "bench") else {}
    return subprocess.run(command, cwd=ROOT, env=environ(**strict), check=False).returncode


def environment_for(command: str, arguments: Sequence[str]) -> Path:
    """The Python that runs the command, with fastkd built for it."""
    extras = EXTRAS.get("test --all" if wants_all(command, arguments) else command, [])
    wanted = pinned([line for extra in extras for line in requirements(extra)])
    build_tools = project()["build-system"]["requires"]
    if command == "gpu-check" and any(a.startswith(("--dry-run", "--wheel")) for a in arguments):
        build_tools = []  # nothing of fastkd is compiled
    if Path(sys.prefix) != VENV and importlib.util.find_spec("torch"):
        python = Path(sys.executable)
        ignored = "; FASTKD_TORCH is ignored" if os.environ.get("FASTKD_TORCH") else ""
        say(f"{sys.prefix} has torch, using it as it is{ignored}")
        require_tools(python, command, [*build_tools, *wanted])
        if command in BUILT_IN_PLACE:
            require_torch(python)
            compile_in_place(python, command)
            install_in_place(python)
        return python
    python = make_venv()
    install(python, "the build tools", pinned(build_tools))

    def install_packages() -> None:
        if command not in NEED_NO_TORCH:
            install_torch(python)
            require_torch(python)
        install(python, f"what `dev.py {command}` needs", wanted)

    if command in BUILT_IN_PLACE:  # compiling needs no torch
        side_by_side(install_packages, lambda: compile_in_place(python, command))
        install_in_place(python)
    else:
        install_packages()
    return python


def wants_all(command: str, arguments: Sequence[str]) -> bool:
    """Whether all tests are asked for."""
    return command == "test" and "--all" in arguments


def install_torch(python: Path) -> None:
    """The torch that was asked for, or where there is none the one that fits the machine."""
    try:
        wanted = shlex.split(os.environ.get("FASTKD_TORCH", ""))
    except ValueError as error:
        given = os.environ["FASTKD_TORCH"]
        raise Failure(f"FASTKD_TORCH must be what pip installs, got {given!r} ({error})") from None
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


def require_torch(python: Path) -> None:
    """Refuse a torch that is too old."""
    torch = ask(python, FACTS)["installed"]["torch"]
    found, oldest = ([int(part) for part in v.split(".")[:2]] for v in (torch, OLDEST_TORCH))
    if found < oldest:
        raise Failure(f"fastkd needs torch {OLDEST_TORCH} or newer, {python} has {torch}")


def require_tools(python: Path, command: str, wanted: Sequence[str]) -> None:
    """Name what an environment that isn't ours lacks."""
    lacking = missing(wanted, python)
    if lacking:
        otherwise = (
            "\nor use a wheel that another machine has built: gpu-check --wheel FILE"
            if command == "gpu-check"
            else ""
        )
        command_line = shlex.join(map(str, pip_install(python, *lacking)))
        raise Failure(
            f"this environment lacks packages that `dev.py {command}` needs. Install them:\n"
            f"    {command_line}\nor leave the environment, then dev.py makes one of its own"
            f"{otherwise}"
        )


def test(python: Path, arguments: Sequence[str]) -> int:
    """Run the tests on every core; those of one item in this process, for debuggers."""
    suite = "all" if wants_all("test", arguments) else "quick"
    if not any(word in ("-k", "-m") or not word.startswith("-") for word in arguments):
        say(f"the {suite} tests take {duration(SECONDS_OF_TESTS[suite])}")
    parallel = ["-n", str(cores()), "--dist", "worksteal", "--timeout", "600"]
    own = any(
        re.match(r"-n|--numprocesses|--dist|--pdb|--trace|no:xdist|[^-]\S*::", argument)
        for argument in arguments
    )
    if not own:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin would take the core
    return watch([python, "-m", "pytest", *([] if own else parallel), *arguments], "test")


def cpp_files() -> list[str]:
    """All C++ files, from the root."""
    files = (path.relative_to(ROOT) for path in (ROOT / "csrc").rglob("*.*"))
    return sorted(str(path) for path in files if path.suffix in (".h", ".cpp", ".cu"))


def check(python: Path, names: Sequence[str]) -> int:
    """Run all checks, or those named; one line each, and what failed in full."""
    unknown = sorted(set(names) - set(CHECKS))
    if unknown:
        raise Failure(f"check: no {', '.join(unknown)}; there is {', '.join(CHECKS)}")
    scripts = os.pathsep.join([str(python.parent), os.environ.get("PATH", "")])
    failed = 0
    for name in names or CHECKS:
        if name == "zizmor" and not (ROOT / ".github").is_dir():
            print(f"{name:<13} left out: there is no .github here")
            continue
        tool, *arguments = CHECKS[name]
        files = cpp_files() if name == "clang-format" else []
        start = time.monotonic()
        code, output = run_quietly([shutil.which(tool, path=scripts) or tool, *arguments, *files])
        failed += code != 0
        print(f"{name:<13} {'FAILED' if code else 'ok'} ({time.monotonic() - start:.1f} s)")
        print(output if code else "", end="", flush=True)
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
