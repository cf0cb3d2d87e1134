# SPDX-License-Identifier: Apache-2.0
"""Every kernel on a real GPU: a small and a large call of each, in each type, against float64.

gpu-check runs these tests before all others. Short rows come first, because a kernel that hangs
takes the tests behind it along.
"""

from collections.abc import Callable

import pytest
import torch
from cases import (
    ATTENTION,
    KD_LOSS,
    LOGIT_CASES,
    PLAIN_PAIR_CASES,
    TOPK_KD_LOSS,
    Geometry,
    Inputs,
    LossCase,
)
from devices import DEVICE, gpu_only, some
from test_inplace import bits_equal, expected
from test_layouts import channels_last, sliced, with_layout
from test_values import BF16, F16, F32, assert_matches_truth
from torch import Tensor

import fastkd

pytestmark = pytest.mark.cuda
every_dtype = pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)

# The shortest and the longest row of each kernel that csrc/cuda/plan.cpp chooses, on an H100.
ROWS = {
    "lanes8": (Geometry((70, 3)), Geometry((70, 256))),
    "warp16": (Geometry((9, 257)), Geometry((9, 512))),
    "warp32": (Geometry((9, 513)), Geometry((9, 1024))),
    "block": (Geometry((9, 1025)), Geometry((9, 8192))),
    "cluster": (Geometry((3, 8193)), Geometry((3, 131072))),
    "shared": (Geometry((2, 131073)), Geometry((2, 450000))),
    "streamed_block": (Geometry((2, 1000003)),),
}
MAPS = {
    "columns": (Geometry((2, 10, 7, 9), 1), Geometry((2, 192, 5, 6), 1)),
    "columns_streamed": (Geometry((1, 193, 5, 7), 1), Geometry((2, 1500, 12), 1)),
}
# Kernels for types that differ.
MIXED = {
    "streamed_lanes": (Geometry((70, 3)), Geometry((9, 1024))),
    "streamed_block": (Geometry((3, 1025)), Geometry((3, 50257))),
    "columns_streamed": (Geometry((2, 19, 33, 17), 1),),
}
# A case for each functor that csrc/cuda/kd_loss compiles.
FUNCTORS = (
    *("kd_loss-t4", "kd_loss-t1", "kd_loss-t2-weighted", "kd_loss-t3.5-smoothed"),
    *("kd_loss-soft-only", "kd_loss-reverse_kl", "kd_loss-reverse-t1", "kd_loss-reverse-rows"),
    *("kd_loss-js", "kd_loss-js-beta-rows", "kd_loss-tv", "kd_loss-tv-rows"),
    *("decoupled_kd_loss-t4", "decoupled_kd_loss-t3-hard-rows"),
)
CASES = {str(case): case for case in LOGIT_CASES}
every_functor = pytest.mark.parametrize(
    "case", some([CASES[name] for name in FUNCTORS], 3), ids=str
)


def of_kernels(kernels: dict[str, tuple[Geometry, ...]]) -> pytest.MarkDecorator:
    """The geometries as a parameter, with the names of their kernels."""
    every = [(kernel, geometry) for kernel, found in kernels.items() for geometry in found]
    return pytest.mark.parametrize(
        "geometry", [pytest.param(g, id=f"{kernel}-{g}") for kernel, g in some(every, 3)]
    )


def assert_kernels_match(kernel_calls: list[str], case: LossCase, inputs: Inputs) -> None:
    """Loss and gradient against float64, by the kernels and not by the reference."""
    assert_matches_truth(case, inputs)
    # A kernel that cannot read the strides is called once more, with a copy.
    assert [*dict.fromkeys(kernel_calls)] == case.kernel_calls


@gpu_only
def test_the_gpu_has_its_module() -> None:
    info = fastkd.info()
    assert info["cuda"] is not None
    assert not [key for key in info["failures"] if key.startswith("cuda")]


@of_kernels(ROWS | MAPS)
@every_dtype
@every_functor
def test_kd_loss(
    kernel_calls: list[str], case: LossCase, dtype: torch.dtype, geometry: Geometry
) -> None:
    assert_kernels_match(kernel_calls, case, case.make_inputs(geometry, dtype).on(DEVICE))


@of_kernels(MIXED)
@pytest.mark.parametrize("dtypes", [(BF16, F32), (F32, F16), (F16, BF16)], ids=str)
@every_functor
def test_kd_loss_of_mixed_types(
    kernel_calls: list[str],
    case: LossCase,
    dtypes: tuple[torch.dtype, torch.dtype],
    geometry: Geometry,
) -> None:
    assert_kernels_match(kernel_calls, case, case.make_inputs(geometry, *dtypes).on(DEVICE))


@of_kernels(ROWS)
@every_dtype
def test_kd_loss_in_place_at_odd_addresses(dtype: torch.dtype, geometry: Geometry) -> None:
    inputs = with_layout(KD_LOSS.make_inputs(geometry, dtype).on(DEVICE), sliced, "student")
    loss, grad = expected(KD_LOSS, inputs)
    leaf = inputs.tensors[0].detach().requires_grad_()
    logits = sliced(leaf)
    in_place = KD_LOSS.run(Inputs((logits, *inputs.tensors[1:]), inputs.keywords), inplace=True)
    (grad_in_place,) = torch.autograd.grad(in_place, leaf)
    assert bits_equal(in_place.detach(), loss)
    assert bits_equal(grad_in_place, grad)


@pytest.mark.parametrize(
    "geometry", some([Geometry((9, 7)), Geometry((5, 1000)), Geometry((3, 50257))]), ids=str
)
@every_dtype
def test_topk_kd_loss(kernel_calls: list[str], dtype: torch.dtype, geometry: Geometry) -> None:
    inputs = TOPK_KD_LOSS.make_inputs(geometry, dtype).on(DEVICE)
    assert_kernels_match(kernel_calls, TOPK_KD_LOSS, inputs)


# One tile of pairs, large tiles, several with ragged ends.
@pytest.mark.parametrize(
    "geometry",
    some([Geometry((9, 21), teacher=(9, 33)), Geometry((261, 65)), Geometry((70, 65))]),
    ids=str,
)
@pytest.mark.parametrize("case", PLAIN_PAIR_CASES, ids=str)
def test_relations(kernel_calls: list[str], case: LossCase, geometry: Geometry) -> None:
    assert_kernels_match(kernel_calls, case, case.make_inputs(geometry).on(DEVICE))


@pytest.mark.parametrize("layout", [torch.Tensor.contiguous, channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize(
    "geometry", [Geometry((2, 21, 5, 9), 1), Geometry((4, 512, 28, 28), 1)], ids=str
)
@every_dtype
def test_attention_transfer_loss(
    kernel_calls: list[str],
    dtype: torch.dtype,
    geometry: Geometry,
    layout: Callable[[Tensor], Tensor],
) -> None:
    inputs = with_layout(ATTENTION.make_inputs(geometry, dtype).on(DEVICE), layout, "both")
    assert_kernels_match(kernel_calls, ATTENTION, inputs)
