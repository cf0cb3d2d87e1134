# SPDX-License-Identifier: Apache-2.0
"""Cases of topk_kd_loss."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from eager_losses import eager_topk_kd_loss
from logit_cases import LOGITS, make_row_keywords
from loss_case import BenchRow, Geometry, Inputs, Kernels, LossCase, ideal_bytes

_KERNELS = Kernels("topk_kd_loss", ("scale_gradient",))
_FP32, _BF16 = torch.float32, torch.bfloat16


def make_topk(
    geometry: Geometry,
    student_dtype: torch.dtype = torch.float32,
    teacher_dtype: torch.dtype | None = None,
    seed: int = 0,
    *,
    count: int = 8,
    logits: bool = False,
    padded: bool = False,
    hard: bool = True,
    weighted: bool = False,
    ignored: bool = False,
    scale: float = 3.0,
    device: torch.device | str = "cpu",
) -> Inputs:
    """Random logits, and of a random teacher what it says of its `count` largest."""
    place: dict[str, Any] = {
        "generator": torch.Generator(device).manual_seed(seed),
        "device": device,
    }
    dim = geometry.dim
    student = torch.randn(geometry.shape, **place).mul_(scale).to(student_dtype)
    teacher = torch.randn(geometry.shape, **place).mul_(scale)
    values, indices = teacher.topk(min(count, geometry.classes), dim)
    if not logits:
        values = values - teacher.logsumexp(dim, keepdim=True)
    if padded:
        values[torch.rand(values.shape, **place) < 0.3] = -torch.inf
    order = torch.randperm(values.shape[dim], **place)  # any order will do
    values = values.index_select(dim, order).to(teacher_dtype or student_dtype)
    rest = make_row_keywords(geometry, place, hard=hard, weighted=weighted, ignored=ignored)
    tensors = student, values, indices.index_select(dim, order)
    return Inputs(tensors, {"dim": dim, **rest})


def make_cached(geometry: Geometry, *args: Any, **keywords: Any) -> Inputs:
    """What a cache of language models holds: 64 entries."""
    return make_topk(geometry, *args, count=64, **keywords)


def _soft_weighted(geometry: Geometry, *args: Any, **keywords: Any) -> Inputs:
    return make_topk(geometry, *args, hard=False, weighted=True, **keywords)


def _ignored(geometry: Geometry, *args: Any, **keywords: Any) -> Inputs:
    return make_topk(geometry, *args, ignored=True, padded=True, count=40, **keywords)


def _weighted(geometry: Geometry, *args: Any, **keywords: Any) -> Inputs:
    return make_topk(geometry, *args, weighted=True, ignored=True, count=20, **keywords)


def _logits(geometry: Geometry, *args: Any, **keywords: Any) -> Inputs:
    return make_topk(geometry, *args, logits=True, count=5, **keywords)


TOPK_KD_LOSS = LossCase(
    "topk_kd_loss",
    "k64",
    {"alpha": 0.5, "reduction": "batchmean"},
    make_cached,
    LOGITS,
    _KERNELS,
    eager_topk_kd_loss,
    tuple(
        BenchRow(Geometry(shape), dtype, most_threads_only=shape[1] == 1000)
        for shape in ((256, 1000), (512, 32000))
        for dtype in (_FP32, _BF16)
    ),
    tuple(
        BenchRow(Geometry(shape), dtype)
        for dtype in (_BF16, _FP32)
        for shape in ((65536, 1000), (8192, 32000), (4096, 128256))
    ),
    ideal_bytes,
)


def _case(label: str, options: Mapping[str, Any], make_inputs: Callable[..., Inputs]) -> LossCase:
    return LossCase("topk_kd_loss", label, options, make_inputs, LOGITS, _KERNELS)


TOPK_CASES = (
    TOPK_KD_LOSS,
    _case("t4-rows", {"temperature": 4.0, "alpha": 0.3, "reduction": "none"}, _ignored),
    _case(
        "t3-smoothed",
        {"temperature": 3.0, "alpha": 0.6, "label_smoothing": 0.1, "reduction": "sum"},
        _weighted,
    ),
    _case("soft-only", {"temperature": 2.0, "temperature_squared": False}, _soft_weighted),
    _case("truncate", {"tail": "truncate", "alpha": 1.0, "reduction": "sum"}, _weighted),
    _case("teacher", {"tail": "renormalize_teacher", "temperature": 0.5}, _ignored),
    _case(
        "logits-named-only",
        {"teacher_is": "logits", "tail": "renormalize", "temperature": 4.0, "alpha": 0.9},
        _logits,
    ),
    _case(
        "logits-teacher-rows",
        {"teacher_is": "logits", "tail": "renormalize_teacher", "reduction": "none"},
        _logits,
    ),
    _case("alpha0", {"alpha": 0.0, "num_items": 37}, _ignored),
)
