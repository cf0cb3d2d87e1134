# SPDX-License-Identifier: Apache-2.0
"""Cases of the losses of logits: kd_loss with its options."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from eager_losses import eager_kd_loss, eager_standardized_kd_loss
from loss_case import BenchRow, Family, Geometry, Inputs, Kernels, LossCase, ideal_bytes
from torch import Tensor


def make_logits(
    geometry: Geometry,
    student_dtype: torch.dtype = torch.float32,
    teacher_dtype: torch.dtype | None = None,
    seed: int = 0,
    *,
    hard: bool = True,
    weighted: bool = False,
    ignored: bool = False,
    scale: float = 3.0,
    device: torch.device | str = "cpu",
) -> Inputs:
    """Random logits with a spread of `scale`, targets, and per-row weights if asked for."""
    place: dict[str, Any] = {
        "generator": torch.Generator(device).manual_seed(seed),
        "device": device,
    }

    def normal(dtype: torch.dtype) -> Tensor:
        return torch.randn(geometry.shape, **place).mul_(scale).to(dtype)

    student, teacher = normal(student_dtype), normal(teacher_dtype or student_dtype)
    rest = make_row_keywords(geometry, place, hard=hard, weighted=weighted, ignored=ignored)
    return Inputs((student, teacher), {"dim": geometry.dim, **rest})


def make_row_keywords(
    geometry: Geometry, place: dict[str, Any], *, hard: bool, weighted: bool, ignored: bool
) -> dict[str, Any]:
    """Targets and weights of the rows, from the generator and on the device of `place`."""
    keywords: dict[str, Any] = {}
    if hard:
        target = torch.randint(0, geometry.classes, geometry.rows, **place)
        if ignored:
            target[torch.rand(geometry.rows, **place) < 0.3] = -100
        keywords["target"] = target
    if weighted:
        weight = torch.rand(geometry.rows, **place)
        weight[torch.rand(geometry.rows, **place) < 0.2] = 0
        keywords["sample_weight"] = weight
    return keywords


def _soft_only(geometry: Geometry, *args: Any, **keywords: Any) -> Inputs:
    return make_logits(geometry, *args, hard=False, **keywords)


def _weighted(geometry: Geometry, *args: Any, **keywords: Any) -> Inputs:
    return make_logits(geometry, *args, weighted=True, ignored=True, **keywords)


def _ignored(geometry: Geometry, *args: Any, **keywords: Any) -> Inputs:
    return make_logits(geometry, *args, ignored=True, **keywords)


def _soft_weighted(geometry: Geometry, *args: Any, **keywords: Any) -> Inputs:
    return make_logits(geometry, *args, hard=False, weighted=True, **keywords)


_FP32, _BF16 = torch.float32, torch.bfloat16
_KD_BENCH_ROWS = tuple(
    BenchRow(Geometry(shape, dim), dtype)
    for shape, dim, dtypes in (
        ((8, 10), -1, (_FP32,)),
        ((128, 10), -1, (_FP32, _BF16)),
        ((128, 100), -1, (_FP32, _BF16)),
        ((256, 1000), -1, (_FP32, _BF16)),
        ((64, 21841), -1, (_FP32, _BF16)),
        ((512, 32000), -1, (_FP32, _BF16)),
        ((256, 128256), -1, (_FP32, _BF16)),
        ((8, 19, 256, 256), 1, (_FP32, _BF16)),
    )
    for dtype in dtypes
)
# In the order of what matters most, for a run that is short of time.
_KD_GPU_BENCH_ROWS = tuple(
    BenchRow(Geometry(shape, dim), dtype)
    for dtype in (_BF16, _FP32)
    for shape, dim in (
        ((8, 10), -1),
        ((1 << 20, 10), -1),
        ((65536, 100), -1),
        ((65536, 1000), -1),
        ((16384, 4096), -1),
        ((16384, 8192), -1),
        ((8192, 32000), -1),
        ((4096, 50257), -1),
        ((4096, 128256), -1),
        ((2048, 262144), -1),
        ((64, 19, 256, 256), 1),
        ((16, 150, 128, 128), 1),
    )
)

# 1x1, one vector and its neighbours, a chunk and its neighbours, a long row, 3-D, maps, no rows.
_GEOMETRIES = (
    Geometry((1, 1)),
    Geometry((5, 2)),
    Geometry((8, 10)),
    Geometry((3, 16)),
    Geometry((4, 17)),
    Geometry((7, 100)),
    Geometry((10,)),
    Geometry((3, 1023)),
    Geometry((3, 1024)),
    Geometry((3, 1025)),
    Geometry((2, 2500)),
    Geometry((2, 40001)),
    Geometry((2, 3, 50)),
    Geometry((2, 19, 5, 7), 1),
    Geometry((3, 10, 4, 4), 1),
    Geometry((1, 150, 9, 15), 1),
    Geometry((2, 1500, 12), 1),
    Geometry((33, 40), 0),
    Geometry((3, 5, 2), 1),
    Geometry((0, 10)),
    Geometry((2, 0, 10)),
    Geometry((0, 19, 8, 8), 1),
)

LOGITS = Family(
    geometries=_GEOMETRIES,
    mixed=(Geometry((6, 37)), Geometry((2, 2100)), Geometry((2, 21, 9, 9), 1)),
    scaled=(Geometry((9, 37)), Geometry((2, 21, 9, 9), 1)),
    plain=(Geometry((6, 37)), Geometry((9, 21)), Geometry((4, 50))),
    small=Geometry((3, 5)),
    large=Geometry((64, 4096)),
    threaded=(Geometry((64, 1000)), Geometry((2, 19, 40, 40), 1)),
    reductions=("none", "batchmean"),
)
_KD_KERNELS = Kernels("kd_loss", ("scale_gradient",))

KD_LOSS = LossCase(
    "kd_loss",
    "t4",
    {"temperature": 4.0, "alpha": 0.5, "reduction": "batchmean"},
    make_logits,
    LOGITS,
    _KD_KERNELS,
    eager_kd_loss,
    _KD_BENCH_ROWS,
    _KD_GPU_BENCH_ROWS,
    ideal_bytes,
)


def _case(label: str, options: Mapping[str, Any], make_inputs: Callable[..., Inputs]) -> LossCase:
    return LossCase("kd_loss", label, options, make_inputs, LOGITS, _KD_KERNELS)


def _divergence(name: str) -> LossCase:
    """kd_loss with another divergence, measured where users of large vocabularies are."""
    rows = tuple(
        BenchRow(Geometry(shape, dim), dtype, most_threads_only=True)
        for shape, dim in (((512, 32000), -1), ((8, 19, 256, 256), 1))
        for dtype in (_FP32, _BF16)
    )
    return dataclasses.replace(
        KD_LOSS,
        label=name,
        options={**KD_LOSS.options, "divergence": name},
        bench_rows=rows,
        gpu_bench_rows=tuple(BenchRow(Geometry((8192, 32000)), dtype) for dtype in (_BF16, _FP32)),
    )


# Around the kernels with torch's own operations, so measured and tested as those are.
KD_STANDARDIZED = dataclasses.replace(
    KD_LOSS,
    label="standardized",
    options={**KD_LOSS.options, "standardize_logits": True},
    eager=eager_standardized_kd_loss,
    bench_rows=tuple(
        BenchRow(Geometry(shape), _FP32, most_threads_only=True)
        for shape in ((128, 100), (512, 32000))
    ),
    gpu_bench_rows=(BenchRow(Geometry((8192, 32000)), _BF16),),
)

KD_CASES = (
    KD_LOSS,
    _case("t1", {"temperature": 1.0, "alpha": 0.3}, make_logits),
    _case("t2-weighted", {"temperature": 2.0, "alpha": 0.7}, _weighted),
    _case(
        "t3.5-smoothed",
        {"temperature": 3.5, "alpha": 0.6, "label_smoothing": 0.1, "reduction": "sum"},
        make_logits,
    ),
    _case("t0.5-rows", {"temperature": 0.5, "alpha": 0.5, "reduction": "none"}, _ignored),
    _case(
        "t4-smoothed-rows",
        {"temperature": 4.0, "alpha": 0.2, "label_smoothing": 0.3, "reduction": "none"},
        _weighted,
    ),
    _case("soft-only", {"temperature": 4.0}, _soft_only),
    _case(
        "soft-weighted-no-t2",
        {"temperature": 3.0, "temperature_squared": False, "reduction": "batchmean"},
        _soft_weighted,
    ),
    _case("alpha1", {"temperature": 2.0, "alpha": 1.0}, make_logits),
    _case("alpha0", {"temperature": 2.0, "alpha": 0.0}, _ignored),
    _case("num-items", {"temperature": 4.0, "alpha": 0.9, "num_items": 37}, _ignored),
    _divergence("reverse_kl"),
    _case("reverse-t1", {"divergence": "reverse_kl", "alpha": 0.7}, _weighted),
    _case(
        "reverse-rows",
        {"divergence": "reverse_kl", "temperature": 2.0, "reduction": "none"},
        _soft_only,
    ),
    _divergence("js"),
    _case("js-t1-smoothed", {"divergence": "js", "label_smoothing": 0.1}, make_logits),
    _case(
        "js-beta-rows",
        {"divergence": "js", "beta": 0.1, "temperature": 3.0, "reduction": "none"},
        _soft_weighted,
    ),
    _divergence("tv"),
    _case("tv-t1", {"divergence": "tv", "alpha": 0.6}, _ignored),
    _case("tv-rows", {"divergence": "tv", "temperature": 1.5, "reduction": "none"}, _soft_only),
)
