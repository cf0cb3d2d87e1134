# SPDX-License-Identifier: Apache-2.0
"""Fused knowledge-distillation losses for PyTorch.

functional, nn (the public lists)
    -> losses/     one file per loss: checks, choice of path, the docstring, the module
         -> ops/        autograd functions and registered ops  -> _native.py -> the compiled modules
                        (_backends.py finds and loads them)
         -> reference/  plain differentiable PyTorch: the oracle of the tests and the fallback
"""

from fastkd import functional, nn, reference
from fastkd._info import info
from fastkd._version import __version__
from fastkd.functional import kd_loss
from fastkd.nn import KDLoss

__all__ = ["KDLoss", "__version__", "functional", "info", "kd_loss", "nn", "reference"]
