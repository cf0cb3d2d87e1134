# SPDX-License-Identifier: Apache-2.0
"""plan(): which kernel serves which logits, and what fits which chip."""

from typing import Any

import pytest
import torch
from cases import KD_LOSS, LOGIT_CASES, Geometry, LossCase
from conftest import emulated_cuda
from test_cuda_device_kernels import MAPS, MIXED, ROWS
from test_cuda_kernels import WEIGHTED, kernel_ids
from test_values import BF16, F16, F32, assert_matches_truth

CHIPS = {
    75: (1, 64 << 10),
    80: (1, 163 << 10),
    86: (1, 99 << 10),
    90: (16, 227 << 10),
    100: (16, 227 << 10),
    120: (8, 99 << 10),
}
REFINING = next(case for case in LOGIT_CASES if case.label == "tv")
CODES = {F32: 0, BF16: 1, F16: 2}


def plan_for(
    emulated: Any,
    classes: int,
    capability: int,
    student: torch.dtype = BF16,
    teacher: torch.dtype = BF16,
    teacher_classes: int | None = None,
    contiguous_classes: bool = True,
) -> dict[str, Any]:
    max_cluster, shared_bytes = CHIPS[capability]
    plan: dict[str, Any] = emulated.plan(
        classes=classes,
        teacher_classes=teacher_classes or classes,
        student_dtype=CODES[student],
        teacher_dtype=CODES[teacher],
        contiguous_classes=contiguous_classes,
        capability=capability,
        max_cluster=max_cluster,
        shared_bytes=shared_bytes,
    )
    return plan


@pytest.mark.parametrize("capability", CHIPS)
@pytest.mark.parametrize("dtype", [F32, BF16], ids=kernel_ids)
def test_plans_fit_their_chip(emulated: Any, capability: int, dtype: torch.dtype) -> None:
    max_cluster, shared_bytes = CHIPS[capability]
    sizes = [*range(1, 1100), *(2**i + d for i in range(10, 20) for d in (-1, 0, 1))]
    for classes in sizes:
        plan = plan_for(emulated, classes, capability, dtype, dtype)
        assert plan["threads"] % 32 == 0
        most = {"block": 256, "cluster": 256, "shared": 512, "streamed_block": 512}
        assert plan["threads"] <= most.get(plan["kernel"], 128)
        assert plan["cluster"] <= max_cluster
        held = {"lanes8": 8 * plan["lanes"], "warp16": 512, "warp32": 1024}
        held |= {"block": 32 * plan["threads"], "streamed_block": classes}
        held |= {
            "cluster": plan["cluster"] * plan["slice"],
            "shared": plan["cluster"] * plan["slice"],
        }
        assert held[plan["kernel"]] >= classes
        if plan["kernel"] == "cluster":
            assert 32 * plan["threads"] >= plan["slice"]
        if plan["kernel"] == "shared":
            assert 2 * plan["slice"] * dtype.itemsize < shared_bytes
        if plan["cluster"] > 1:
            assert plan["slice"] % 8 == 0


@pytest.mark.parametrize(
    ("classes", "capability", "kernel", "cluster"),
    [
        (10, 75, "lanes8", 1),
        (1000, 86, "warp32", 1),
        (8192, 80, "block", 1),
        (32000, 90, "cluster", 4),
        (50257, 100, "cluster", 8),
        (128256, 90, "cluster", 16),
        (262144, 90, "shared", 16),
        (128256, 120, "shared", 8),
        (262144, 120, "streamed_block", 1),
        (32000, 80, "streamed_block", 1),
        (32000, 75, "streamed_block", 1),
    ],
)
def test_plans_of_known_vocabularies(
    emulated: Any, classes: int, capability: int, kernel: str, cluster: int
) -> None:
    plan = plan_for(emulated, classes, capability)
    assert (plan["kernel"], plan["cluster"]) == (kernel, cluster)


def test_plans_of_columns(emulated: Any) -> None:
    for classes in range(1, 400):
        plan = plan_for(emulated, classes, 90, contiguous_classes=False)
        assert plan["slice"] * plan["slices"] >= classes
        assert plan["threads"] == plan["rows"] * plan["slices"] <= 512
        assert plan["rows"] % 32 == 0
        assert plan["kernel"] == ("columns" if classes <= 192 else "columns_streamed")
        assert plan["slice"] <= 12 or plan["kernel"] == "columns_streamed"


def test_what_differs_is_streamed(emulated: Any) -> None:
    def kernel(**options: Any) -> str:
        return str(plan_for(emulated, capability=90, **options)["kernel"])

    assert kernel(classes=100, teacher=F32) == "streamed_lanes"
    assert kernel(classes=5000, teacher=F32) == "streamed_block"
    assert kernel(classes=152064, teacher_classes=151936) == "streamed_block"
    assert kernel(classes=151936, teacher_classes=152064) == "shared"
    assert kernel(classes=19, teacher=F32, contiguous_classes=False) == "columns_streamed"


# Total variation refines, and has the most sums beside the logits.
@pytest.mark.parametrize("case", [KD_LOSS, REFINING], ids=str)
@pytest.mark.parametrize(
    ("capability", "dtype", "longest"),
    [(90, F32, 454_144), (90, BF16, 908_288), (120, F32, 96_000), (120, BF16, 192_000)],
    ids=kernel_ids,
)
def test_the_longest_rows_in_shared_memory_can_be_launched(
    emulated: Any, case: LossCase, capability: int, dtype: torch.dtype, longest: int
) -> None:
    with emulated_cuda(capability=capability, order="greedy") as module:
        for classes, kernel in ((longest, "shared"), (longest + 1, "streamed_block")):
            assert plan_for(module, classes, capability, dtype, dtype)["kernel"] == kernel
            assert_matches_truth(case, case.make_inputs(Geometry((1, classes)), dtype))
            assert kernel in module.launched()


def test_rows_that_were_planned_larger_than_a_block_can_launch(emulated: Any) -> None:
    assert_matches_truth(REFINING, REFINING.make_inputs(Geometry((1, 456_704))))


@pytest.mark.parametrize("room", [1, 4])
@pytest.mark.parametrize(
    ("classes", "kernel", "cluster"), [(20_000, "cluster", 4), (140_000, "shared", 16)]
)
def test_a_chip_without_room_for_a_cluster_streams(
    emulated: Any, classes: int, kernel: str, cluster: int, room: int
) -> None:
    """A share of a GPU may have less room than its driver says."""
    case = WEIGHTED
    with emulated_cuda(capability=90, order="greedy", room_for_clusters=room) as module:
        assert_matches_truth(case, case.make_inputs(Geometry((2, classes)), BF16))
        assert (kernel in module.launched()) == (cluster <= room)


@pytest.mark.parametrize("dtype", [F32, BF16], ids=kernel_ids)
def test_the_device_tests_reach_the_kernels_that_they_name(
    emulated: Any, dtype: torch.dtype
) -> None:
    """test_cuda_device_kernels.py cannot ask a GPU which kernel has run."""
    other = F16 if dtype == F32 else F32
    for kernels, teacher in ((ROWS | MAPS, dtype), (MIXED, other)):
        for kernel, geometries in kernels.items():
            for geometry in geometries:
                plan = plan_for(
                    emulated, geometry.classes, 90, dtype, teacher, None, geometry.dim == -1
                )
                assert plan["kernel"] == kernel, geometry
