# SPDX-License-Identifier: Apache-2.0
"""Cases of the losses between the examples of a batch, and of attention transfer."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from loss_case import Family, Geometry, Inputs, Kernels, LossCase
from relational_benches import with_bench
from torch import Tensor


def make_batches(
    geometry: Geometry,
    student_dtype: torch.dtype = torch.float32,
    teacher_dtype: torch.dtype | None = None,
    seed: int = 0,
    *,
    device: torch.device | str = "cpu",
) -> Inputs:
    """Random embeddings or features of a student and its teacher."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    student = normal(geometry.shape, student_dtype)
    teacher = normal(geometry.teacher or geometry.shape, teacher_dtype or student_dtype)
    return Inputs((student, teacher))


# Batches around a vector of lanes and a block of rows, narrow and wide; fewer rows, one column and
# all that is degenerate: test_relational_numerics.py.
EMBEDDINGS = Family(
    geometries=(
        Geometry((3, 3), teacher=(3, 16)),
        Geometry((5, 16), teacher=(5, 40)),
        Geometry((16, 40)),
        Geometry((17, 3), teacher=(17, 130)),
        Geometry((33, 130), teacher=(33, 3)),
        Geometry((64, 16)),
        Geometry((65, 130), teacher=(65, 40)),
    ),
    mixed=(Geometry((17, 40), teacher=(17, 19)),),
    scaled=(Geometry((9, 37)),),
    plain=(
        Geometry((6, 37), teacher=(6, 20)),
        Geometry((9, 21), teacher=(9, 33)),
        Geometry((4, 50), teacher=(4, 7)),
    ),
    small=Geometry((4, 3), teacher=(4, 2)),
    large=Geometry((64, 1024)),
    threaded=(Geometry((65, 40)),),
    reductions=("mean", "sum"),
    kind="relations",
)
# From one position to many, samples that end inside a vector; odd sizes.
FEATURES = Family(
    geometries=(
        Geometry((2, 3, 4), 1, (2, 5, 4)),
        Geometry((2, 5, 7, 9), 1, (2, 3, 7, 9)),
        Geometry((1, 19, 5, 7), 1),
        Geometry((3, 16, 14, 14), 1, (3, 40, 14, 14)),
        Geometry((2, 130, 3, 3), 1, (2, 17, 3, 3)),
        Geometry((2, 3, 33, 35), 1),
        Geometry((5, 64, 1, 2), 1, (5, 1, 1, 2)),
        Geometry((2, 8, 3, 4, 5), 1),
    ),
    mixed=(Geometry((2, 21, 9, 9), 1, (2, 12, 9, 9)), Geometry((3, 7, 2, 3), 1)),
    scaled=(Geometry((2, 21, 5, 9), 1),),
    plain=(
        Geometry((3, 5, 4, 6), 1, (3, 7, 4, 6)),
        Geometry((2, 9, 5, 3), 1, (2, 4, 5, 3)),
        Geometry((4, 3, 7, 8), 1, (4, 6, 7, 8)),
    ),
    small=Geometry((2, 3, 2, 2), 1, (2, 2, 2, 2)),
    large=Geometry((64, 16, 16, 16), 1),
    threaded=(Geometry((5, 40, 30, 30), 1), Geometry((64, 8, 3, 3), 1)),
    reductions=("mean", "sum"),
    kind="features",
)
# Features for a loss that flattens them.
FLATTENED = dataclasses.replace(
    EMBEDDINGS,
    geometries=(*EMBEDDINGS.geometries, Geometry((5, 3, 2, 2), teacher=(5, 7))),
)


def few(family: Family, *indices: int) -> Family:
    """Fewer geometries, for options that change what is computed of each entry only."""
    return dataclasses.replace(
        family, geometries=tuple(family.geometries[i] for i in indices or (2, 4))
    )


_RKD, _TABLE = Kernels("rkd_loss"), Kernels("similarity_loss")
_ATTENTION = Kernels("attention_transfer_loss", ("attention_transfer_gradient",))


