# SPDX-License-Identifier: Apache-2.0
"""A wheel that another machine built: whether it fits here, and how it is used without installing.

Standard library only.
"""

import platform
import shutil
import sys
import zipfile
from pathlib import Path

from benchmarks import ROOT

NAMES = ("fastkd", "fastkd_cu12")  # of wheels for CUDA 13 and for CUDA 12
# What runs beside an unpacked wheel: fastkd is not among it, so that the wheel's is imported.
BESIDE = ("tests", "benchmarks", "pyproject.toml")


def why_not(wheel: Path) -> str:
    """Why a wheel cannot be used on this machine, or ""."""
    if not zipfile.is_zipfile(wheel):
        return f"{wheel} is no wheel"
    name = wheel.name.removesuffix(".whl").split("-")
    if len(name) < 5 or name[0] not in NAMES:
        return f"{wheel.name} is not named as a wheel of fastkd, fastkd-VERSION-PYTHON-ABI-PLATFORM"
    python, target = f"cp{sys.version_info[0]}{sys.version_info[1]}", name[-1]
    if name[-3] != python:
        return f"{wheel.name} is for {name[-3]}, this Python is {python} ({sys.executable})"
    if not ("linux" in target and target.endswith(platform.machine())):
        return f"{wheel.name} is for {target}, this is {platform.system()} {platform.machine()}"
    with zipfile.ZipFile(wheel) as archive:
        if not any(entry.startswith("fastkd/_cuda.") for entry in archive.namelist()):
            return f"{wheel.name} has no CUDA kernels (python3 dev.py wheel --cuda makes one)"
    return ""


def unpack(wheel: Path, folder: Path) -> tuple[Path, Path]:
    """Unpack a wheel and copy what runs beside it; both folders, the package's first."""
    package, tree = folder / "wheel", folder / "tree"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(package)
    tree.mkdir()
    for name in BESIDE:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, tree)
    return package.resolve(), tree.resolve()
