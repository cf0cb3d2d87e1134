# SPDX-License-Identifier: Apache-2.0
"""What a GPU is and what runs on it. Imports torch and nothing of fastkd, which may not be built.

python -m benchmarks.gpu_facts             the same as JSON; {"problem": ...} if there is no GPU
python -m benchmarks.gpu_facts --dry-run   of a GPU that is only played, for gpu-check --dry-run
"""

import importlib.metadata
import json
import os
import platform
import re
import sys
from typing import Any

from benchmarks.commands import first_line

DRY_RUN = "dry run on a CPU"  # in place of a GPU's name
SIZES = ("gpu", "capability", "multiprocessors", "l2_mib", "gpu_memory_gib")  # of a GPU
_ASK_DRIVER = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")


def facts() -> dict[str, Any]:
    """The GPU and the versions that matter to a build, or {"problem": why not}."""
    try:
        import torch  # noqa: PLC0415 - its absence is one of the answers
    except ImportError as error:
        return {"problem": f"torch does not import ({error})"}
    if torch.version.cuda is None:
        return {"problem": f"torch {torch.__version__} is built without CUDA"}
    if not torch.cuda.is_available():
        return {"problem": f"torch {torch.__version__} sees no CUDA device"}
    return {**gpu(), **gpu_versions(), "cores": os.cpu_count(), "python": platform.python_version()}


def dry_facts() -> dict[str, Any]:
    """The same of a GPU that is not there: its name says so wherever it is written."""
    chip = {"gpu": DRY_RUN, "capability": 90, "multiprocessors": 0, "l2_mib": 0.0}
    return {**chip, "gpu_memory_gib": 0.0, **gpu_versions(), "cores": os.cpu_count()}


def gpu(index: int = 0) -> dict[str, Any]:
    """A GPU's name and sizes."""
    import torch  # noqa: PLC0415 - as above

    chip = torch.cuda.get_device_properties(index)
    return {
        "gpu": chip.name,
        "capability": 10 * chip.major + chip.minor,
        "multiprocessors": chip.multi_processor_count,
        "l2_mib": round(chip.L2_cache_size / 2**20, 1),
        "gpu_memory_gib": round(chip.total_memory / 2**30, 1),
    }


def gpu_versions() -> dict[str, str]:
    """Driver, torch, its CUDA, Triton (which torch.compile uses) and nvcc."""
    import torch  # noqa: PLC0415 - as above

    return {
        "driver": first_line(*_ASK_DRIVER) or "unknown",
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda or "none",
        "triton": _version_of("triton"),
        "nvcc": _nvcc_version(),
    }


def slug(name: str) -> str:
    """A GPU's name as a file name."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "gpu"


def find_nvcc() -> list[str]:
    """nvcc's command line, as the build finds it; empty where there is none."""
    try:
        from build_tools import tools  # noqa: PLC0415 - not there away from the source tree

        return tools.find_nvcc()
    except (ImportError, SystemExit):
        return []


def _nvcc_version() -> str:
    nvcc = find_nvcc()
    if not nvcc:
        return "none"
    from build_tools import tools  # noqa: PLC0415 - as above, where find_nvcc has found it

    try:
        return tools.cuda_version(nvcc)
    except SystemExit:
        return "unknown"


def _version_of(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


if __name__ == "__main__":
    print(json.dumps(dry_facts() if "--dry-run" in sys.argv[1:] else facts()))
