# SPDX-License-Identifier: Apache-2.0
"""Losses of torch's own operations, some around kd_loss's kernel: what is measured of them.

They have no kernel of their own, so they are not among the cases of cases.py, whose tests are about
kernels: test_feature_*.py, test_dist_loss.py, test_standardized.py and test_linear_kd_loss.py test
them, and test_values.py the cases of linear_cases.py too.
"""

import dataclasses

import torch
from eager_losses import eager_dist_loss, eager_fsp_loss, eager_mse_loss, eager_nst_loss
from linear_cases import LINEAR_KD_LOSS
from logit_cases import KD_STANDARDIZED, LOGITS
from loss_case import BenchRow, Geometry, Inputs, Kernels, LossCase, ideal_bytes
from relational_cases import FEATURES, make_batches

_FP32, _BF16 = torch.float32, torch.bfloat16
_NO_KERNELS = Kernels("")


def make_layers(
    geometry: Geometry,
    student_dtype: torch.dtype = torch.float32,
    teacher_dtype: torch.dtype | None = None,
    seed: int = 0,
    *,
    device: torch.device | str = "cpu",
) -> Inputs:
    """Features of two layers of a student and of its teacher, of one shape."""
    dtypes = student_dtype, teacher_dtype
    first = make_batches(geometry, *dtypes, 2 * seed, device=device).tensors
    second = make_batches(geometry, *dtypes, 2 * seed + 1, device=device).tensors
    return Inputs((first[0], second[0], first[1], second[1]))


def _rows(dtype: torch.dtype, *shapes: tuple[int, ...]) -> tuple[BenchRow, ...]:
    return tuple(
        BenchRow(Geometry(shape, 1 if len(shape) > 2 else -1), dtype, most_threads_only=True)
        for shape in shapes
    )


_NST = LossCase(
    "nst_loss",
    "mean",
    {},
    make_batches,
    FEATURES,
    _NO_KERNELS,
    eager_nst_loss,
    _rows(_FP32, (32, 64, 28, 28)),
    _rows(_FP32, (32, 64, 28, 28), (64, 256, 14, 14)),
    ideal_bytes,
)
TORCH_CASES = (
    KD_STANDARDIZED,
    LINEAR_KD_LOSS,
    _NST,
    dataclasses.replace(
        _NST, loss="fsp_loss", make_inputs=make_layers, eager=eager_fsp_loss, in_pairs=True
    ),
    dataclasses.replace(
        _NST,
        loss="hint_loss",
        eager=eager_mse_loss,
        bench_rows=_rows(_FP32, (64, 256, 14, 14)),
        gpu_bench_rows=_rows(_BF16, (256, 512, 28, 28)),
    ),
    dataclasses.replace(
        _NST,
        loss="logit_mse_loss",
        family=LOGITS,
        eager=eager_mse_loss,
        bench_rows=_rows(_FP32, (256, 1000)),
        gpu_bench_rows=_rows(_BF16, (8192, 32000)),
    ),
    dataclasses.replace(
        _NST,
        loss="dist_loss",
        family=LOGITS,
        eager=eager_dist_loss,
        bench_rows=_rows(_FP32, (512, 1000), (256, 32000)),
        gpu_bench_rows=_rows(_FP32, (4096, 32000)),
    ),
)
