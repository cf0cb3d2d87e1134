# SPDX-License-Identifier: Apache-2.0
"""topk_kd_loss over its kernel."""

import functools
from typing import Any

from fastkd import _native
from fastkd._native_module import NativeModule
from fastkd._options import KDLossInputs, TopKKDLossOptions
from fastkd._topk_validation import check_topk_kd_loss
from fastkd.ops import _row_kernel
from fastkd.ops._row_kernel import Result, RowLoss, row_options
from fastkd.ops._row_loss import paths_of
from fastkd.reference.topk_kd_loss import evaluate


@functools.lru_cache(maxsize=256)
def _native_options(
    module: NativeModule, options: TopKKDLossOptions, has_target: bool
) -> tuple[Any, Any]:
    alpha = options.alpha if has_target else 1.0
    return (
        module.TopKKdLossOptions(
            options.temperature,
            alpha * options.soft_factor,
            1.0 - alpha,
            options.label_smoothing,
            _native.TAIL_CODES[options.tail],
            options.teacher_is == "logits",
        ),
        row_options(module, options),
    )


_LOSS = RowLoss(
    "topk_kd_loss",
    TopKKDLossOptions,
    ("inplace", "function"),
    check_topk_kd_loss,
    _native_options,
    evaluate,
    teacher="teacher_values",
)
PATHS = paths_of(_LOSS)


def forward(inputs: KDLossInputs, options: TopKKDLossOptions, with_grad: bool) -> Result:
    """Run the kernel on plain tensors of a device that has a module."""
    return _row_kernel.forward(_LOSS, inputs, options, with_grad)
