# SPDX-License-Identifier: Apache-2.0
"""decoupled_kd_loss over its kernel."""

import functools
from typing import Any

from fastkd import _native
from fastkd._native_module import NativeModule
from fastkd._options import DecoupledKDLossOptions
from fastkd._validation import check_decoupled_kd_loss
from fastkd.ops._row_kernel import RowLoss, row_options
from fastkd.ops._row_loss import paths_of
from fastkd.reference.decoupled_kd_loss import evaluate


@functools.lru_cache(maxsize=256)
def _native_options(
    module: NativeModule, options: DecoupledKDLossOptions, _has_target: bool
) -> tuple[Any, Any]:
    return (
        module.KdLossOptions(
            options.temperature,
            options.beta * options.soft_factor,
            options.hard_weight,
            0.0,  # label smoothing
            _native.DIVERGENCE_CODES["decoupled"],
            0.0,  # of another divergence
            options.alpha * options.soft_factor,
        ),
        row_options(module, options),
    )


PATHS = paths_of(
    RowLoss(
        "decoupled_kd_loss",
        DecoupledKDLossOptions,
        ("inplace",),
        check_decoupled_kd_loss,
        _native_options,
        evaluate,
    )
)
