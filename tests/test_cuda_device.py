# SPDX-License-Identifier: Apache-2.0
"""All losses on a real GPU: every option, dtype, layout and many shapes against float64.

The emulator runs the same kernels on the CPU in the other files. Here the machine code runs, which
is why shapes are many and nothing else is looked at. test_cuda_device_kernels.py has less of each.
"""

from collections.abc import Callable

import pytest
import torch
from cases import KD_LOSS, LOGIT_CASES, LOGITS, Geometry, Inputs, LossCase
from devices import DEVICE, some
from logit_cases import KD_CASES
from test_cuda_device_kernels import assert_kernels_match, every_dtype
from test_layouts import COPIED, IN_PLACE, name, shifted, sliced, with_layout
from test_values import (
    BF16,
    F16,
    F32,
    MIXED_RUNS,
    MIXTURES,
    OTHERS,
    RUNS,
    assert_matches_truth,
    value_and_grad,
)
from tolerance import GRAD_FLOOR, HALF_UNIT, relative_error
from torch import Tensor

import fastkd

pytestmark = pytest.mark.cuda
# Those of another family need many rows (decoupled_cases.py): test_every_loss has them.
CASES_OF_FEW_ROWS = [case for case in LOGIT_CASES if case.family is LOGITS]
every_case = pytest.mark.parametrize("case", some(CASES_OF_FEW_ROWS, 3), ids=str)
plain_case = pytest.mark.parametrize("case", [KD_LOSS], ids=str)

# Lanes of a warp, then a warp a row; the neighbours of each limit.
SHORT = (1, 2, 3, 8, 10, 17, 33, 64, 100, 255, 256, 257, 300, 512, 513, 1000, 1023, 1024)
# A block, a cluster of 2 to 16 blocks (sm_90), shared memory of a cluster (sm_90), streamed.
LONG = (1025, 2500, 4096, 8192, 8193, 9000, 16385, 32000, 50257, 65536, 128256, 131072)
LONGEST = (131073, 200000, 262144, 300000, 500000, 1000003)
MAPS = (
    Geometry((3, 2, 64, 64), 1),
    Geometry((2, 10, 7, 9), 1),
    Geometry((2, 19, 33, 17), 1),
    Geometry((1, 150, 9, 15), 1),
    Geometry((2, 192, 5, 6), 1),
    Geometry((1, 193, 5, 7), 1),
    Geometry((1, 250, 9, 11), 1),
    Geometry((2, 1500, 12), 1),
    Geometry((33, 40), 0),
)
LONG_LAYOUTS: list[tuple[Geometry, Callable[[Tensor], Tensor]]] = [
    (Geometry((5, 1000)), sliced),
    (Geometry((3, 4096)), shifted),
    (Geometry((3, 9001)), sliced),
    (Geometry((3, 50257)), shifted),
    (Geometry((2, 140001)), sliced),
    (Geometry((2, 140001)), shifted),
]


def rows_of(classes: int) -> int:
    """Rows that fill a few blocks and leave the last one half empty."""
    return 70 if classes <= 256 else 9 if classes <= 8192 else 3


def inputs_for(
    case: LossCase,
    geometry: Geometry,
    student_dtype: torch.dtype,
    teacher_dtype: torch.dtype | None = None,
) -> Inputs:
    """A case's inputs, made on the CPU and moved."""
    return case.make_inputs(geometry, student_dtype, teacher_dtype).on(DEVICE)


@pytest.mark.parametrize(("case", "geometry", "dtype"), some(RUNS, 20))
def test_every_loss(
    kernel_calls: list[str], case: LossCase, geometry: Geometry, dtype: torch.dtype
) -> None:
    assert_matches_truth(case, case.make_inputs(geometry, dtype).on(DEVICE))
    assert case.kernels.forward in kernel_calls


