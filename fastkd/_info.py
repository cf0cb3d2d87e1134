# SPDX-License-Identifier: Apache-2.0
"""What runs here, and why: a user must never wonder which path a call took."""

from typing import Any

import torch

from fastkd import _backends
from fastkd._version import __version__


def info() -> dict[str, Any]:
    """Tell the version, the native modules that load, and why others do not.

    Returns:
        version: of fastkd.
        torch: its version.
        cpu: the build that serves CPU tensors ("avx512", "avx2", "base"), or None: the reference.
        cpu_capabilities: the builds this CPU could run, best first.
        threads: "torch" (its own pool) or "serial" (torch < 2.10).
        cuda: the chips that the CUDA module has code for ("75;80;90+PTX"), or None: CUDA tensors
            take the reference.
        failures: why a module does not load or can't serve a GPU, by name ("avx2", "cuda",
            "cuda:0").

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
        # To ask about a GPU takes a context on it: of the others only what is known is told.
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
