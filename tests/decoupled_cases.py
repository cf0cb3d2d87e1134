# SPDX-License-Identifier: Apache-2.0
"""Cases of decoupled_kd_loss."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from eager_losses import eager_decoupled_kd_loss
from logit_cases import LOGITS, make_logits
from loss_case import BenchRow, Geometry, Inputs, Kernels, LossCase, ideal_bytes

_KERNELS = Kernels("kd_loss", ("scale_gradient",))
_FP32, _BF16 = torch.float32, torch.bfloat16

DECOUPLED_KD_LOSS = LossCase(
    "decoupled_kd_loss",
    "t4",
    {"temperature": 4.0, "alpha": 1.0, "beta": 8.0, "reduction": "batchmean"},
    make_logits,
    LOGITS,
    _KERNELS,
    eager_decoupled_kd_loss,
    tuple(
        BenchRow(Geometry(shape, dim), dtype, most_threads_only=True)
        for shape, dim in (((128, 100), -1), ((256, 1000), -1), ((8, 19, 256, 256), 1))
        for dtype in (_FP32, _BF16)
    ),
    tuple(
        BenchRow(Geometry(shape, dim), dtype)
        for dtype in (_BF16, _FP32)
        for shape, dim in (((65536, 1000), -1), ((64, 19, 256, 256), 1))
    ),
    ideal_bytes,
)


def _weighted(geometry: Geometry, *args: Any, **keywords: Any) -> Inputs:
    return make_logits(geometry, *args, weighted=True, ignored=True, **keywords)


def _case(label: str, options: Mapping[str, Any], make_inputs: Callable[..., Inputs]) -> LossCase:
    return LossCase("decoupled_kd_loss", label, options, make_inputs, LOGITS, _KERNELS)


_MANY_ROWS = tuple(g for g in LOGITS.geometries if math.prod(g.rows) not in range(1, 30))
DECOUPLED_CASES = (
    DECOUPLED_KD_LOSS,
    _case("t4-hard", {"hard_weight": 1.0}, make_logits),
    _case(
        "t3-hard-rows",
        {"temperature": 3.0, "beta": 2.0, "hard_weight": 0.5, "reduction": "none"},
        _weighted,
    ),
    _case("t1-others-only", {"temperature": 1.0, "alpha": 0.0, "reduction": "sum"}, _weighted),
    # Of few rows the largest loss may be one where p_y and q_y nearly agree: then it has no more
    # digits than float32's odds, whoever computes them.
    dataclasses.replace(
        _case("label-only", {"beta": 0.0, "temperature_squared": False}, make_logits),
        family=dataclasses.replace(LOGITS, geometries=_MANY_ROWS, mixed=LOGITS.mixed[-1:]),
    ),
)