def _case(
    loss: str, label: str, options: Mapping[str, Any], family: Family, kernels: Kernels
) -> LossCase:
    return LossCase(loss, label, options, make_batches, family, kernels)


# With the authors' options; these are measured too.
PLAIN_PAIR_CASES = (
    with_bench(_case("rkd_distance_loss", "mean", {}, EMBEDDINGS, _RKD)),
    with_bench(_case("rkd_angle_loss", "mean", {}, EMBEDDINGS, _RKD)),
    with_bench(_case("rkd_loss", "mean", {}, EMBEDDINGS, _RKD)),
    with_bench(_case("similarity_preserving_loss", "mean", {}, FLATTENED, _TABLE)),
    with_bench(_case("cosine_similarity_loss", "mean", {}, EMBEDDINGS, _TABLE)),
    with_bench(_case("pkt_loss", "mean", {}, EMBEDDINGS, _TABLE)),
    with_bench(_case("correlation_loss", "mean", {}, EMBEDDINGS, _TABLE)),
)
PAIR_CASES = (
    *PLAIN_PAIR_CASES,
    _case(
        "rkd_distance_loss",
        "l1-distinct",
        {"criterion": "l1", "reduction": "mean_distinct"},
        few(EMBEDDINGS),
        _RKD,
    ),
    _case(
        "rkd_distance_loss",
        "l2-squared-sum",
        {"criterion": "l2", "squared": True, "reduction": "sum"},
        few(EMBEDDINGS),
        _RKD,
    ),
    _case("rkd_distance_loss", "beta", {"beta": 0.25, "squared": True}, few(EMBEDDINGS), _RKD),
    _case(
        "rkd_angle_loss",
        "l1-distinct",
        {"criterion": "l1", "reduction": "mean_distinct"},
        few(EMBEDDINGS),
        _RKD,
    ),
    _case(
        "rkd_angle_loss", "l2-sum", {"criterion": "l2", "reduction": "sum"}, few(EMBEDDINGS), _RKD
    ),
    _case("rkd_angle_loss", "beta", {"beta": 0.25}, few(EMBEDDINGS), _RKD),
    _case(
        "rkd_loss",
        "weights-distinct",
        {"distance_weight": 1.0, "angle_weight": 2.5, "reduction": "mean_distinct"},
        few(EMBEDDINGS),
        _RKD,
    ),
    _case(
        "rkd_loss",
        "l2-sum-squared",
        {"criterion": "l2", "reduction": "sum", "squared": True},
        few(EMBEDDINGS),
        _RKD,
    ),
    _case("similarity_preserving_loss", "sum", {"reduction": "sum"}, few(EMBEDDINGS), _TABLE),
    _case(
        "cosine_similarity_loss",
        "l1-distinct",
        {"criterion": "l1", "reduction": "mean_distinct"},
        few(EMBEDDINGS),
        _TABLE,
    ),
    _case(
        "cosine_similarity_loss",
        "l2-sum",
        {"criterion": "l2", "reduction": "sum"},
        few(EMBEDDINGS),
        _TABLE,
    ),
    _case("cosine_similarity_loss", "beta", {"beta": 0.25}, few(EMBEDDINGS), _TABLE),
    _case("pkt_loss", "sum", {"reduction": "sum", "eps": 1e-3}, few(EMBEDDINGS), _TABLE),
    _case(
        "correlation_loss",
        "gamma2-distinct",
        {"gamma": 2.0, "reduction": "mean_distinct"},
        few(EMBEDDINGS),
        _TABLE,
    ),
)
ATTENTION = with_bench(_case("attention_transfer_loss", "mean", {}, FEATURES, _ATTENTION))
FEATURE_CASES = (
    ATTENTION,
    _case(
        "attention_transfer_loss",
        "p1-sum",
        {"p": 1.0, "reduction": "sum"},
        few(FEATURES, 1, 4),
        _ATTENTION,
    ),
    _case("attention_transfer_loss", "p4", {"p": 4.0}, few(FEATURES, 1, 4), _ATTENTION),
    _case("attention_transfer_loss", "p1.5", {"p": 1.5}, few(FEATURES, 1, 4), _ATTENTION),
)
