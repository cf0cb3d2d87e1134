# SPDX-License-Identifier: Apache-2.0
"""Any strides give the same result; the usual ones are read in place."""

from collections.abc import Callable

import pytest
import torch
from cases import PLAIN_CASES, Geometry, Inputs, LossCase
from test_values import assert_matches_truth
from torch import Tensor

from fastkd.ops import kd_loss as ops

every_case = pytest.mark.parametrize("case", PLAIN_CASES, ids=str)


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
    student, teacher = inputs.tensors
    tensors = (
        change(student) if which != "teacher" else student,
        change(teacher) if which != "student" else teacher,
    )
    assert tensors[0].equal(student)
    assert tensors[1].equal(teacher)
    return Inputs(tensors, inputs.keywords)


@every_case
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

    monkeypatch.setattr(ops, "_class_rows", copied)
    inputs = with_layout(case.make_inputs(geometry, dtype), change, "both")
    assert_matches_truth(case, inputs)


@every_case
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


@every_case
def test_expanded_and_broadcast_logits(backend: str, case: LossCase) -> None:
    inputs = case.make_inputs(Geometry((6, 11)))
    student, teacher = inputs.tensors
    one_teacher = Inputs((student, teacher[:1].expand(6, 11)), inputs.keywords)
    assert_matches_truth(case, one_teacher)
    flat = Inputs((student, teacher[:, :1].expand(6, 11)), inputs.keywords)
    assert_matches_truth(case, flat)


@every_case
def test_strided_targets_and_weights(backend: str, case: LossCase) -> None:
    inputs = case.make_inputs(Geometry((4, 6, 11)))
    target = inputs.keywords["target"].t().contiguous().t()
    weight = torch.rand(6, 4, dtype=torch.float64).t()
    assert not target.is_contiguous()
    keywords = {**inputs.keywords, "target": target, "sample_weight": weight}
    assert_matches_truth(case, Inputs(inputs.tensors, keywords))


@every_case
def test_the_gradient_of_a_view_reaches_its_base(backend: str, case: LossCase) -> None:
    inputs = case.make_inputs(Geometry((5, 12)))
    base = torch.randn(5, 14, requires_grad=True)
    case.run(Inputs((base[:, 1:-1], *inputs.tensors[1:]), inputs.keywords)).backward()
    assert base.grad is not None
    assert base.grad[:, 0].abs().max() == 0
    plain = base.detach()[:, 1:-1].clone().requires_grad_()
    case.run(Inputs((plain, *inputs.tensors[1:]), inputs.keywords)).backward()
    torch.testing.assert_close(base.grad[:, 1:-1], plain.grad)
