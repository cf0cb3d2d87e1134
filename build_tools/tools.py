# SPDX-License-Identifier: Apache-2.0
"""What the environment asks for, and the compilers that this machine has."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

HEADERS = ("include", "platinclude")  # Python's own, in sysconfig's words
PROBE = "#include <cmath>\n#include <vector>\nint main() { return 0; }\n"
TOOLKIT = 'pip install "cuda-toolkit[nvcc,cudart,cccl]==13.0.*"'

# What a wheel carries. Code for 8.0 runs on 8.6 and 8.9 too, where nvcc's own differs by some ten
# instructions in two thousand; the two would add about a fifth to the build (an estimate, by the
# times of nvcc's parts in docs/cuda-kernels.md) and 1.3 MB. The PTX is for chips that have no code
# here, 11.0 and those to come, which compile it at the first call: 9.0's serves more of them than
# 12.0's would, and the kernels use nothing that is newer.
CUDA_ARCHS = ("75", "80", "90+PTX", "100", "120")


def choice(name: str) -> str:
    """A variable that says auto, 0 or 1."""
    value = os.environ.get(name) or "auto"
    if value not in ("auto", "0", "1"):
        raise SystemExit(f"fastkd: {name} must be one of auto, 0, 1, got {value!r}")
    return value


def switched_on(name: str) -> bool:
    """A variable that says 0 or 1, and is off where it is not set."""
    value = os.environ.get(name) or "0"
    if value not in ("0", "1"):
        raise SystemExit(f"fastkd: {name} must be 0 or 1, got {value!r}")
    return value == "1"


def command_line(name: str) -> list[str]:
    """A variable that is a command with its arguments; empty where it is not set."""
    value = os.environ.get(name, "")
    try:
        return shlex.split(value)
    except ValueError as error:
        raise SystemExit(
            f"fastkd: {name} must be a command line, got {value!r} ({error})"
        ) from None


def why_not_native() -> str | None:
    """What is missing on this machine to compile, or None."""
    if sys.platform == "win32":
        return "the native modules are built on Linux and macOS only"
    if not find_compiler():
        wanted = os.environ.get("CXX")
        if wanted:
            return f"there is no C++ compiler (CXX={wanted} is not there)"
        return (
            "there is no C++ compiler (none of g++, c++, clang++ is there; Debian and Ubuntu: "
            "apt-get install g++)"
        )
    headers = {sysconfig.get_path(name) for name in HEADERS}
    if not any(Path(folder, "Python.h").exists() for folder in headers):
        return (
            f"Python.h is not in {' or '.join(sorted(headers))} (Debian and Ubuntu: apt-get "
            "install python3-dev)"
        )
    return None


def find_compiler() -> list[str]:
    """The C++ compiler's command line, empty where there is none."""
    wanted = command_line("CXX")
    for command in [wanted] if wanted else [["g++"], ["c++"], ["clang++"]]:
        if shutil.which(command[0]):
            return command
    return []


def complaint(compiler: Sequence[str], flags: Sequence[str]) -> str | None:
    """What the compiler has against a tiny program, or None."""
    command = [*compiler, "-std=c++17", *flags, "-x", "c++", "-S", "-", "-o", "-"]
    probe = subprocess.run(command, input=PROBE, capture_output=True, text=True, check=False)
    return None if probe.returncode == 0 else probe.stderr or f"exit status {probe.returncode}"


def macros(compiler: Sequence[str], flags: Sequence[str]) -> set[str]:
    """The macros that the compiler defines by itself; none where it does not know the flags."""
    command = [*compiler, *flags, "-dM", "-E", "-x", "c++", os.devnull]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return set(re.findall(r"^#define (\w+)", said, re.MULTILINE))


def why_not_cuda() -> str | None:
    """What is missing on this machine to compile CUDA, or None."""
    if sys.platform != "linux":
        return "the CUDA kernels are built on Linux only"
    if not find_nvcc():
        return (
            f"there is no nvcc: {TOOLKIT} and build with --no-build-isolation, or say in NVCC or "
            "CUDA_HOME where one is"
        )
    return None


def find_nvcc() -> list[str]:
    """nvcc's command line, empty where there is none."""
    wanted = command_line("NVCC")
    if wanted:
        if not shutil.which(wanted[0]):
            raise SystemExit(f"fastkd: NVCC={os.environ['NVCC']} is not there")
        return wanted
    site_packages = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
    candidates = [
        Path(os.environ.get("CUDA_HOME", "/no"), "bin/nvcc"),
        Path(shutil.which("nvcc") or "/no"),
        *(nvcc for folder in site_packages for nvcc in Path(folder).glob("nvidia/cu*/bin/nvcc")),
        Path("/usr/local/cuda/bin/nvcc"),  # where NVIDIA's installer leaves it, not on the PATH
    ]
    return [str(nvcc) for nvcc in candidates if nvcc.is_file()][:1]


def cuda_archs(nvcc: Sequence[str]) -> list[str]:
    """The chips to compile for, as in 90 or 90+PTX: FASTKD_CUDA_ARCHS, or those nvcc knows."""
    known = re.findall(r"^sm_(\w+)$", ask(nvcc, "--list-gpu-code"), re.MULTILINE)
    wanted = os.environ.get("FASTKD_CUDA_ARCHS")
    if not wanted:
        return [arch for arch in CUDA_ARCHS if arch.removesuffix("+PTX") in known]
    archs = wanted.split(";")
    strange = [arch for arch in archs if not re.fullmatch(r"\d{2,3}[af]?(\+PTX)?", arch)]
    if strange:
        raise SystemExit(f"fastkd: FASTKD_CUDA_ARCHS must look like 80;90+PTX, got {wanted!r}")
    unknown = [arch for arch in archs if arch.removesuffix("+PTX") not in known]
    if unknown:
        raise SystemExit(
            f"fastkd: FASTKD_CUDA_ARCHS has {', '.join(unknown)}, {shlex.join(nvcc)} knows "
            f"{', '.join(known)}"
        )
    return archs


def cuda_version(nvcc: Sequence[str]) -> str:
    """nvcc's version, as in 12.9."""
    said = ask(nvcc, "--version")
    found = re.search(r"\brelease (\d+\.\d+)", said)
    if not found:
        raise SystemExit(f"fastkd: {shlex.join(nvcc)} --version names no release:\n{said}")
    return found[1]


def toolkit_folder(nvcc: Sequence[str]) -> Path:
    """Where nvcc's toolkit is; nvcc itself may be a wrapper script elsewhere."""
    found = re.search(
        r"^#\$ TOP=(.+)$", ask(nvcc, "--dryrun", "-x", "cu", "-c", "/dev/null"), re.MULTILINE
    )
    return Path(found[1]).resolve() if found else Path(nvcc[0]).resolve().parents[1]


def ask(nvcc: Sequence[str], *question: str) -> str:
    """What nvcc says about itself."""
    command = [*nvcc, *question]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode != 0:
        raise SystemExit(
            f"fastkd: {shlex.join(command)} fails:\n{done.stdout}\n"
            "NVCC=... picks another nvcc; FASTKD_CUDA=0 leaves the CUDA kernels out"
        )
    return done.stdout
