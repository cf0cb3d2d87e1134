# SPDX-License-Identifier: Apache-2.0
"""Environments for dev.py: one of our own with torch in it, and what is installed where.

Needs the standard library only.
"""

import importlib.util
import json
import os
import re
import shlex
import shutil
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from build_tools.processes import ROOT, Failure, run_quietly, step

VENV = ROOT / ".venv"
BUILT = ROOT / "build"  # where the environments of other Pythons are

FACTS = """
import importlib.metadata, json
installed = {d.name: d for d in importlib.metadata.distributions()}
url = json.loads("fastkd" in installed and installed["fastkd"].read_text("direct_url.json") or "{}")
print(json.dumps({
    "installed": {name: d.version for name, d in installed.items()},
    "in_place": url.get("dir_info", {}).get("editable") and url["url"]}))
"""
NVCC_FACTS = """
import json, sys
sys.path.insert(0, "")
from build_tools import tools
print(json.dumps({"nvcc": tools.find_nvcc()}))
"""


def ask(python: str | Path, script: str) -> dict[str, Any]:
    """What a script prints as JSON in another environment."""
    code, output = run_quietly([python, "-P", "-c", script])  # -P: not the egg-info in the tree
    if code:
        raise Failure(f"{python} fails:\n{output}")
    answer: dict[str, Any] = json.loads(output)
    return answer


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


def sees_gpu() -> bool:
    """Whether there is an NVIDIA GPU with a driver."""
    if not shutil.which("nvidia-smi"):
        return False
    code, output = run_quietly(["nvidia-smi", "-L"])
    return code == 0 and "GPU " in output


def missing(wanted: Sequence[str], python: str | Path) -> list[str]:
    """The requirements that are not installed: exact pins and lower bounds are compared."""

    def normal(name: str) -> str:  # PEP 503
        return re.sub(r"[-_.]+", "-", name).lower()

    installed = {normal(name): version for name, version in ask(python, FACTS)["installed"].items()}

    def satisfied(requirement: str) -> bool:
        found = installed.get(normal(re.split(r"[^\w.-]", requirement)[0]))
        if found is None:
            return False
        numbers = [[int(part) for part in re.findall(r"\d+", version)[:3]]
                   for version in (found, requirement.partition(">=")[2])]  # fmt: skip
        return requirement.partition("==")[2] in ("", found) and numbers[0] >= numbers[1]

    return [requirement for requirement in wanted if not satisfied(requirement)]


def install(python: Path, title: str, wanted: Sequence[str]) -> None:
    """Install what is missing."""
    if missing(wanted, python):
        step(f"installing {title}", pip_install(python, *wanted))


def requirements(extra: str) -> Iterator[str]:
    """The requirements of an extra of pyproject.toml."""
    for line in project()["project"]["optional-dependencies"][extra]:
        included = re.fullmatch(r"fastkd\[(.*)\]", line)
        if included:
            for name in included[1].split(","):
                yield from requirements(name.strip())
        else:
            yield line


def pinned(wanted: Sequence[str]) -> list[str]:
    """Requirements, in the version that the dev extra pins."""
    pins = {line.partition("==")[0]: line for line in requirements("dev") if "==" in line}
    named = [pins.get(re.split(r"[^\w.-]", line)[0], line) for line in wanted]
    return [*dict.fromkeys(named)]


def project() -> dict[str, Any]:
    """pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def provide(python: Path, group: str, *, there: bool) -> None:
    """Install a dependency group into our own environment, or name it to the owner of another."""
    wanted = project()["dependency-groups"][group]
    if there:
        return
    install = pip_install(python, *wanted)
    if not {VENV, BUILT} & {*python.parents}:
        install_it = shlex.join(map(str, install))
        raise Failure(
            f"this environment lacks {group} of pyproject.toml. Install it:\n    {install_it}\n"
            "or set FASTKD_CUDA=0 to do without CUDA"
        )
    step(f"installing {shlex.join(wanted)}", install)


def provide_nvcc(python: Path) -> None:
    """See to it that there is an nvcc."""
    provide(python, "cuda-build", there=bool(ask(python, NVCC_FACTS)["nvcc"]))
