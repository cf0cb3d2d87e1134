# SPDX-License-Identifier: Apache-2.0
"""Any strides give the same result; the usual ones are read in place."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from cases import (
    ATTENTION,
    PLAIN_LOGIT_CASES,
    PLAIN_PAIR_CASES,
    TOPK_KD_LOSS,
    Geometry,
    Inputs,
    LossCase,
)
from test_values import assert_matches_truth, value_and_grad
from torch import Tensor

from fastkd.ops import _row_kernel

logit_case = pytest.mark.parametrize("case", PLAIN_LOGIT_CASES, ids=str)
every_pair_case = pytest.mark.parametrize("case", PLAIN_PAIR_CASES, ids=str)


def sliced(t: Tensor) -> Tensor:
    """`logits[:, :-1]`: rows further apart than they are long."""
    return torch.nn.functional.pad(t, (0, 1))[..., :-1]


def shifted(t: Tensor) -> Tensor:
    """Rows that start at odd addresses."""
    return torch.nn.functional.pad(t, (1, 2))[..., 1:-2]


def every_second_row(t: Tensor) -> Tensor:
    """Row stride of two rows."""
    return t.repeat_interleave(2, 0)[::2]


def sequence_sliced(t: Tensor) -> Tensor:
    """(B, T, V)[:, :-1]: two row strides that do not merge."""
    return torch.cat([t, t[:, :1]], 1)[:, :-1]


def class_major(t: Tensor) -> Tensor:
    """(N, C) stored as (C, N)."""
    return t.t().contiguous().t()


def channels_last(t: Tensor) -> Tensor:
    """(N, C, H, W) stored as (N, H, W, C)."""
    return t.to(memory_format=torch.channels_last)


def cropped(t: Tensor) -> Tensor:
    """A window of a larger map."""
    return torch.nn.functional.pad(t, (2, 1, 0, 3))[..., :-3, 2:-1]


def every_second_class(t: Tensor) -> Tensor:
    """Classes two elements apart: no driver reads this."""
    return t.repeat_interleave(2, -1)[..., ::2]


def every_second_channel(t: Tensor) -> Tensor:
    """Channels further apart than they are large."""
    return t.repeat_interleave(2, 1)[:, ::2]


def backwards_in_memory(t: Tensor) -> Tensor:
    """Positions stored with the last dimension first."""
    return t.transpose(-1, -2).contiguous().transpose(-1, -2)


IN_PLACE: list[tuple[Geometry, Callable[[Tensor], Tensor]]] = [
    (Geometry((9, 37)), sliced),
    (Geometry((9, 37)), shifted),
    (Geometry((5, 2100)), shifted),
    (Geometry((9, 37)), every_second_row),
    (Geometry((3, 7, 50)), sequence_sliced),
    (Geometry((3, 7, 50)), sliced),
    (Geometry((40, 21)), class_major),
    (Geometry((2, 19, 8, 9), 1), channels_last),
    (Geometry((2, 19, 8, 9), -3), torch.Tensor.clone),
]
COPIED: list[tuple[Geometry, Callable[[Tensor], Tensor]]] = [
    (Geometry((9, 37)), every_second_class),
    (Geometry((2, 19, 8, 9), 1), cropped),
    (Geometry((3, 4, 5, 6), 2), torch.Tensor.clone),  # six pixels: too few for the lanes
    (Geometry((2, 3, 1, 2, 1, 2, 1, 2, 5)), torch.Tensor.clone),  # nine dimensions
    (Geometry((2, 1, 2, 1, 2, 1, 2, 5, 3), 1), torch.Tensor.clone),
]


def name(value: object) -> str:
    """A test id."""
    return getattr(value, "__name__", str(value))


def with_layout(inputs: Inputs, change: Callable[[Tensor], Tensor], which: str) -> Inputs:
    """The same values in other strides."""
    student, *teacher = inputs.tensors
    tensors = (
        change(student) if which != "teacher" else student,
        *(change(each) if which != "student" else each for each in teacher),
    )
    assert all(map(torch.equal, tensors, inputs.tensors))
    return Inputs(tensors, inputs.keywords)


@logit_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("geometry", "change"), IN_PLACE, ids=name)
def test_usual_strides_are_read_without_a_copy(
    backend: str,
    monkeypatch: pytest.MonkeyPatch,
    case: LossCase,
    geometry: Geometry,
    change: Callable[[Tensor], Tensor],
    dtype: torch.dtype,
) -> None:
    def copied(*_: object) -> None:
        raise AssertionError("the logits were copied")

    monkeypatch.setattr(_row_kernel, "_class_rows", copied)
    inputs = with_layout(case.make_inputs(geometry, dtype), change, "both")
    if case is TOPK_KD_LOSS and inputs.tensors[0].stride(geometry.dim) != 1:
        pytest.skip("its kernels read rows alone")
    assert_matches_truth(case, inputs)


@logit_case
@pytest.mark.parametrize("which", ["student", "teacher", "both"])
@pytest.mark.parametrize(("geometry", "change"), IN_PLACE + COPIED, ids=name)
def test_any_strides_give_the_same_result(
    backend: str,
    case: LossCase,
    geometry: Geometry,
    change: Callable[[Tensor], Tensor],
    which: str,
) -> None:
    inputs = with_layout(case.make_inputs(geometry), change, which)
    assert_matches_truth(case, inputs)


@logit_case
def test_expanded_and_broadcast_logits(backend: str, case: LossCase) -> None:
    inputs = case.make_inputs(Geometry((6, 11)))
    student, teacher, *rest = inputs.tensors
    one_teacher = Inputs((student, teacher[:1].expand(6, 11), *rest), inputs.keywords)
    assert_matches_truth(case, one_teacher)
    flat = Inputs((student, teacher[:, :1].expand(6, 11), *rest), inputs.keywords)
    assert_matches_truth(case, flat)


@logit_case
def test_strided_targets_and_weights(backend: str, case: LossCase) -> None:
    inputs = case.make_inputs(Geometry((4, 6, 11)))
    target = inputs.keywords["target"].t().contiguous().t()
    weight = torch.rand(6, 4, dtype=torch.float64).t()
    assert not target.is_contiguous()
    keywords = {**inputs.keywords, "target": target, "sample_weight": weight}
    assert_matches_truth(case, Inputs(inputs.tensors, keywords))


@logit_case
def test_the_gradient_of_a_view_reaches_its_base(backend: str, case: LossCase) -> None:
    inputs = case.make_inputs(Geometry((5, 12)))
    base = torch.randn(5, 14, requires_grad=True)
    case.run(Inputs((base[:, 1:-1], *inputs.tensors[1:]), inputs.keywords)).backward()
    assert base.grad is not None
    assert base.grad[:, 0].abs().max() == 0
    plain = base.detach()[:, 1:-1].clone().requires_grad_()
    case.run(Inputs((plain, *inputs.tensors[1:]), inputs.keywords)).backward()
    torch.testing.assert_close(base.grad[:, 1:-1], plain.grad)


@every_pair_case
def test_embeddings_in_any_strides(backend: str, case: LossCase) -> None:
    inputs = case.make_inputs(case.geometry)
    loss, grad = value_and_grad(case, inputs, False)
    for change in (sliced, shifted, every_second_row, class_major, every_second_class):
        for which in ("student", "teacher", "both"):
            found = value_and_grad(case, with_layout(inputs, change, which), False)
            assert found[0].equal(loss)
            assert found[1].equal(grad)


@every_pair_case
def test_expanded_embeddings(backend: str, case: LossCase) -> None:
    student, teacher = case.make_inputs(case.geometry).tensors
    one_teacher = Inputs((student, teacher[:1].expand(teacher.shape)))
    assert_matches_truth(case, one_teacher)


FEATURE_LAYOUTS = [
    torch.Tensor.clone,
    channels_last,
    every_second_row,
    every_second_channel,
]
AWKWARD_LAYOUTS = [cropped, shifted, every_second_class, backwards_in_memory]
# The kernels read features of every dtype and stride in place.
HALVES_AND_FLOATS = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


@pytest.mark.unrotated
@HALVES_AND_FLOATS
@pytest.mark.parametrize("change", FEATURE_LAYOUTS, ids=name)
def test_features_in_usual_strides_are_read_without_a_copy(
    backend: str,
    kernel_calls: list[str],
    change: Callable[[Tensor], Tensor],
    dtype: torch.dtype,
) -> None:
    for shape in ((2, 19, 8, 9), (3, 5, 3, 3)):
        inputs = with_layout(ATTENTION.make_inputs(Geometry(shape, 1), dtype), change, "both")
        kernel_calls.clear()
        assert_matches_truth(ATTENTION, inputs)
        assert kernel_calls == ATTENTION.kernel_calls  # no second call after a copy


@pytest.mark.parametrize("change", FEATURE_LAYOUTS + AWKWARD_LAYOUTS, ids=name)
def test_features_in_any_strides(backend: str, change: Callable[[Tensor], Tensor]) -> None:
    plain = ATTENTION.make_inputs(Geometry((2, 19, 8, 9), 1, (2, 6, 8, 9)))
    for which in ("student", "teacher", "both"):
        inputs = with_layout(plain, change, which)
        assert_matches_truth(ATTENTION, inputs)
        _, grad = value_and_grad(ATTENTION, inputs, False)
        assert grad.stride() == torch.empty_like(inputs.tensors[0]).stride()


@pytest.mark.parametrize("shape", [(3, 4, 5), (2, 3, 2, 3, 4), (2, 3, 1, 2, 1, 2, 1, 2, 2)])
def test_features_of_any_rank(backend: str, shape: tuple[int, ...]) -> None:
    assert_matches_truth(ATTENTION, ATTENTION.make_inputs(Geometry(shape, 1)))


@pytest.mark.unrotated
@HALVES_AND_FLOATS
@pytest.mark.parametrize(
    ("student", "teacher"),
    [((2, 5, 8, 6), (2, 3, 4, 6)), ((2, 5, 4, 6), (2, 3, 8, 6)), ((2, 5, 9, 3), (2, 3, 4, 7))],
)
def test_features_of_other_sizes(
    backend: str,
    kernel_calls: list[str],
    student: tuple[int, ...],
    teacher: tuple[int, ...],
    dtype: torch.dtype,
) -> None:
    case = dataclasses.replace(ATTENTION, options={"interpolate": True})
    inputs = case.make_inputs(Geometry(student, 1, teacher), dtype)
    assert_matches_truth(case, inputs)
    assert kernel_calls == case.kernel_calls
