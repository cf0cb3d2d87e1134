# SPDX-License-Identifier: Apache-2.0
"""What runs here, and why: a user must never wonder which path a call took."""

from typing import Any

import torch

from fastkd import _native
from fastkd._version import __version__


def info() -> dict[str, Any]:
    """Tell the version, the native modules that load, and why others do not.

    Returns:
        version: of fastkd.
        torch: its version.
        cpu: the build that serves CPU tensors ("avx512", "avx2", "base"), or None: the reference.
        cpu_capabilities: the builds this CPU could run, best first.
        failures: why a build did not load, by name.
        threads: "torch" (its own pool) or "serial" (torch < 2.10).
        cuda: None: this version has no CUDA kernels, CUDA tensors take the reference.

    Example:
        >>> import fastkd
        >>> sorted(fastkd.info())
        ['cpu', 'cpu_capabilities', 'cuda', 'failures', 'threads', 'torch', 'version']
    """
    backend = _native.backend()
    return {
        "version": __version__,
        "torch": torch.__version__,
        "cpu": backend.capability,
        "cpu_capabilities": _native.cpu_capabilities(),
        "failures": dict(backend.failures),
        "threads": backend.threads,
        "cuda": None,
    }
