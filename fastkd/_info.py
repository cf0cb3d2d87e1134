# SPDX-License-Identifier: Apache-2.0
"""The version, the native modules in use, and the reason for each module that cannot be used."""

import importlib.metadata
from typing import Any

import torch

from fastkd import _backends
from fastkd._version import __version__

# What this package may be called for pip: build_tools/metadata.py.
DISTRIBUTIONS = ("fastkd", "fastkd-cu12")


def info() -> dict[str, Any]:
    """Return the version, the native modules in use, and why a module cannot be used.

    Returns:
        version: the version of fastkd.
        torch: the version of torch.
        cpu: the build that serves CPU tensors ("avx512", "avx2", "base"), or None if the reference
            serves them.
        cpu_capabilities: the builds that this CPU can run, best first.
        threads: "torch" (torch's own thread pool) or "serial" (torch < 2.10).
        cuda: the chips that the CUDA module has code for ("75;80;90+PTX"), or None if the reference
            serves CUDA tensors.
        cuda_runtime: the CUDA version that the CUDA module was built with ("13.0"), or None if
            there is no CUDA module.
        cuda_driver_needed: the oldest CUDA version that the NVIDIA driver must support for that
            module ("13.0"), or None.
        cuda_driver: the newest CUDA version that the driver supports, as nvidia-smi shows it
            ("12.4"), or None if there is no driver or no CUDA module.
        failures: the reason for each module that did not load or cannot serve a GPU, by name
            ("avx2", "cuda", "cuda:0"). "install": two distributions of fastkd share a folder.

    Example:
        >>> import fastkd
        >>> [name for name in fastkd.info() if name.startswith("cuda")]
        ['cuda', 'cuda_runtime', 'cuda_driver_needed', 'cuda_driver']
    """
    backend = _backends.cpu_backend()
    module, why = _backends.cuda_module()
    failures = dict(backend.failures)
    if module is None:
        failures["cuda"] = why
    elif problem := module.driver_problem():
        failures["cuda"] = problem
    elif torch.cuda.is_available():
        # Asking about a GPU creates a context on it, so only the GPUs in use are asked about.
        for device in sorted({torch.cuda.current_device(), *_backends.known_gpus()}):
            if _backends.loaded_module(device) is None:
                failures[f"cuda:{device}"] = _backends.failure(device)
    names = installed_distributions()
    if len(names) > 1:
        failures["install"] = (
            f"{' and '.join(names)} are both installed, and the last one has overwritten the "
            "files of the other: uninstall both, then install one"
        )
    runtime = None if module is None else str(module.cuda_runtime)
    return {
        "version": __version__,
        "torch": torch.__version__,
        "cpu": backend.capability,
        "cpu_capabilities": _backends.cpu_capabilities(),
        "threads": backend.threads,
        "cuda": None if module is None else str(module.archs),
        "cuda_runtime": runtime,
        # Minor versions of one CUDA major are compatible.
        "cuda_driver_needed": runtime and f"{runtime.partition('.')[0]}.0",
        "cuda_driver": None if module is None else module.cuda_driver(),
        "failures": failures,
    }


def installed_distributions() -> list[str]:
    """The names under which pip has installed this package; none for a source tree."""
    return [
        name
        for name in DISTRIBUTIONS
        # A build leaves metadata in the source tree too, without the list of what is installed.
        if any(found.read_text("RECORD") for found in importlib.metadata.distributions(name=name))
    ]