@pytest.mark.parametrize(("case", "geometry", "dtypes"), some(MIXED_RUNS, 10))
def test_every_loss_of_mixed_types(
    case: LossCase, geometry: Geometry, dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    assert_matches_truth(case, case.make_inputs(geometry, *dtypes).on(DEVICE))


@pytest.mark.parametrize("classes", some(SHORT))
@every_dtype
@every_case
def test_short_rows(
    kernel_calls: list[str], case: LossCase, dtype: torch.dtype, classes: int
) -> None:
    inputs = inputs_for(case, Geometry((rows_of(classes), classes)), dtype)
    assert_kernels_match(kernel_calls, case, inputs)


@pytest.mark.parametrize("geometry", some(MAPS), ids=str)
@every_dtype
@every_case
def test_maps(
    kernel_calls: list[str], case: LossCase, dtype: torch.dtype, geometry: Geometry
) -> None:
    assert_kernels_match(kernel_calls, case, inputs_for(case, geometry, dtype))


@plain_case
@every_dtype
def test_more_rows_than_a_grid_has_in_other_dimensions(
    kernel_calls: list[str], case: LossCase, dtype: torch.dtype
) -> None:
    assert_kernels_match(kernel_calls, case, inputs_for(case, Geometry((300_001, 3)), dtype))


@pytest.mark.parametrize("classes", some([1, 10, 300, 1000, 2100]))
@pytest.mark.parametrize("dtypes", some(MIXTURES), ids=lambda d: f"{d[0]}-{d[1]}")
@every_case
def test_dtype_mixtures(
    kernel_calls: list[str],
    case: LossCase,
    dtypes: tuple[torch.dtype, torch.dtype],
    classes: int,
) -> None:
    inputs = inputs_for(case, Geometry((rows_of(classes), classes)), *dtypes)
    assert_kernels_match(kernel_calls, case, inputs)


@pytest.mark.parametrize("geometry", some(MAPS[1:5]), ids=str)
@pytest.mark.parametrize("dtypes", some(MIXTURES), ids=lambda d: f"{d[0]}-{d[1]}")
@plain_case
def test_dtype_mixtures_of_maps(
    case: LossCase, dtypes: tuple[torch.dtype, torch.dtype], geometry: Geometry
) -> None:
    assert_matches_truth(case, inputs_for(case, geometry, *dtypes))


@plain_case
@every_dtype
@pytest.mark.parametrize("which", ["student", "teacher", "both"])
@pytest.mark.parametrize(("geometry", "change"), some(IN_PLACE + COPIED), ids=name)
def test_any_strides(
    case: LossCase,
    dtype: torch.dtype,
    which: str,
    geometry: Geometry,
    change: Callable[[Tensor], Tensor],
) -> None:
    # Moved first: a copy to another device is contiguous.
    inputs = with_layout(inputs_for(case, geometry, dtype), change, which)
    assert_matches_truth(case, inputs)


@every_dtype
@every_case
def test_any_grad_loss_costs_one_more_rounding(case: LossCase, dtype: torch.dtype) -> None:
    inputs = inputs_for(case, Geometry((9, 1501)), dtype)
    assert_matches_truth(case, inputs, OTHERS, GRAD_FLOOR + HALF_UNIT[dtype])


@pytest.mark.parametrize("dtype", [F32, F16], ids=str)
@pytest.mark.parametrize("as_map", [False, True], ids=["rows", "maps"])
@pytest.mark.parametrize("classes", some([10, 300, 1000, 3000, 9000]))
def test_masked_and_equal_logits(classes: int, as_map: bool, dtype: torch.dtype) -> None:
    geometry = Geometry((4, classes, 6), 1) if as_map else Geometry((24, classes))
    case = next(case for case in LOGIT_CASES if case.options.get("reduction") == "none")
    student, teacher = case.make_inputs(geometry, dtype).on(DEVICE).tensors
    equal = fastkd.kd_loss(student, student.clone(), dim=geometry.dim, reduction="none")
    assert equal.equal(torch.zeros_like(equal))
    masked = torch.arange(classes, device=DEVICE) % 3 == 1
    masked = masked.view(1, classes, 1) if as_map else masked
    leaf = student.masked_fill(masked, -torch.inf).requires_grad_()
    loss = fastkd.kd_loss(
        leaf, teacher.masked_fill(masked, -torch.inf), dim=geometry.dim, temperature=2.0
    )
    loss.backward()
    kept = ~masked.expand(geometry.shape)
    assert leaf.grad is not None
    assert leaf.grad[~kept].abs().max() == 0
    shape = [-1, *student.shape[1:]]
    shape[1] = int((~masked).sum())
    short = student[kept].view(shape).double().requires_grad_()
    true = fastkd.reference.kd_loss(
        short, teacher[kept].view(shape).double(), dim=geometry.dim, temperature=2.0
    )
    true.backward()
    assert relative_error(loss, true) < 1e-5
    assert relative_error(leaf.grad[kept], short.grad.flatten()) < 1e-5 + HALF_UNIT[dtype]


@pytest.mark.parametrize("classes", some([3, 100, 1000, 3000, 9000, 140001]))
@every_dtype
def test_a_row_has_the_same_bits_in_every_run_and_place(classes: int, dtype: torch.dtype) -> None:
    case = next(case for case in LOGIT_CASES if case.options.get("reduction") == "none")
    inputs = inputs_for(case, Geometry((40 if classes < 9000 else 11, classes)), dtype)
    loss, grad = value_and_grad(case, inputs, False, (1.0,))
    again, grad_again = value_and_grad(case, inputs, False, (1.0,))
    assert again.equal(loss)
    assert grad_again.equal(grad)
    some = Inputs(
        tuple(t[7:9] for t in inputs.tensors),
        {k: v[7:9] if isinstance(v, Tensor) else v for k, v in inputs.keywords.items()},
    )
    part, grad_part = value_and_grad(case, some, False, (1.0,))
    assert part.equal(loss[7:9])
    if dtype != F16:  # whose scale against underflow is of the whole call
        assert grad_part.equal(grad[7:9])


@pytest.mark.parametrize("classes", some(LONG))
@every_dtype
@every_case
def test_long_rows(
    kernel_calls: list[str], case: LossCase, dtype: torch.dtype, classes: int
) -> None:
    inputs = inputs_for(case, Geometry((rows_of(classes), classes)), dtype)
    assert_kernels_match(kernel_calls, case, inputs)


@pytest.mark.parametrize(
    ("student_classes", "teacher_classes"),
    some([(37, 50), (50, 37), (300, 310), (1003, 1000), (2000, 2100), (9000, 9008), (9008, 9000)]),
)
@pytest.mark.parametrize("dtypes", some([(F32, F32), (BF16, BF16), (BF16, F32)]), ids=str)
@pytest.mark.parametrize("case", some(KD_CASES), ids=str)
def test_common_vocab(
    kernel_calls: list[str],
    case: LossCase,
    dtypes: tuple[torch.dtype, torch.dtype],
    student_classes: int,
    teacher_classes: int,
) -> None:
    inputs = inputs_for(case, Geometry((5, student_classes)), *dtypes)
    wider = inputs_for(case, Geometry((5, teacher_classes)), *dtypes)
    keywords = {**inputs.keywords, "common_vocab": True}
    inputs = Inputs((inputs.tensors[0], wider.tensors[1]), keywords)
    assert_kernels_match(kernel_calls, case, inputs)


@pytest.mark.parametrize("classes", some(LONGEST, 1))
@every_dtype
@every_case
def test_longest_rows(
    kernel_calls: list[str], case: LossCase, dtype: torch.dtype, classes: int
) -> None:
    inputs = inputs_for(case, Geometry((2, classes)), dtype)
    assert_kernels_match(kernel_calls, case, inputs)


@plain_case
@every_dtype
@pytest.mark.parametrize("which", ["student", "both"])
@pytest.mark.parametrize(("geometry", "change"), some(LONG_LAYOUTS), ids=name)
def test_sliced_and_shifted_long_rows(
    case: LossCase,
    dtype: torch.dtype,
    which: str,
    geometry: Geometry,
    change: Callable[[Tensor], Tensor],
) -> None:
    assert_matches_truth(case, with_layout(inputs_for(case, geometry, dtype), change, which))
