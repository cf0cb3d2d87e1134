# SPDX-License-Identifier: Apache-2.0
"""The version, the native modules in use, and the reason for each module that cannot be used."""

from typing import Any

import torch

from fastkd import _backends
from fastkd._version import __version__


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
        failures: the reason for each module that did not load or cannot serve a GPU, by name
            ("avx2", "cuda", "cuda:0").

    Example:
        >>> import fastkd
        >>> sorted(fastkd.info())
        ['cpu', 'cpu_capabilities', 'cuda', 'failures', 'threads', 'torch', 'version']
    """
    backend = _backends.cpu_backend()
    archs, why = _backends.cuda_archs()
    failures = dict(backend.failures)
    if archs is None:
        failures["cuda"] = why
    elif torch.cuda.is_available():
        # Asking about a GPU creates a context on it, so only the GPUs in use are asked about.
        for device in sorted({torch.cuda.current_device(), *_backends.known_gpus()}):
            if _backends.loaded_module(device) is None:
                failures[f"cuda:{device}"] = _backends.failure(device)
    return {
        "version": __version__,
        "torch": torch.__version__,
        "cpu": backend.capability,
        "cpu_capabilities": _backends.cpu_capabilities(),
        "threads": backend.threads,
        "cuda": archs,
        "failures": failures,
    }
