# SPDX-License-Identifier: Apache-2.0
"""kd_loss over its kernel."""

import functools
from typing import Any

from fastkd import _native
from fastkd._native_module import NativeModule
from fastkd._options import KDLossInputs, KDLossOptions
from fastkd._validation import check_kd_loss
from fastkd.ops import _row_kernel, _standardized
from fastkd.ops._row_kernel import Result, RowLoss, row_options
from fastkd.ops._row_loss import paths_of
from fastkd.reference.kd_loss import evaluate


@functools.lru_cache(maxsize=256)
def _native_options(
    module: NativeModule, options: KDLossOptions, has_target: bool
) -> tuple[Any, Any]:
    alpha = options.alpha if has_target else 1.0
    return (
        module.KdLossOptions(
            options.temperature,
            alpha * options.soft_factor,
            1.0 - alpha,
            options.label_smoothing,
            _native.DIVERGENCE_CODES[options.formula],
            options.beta,
            0.0,  # a weight of decoupled_kd_loss
        ),
        row_options(module, options),
    )


_LOSS = RowLoss(
    "kd_loss",
    KDLossOptions,
    ("inplace", "function"),
    check_kd_loss,
    _native_options,
    evaluate,
)
_kernel = functools.partial(_row_kernel.forward, _LOSS)


def forward(inputs: KDLossInputs, options: KDLossOptions, with_grad: bool) -> Result:
    """Run the kernel on plain tensors of a device that has a module."""
    if options.standardize_logits:
        return _standardized.forward(_kernel, inputs, options, with_grad)
    return _kernel(inputs, options, with_grad)


PATHS = paths_of(_LOSS, forward)
