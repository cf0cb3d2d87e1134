# SPDX-License-Identifier: Apache-2.0
"""What is measured of the losses between the examples of a batch, and of attention transfer."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import eager_losses
import torch
from loss_case import BenchRow, Geometry, LossCase, Work, ideal_bytes
from torch import Tensor

_FP32, _BF16 = torch.float32, torch.bfloat16
_TRIPLETS = Work("triplet", lambda geometry: geometry.shape[0] ** 3)
_PAIRS = Work("pair", lambda geometry: geometry.shape[0] ** 2)


@dataclass(frozen=True)
class _Bench:
    eager: Callable[..., Tensor]
    rows: tuple[BenchRow, ...]
    gpu_rows: tuple[BenchRow, ...]
    work: Work | None = None
    reference_numbers: Callable[[Geometry], int] | None = None


def with_bench(case: LossCase) -> LossCase:
    """The case with what is measured of its loss."""
    bench = _BENCHES[case.loss]
    return dataclasses.replace(
        case,
        eager=bench.eager,
        bench_rows=bench.rows,
        gpu_bench_rows=bench.gpu_rows,
        ideal_bytes=ideal_bytes,
        work=bench.work,
        reference_numbers=bench.reference_numbers,
    )


def _numbers_of_triplets(geometry: Geometry) -> int:
    """Five tensors of N x N x D and of N x N x N: measured."""
    rows, features = geometry.shape
    return 5 * rows * rows * (rows + features)


def _numbers_of_differences(geometry: Geometry) -> int:
    rows, features = geometry.shape
    return 5 * rows * rows * features


def _numbers_of_pairs(geometry: Geometry) -> int:
    rows, *features = geometry.shape
    return 16 * rows * (rows + torch.Size(features).numel())


def _row(*shape: int, dim: int = -1, dtype: torch.dtype = _FP32, one: bool = False) -> BenchRow:
    """`one`: on one thread too."""
    return BenchRow(Geometry(shape, dim), dtype, most_threads_only=not one)


def _beyond_eager(rows: int, features: int) -> BenchRow:
    why = f"N^3 tensors of {4e-9 * rows**3:.3g} GB"
    spared = dict.fromkeys(("eager", "torch.compile"), why)
    return BenchRow(Geometry((rows, features)), _FP32, spared, most_threads_only=True)


_PAIR_ROWS = (_row(256, 512),)
_GPU_PAIR_ROWS = (_row(256, 512), _row(4096, 256))
_BENCHES = {
    "rkd_loss": _Bench(
        eager_losses.eager_rkd_loss,
        (
            _row(64, 128),
            _row(128, 512, one=True),
            _row(256, 512),
            _row(512, 512),
            *(_beyond_eager(rows, 256) for rows in (1024, 2048, 4096)),
        ),
        (
            _row(256, 512),
            _row(1024, 256),
            _row(4096, 256),
            _row(64, 256),
            _row(512, 512),
            _row(2048, 256),
        ),
        _TRIPLETS,
        _numbers_of_triplets,
    ),
    "rkd_distance_loss": _Bench(
        eager_losses.eager_rkd_distance_loss,
        _PAIR_ROWS,
        _GPU_PAIR_ROWS,
        _PAIRS,
        _numbers_of_differences,
    ),
    "rkd_angle_loss": _Bench(
        eager_losses.eager_rkd_angle_loss,
        _PAIR_ROWS,
        (_row(256, 512),),
        _TRIPLETS,
        _numbers_of_triplets,
    ),
    **{
        loss: _Bench(eager, _PAIR_ROWS, _GPU_PAIR_ROWS, _PAIRS, _numbers_of_pairs)
        for loss, eager in (
            ("similarity_preserving_loss", eager_losses.eager_similarity_preserving_loss),
            ("cosine_similarity_loss", eager_losses.eager_cosine_similarity_loss),
            ("pkt_loss", eager_losses.eager_pkt_loss),
            ("correlation_loss", eager_losses.eager_correlation_loss),
        )
    },
    "attention_transfer_loss": _Bench(
        eager_losses.eager_attention_transfer_loss,
        (
            _row(64, 256, 14, 14, dim=1, one=True),
            _row(64, 256, 14, 14, dim=1, dtype=_BF16, one=True),
        ),
        tuple(
            _row(*shape, dim=1, dtype=dtype)
            for dtype in (_BF16, _FP32)
            for shape in ((256, 512, 28, 28), (64, 256, 14, 14))
        ),
    ),
}
