# SPDX-License-Identifier: Apache-2.0
"""Relational losses where the originals lose digits or give NaN, on every backend.

Truth is the reference in float64 on the same rounded inputs.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable

import pytest
import torch
from cases import ATTENTION, PLAIN_PAIR_CASES, Inputs, LossCase
from test_values import value_and_grad
from tolerance import HALF_UNIT, relative_error
from torch import Tensor

import fastkd

# The largest error of a gradient, over its largest true entry.
GRADIENT_ERROR = 1e-4
LOSS_ERROR = 1e-5
EVERY_CASE = pytest.mark.parametrize("case", PLAIN_PAIR_CASES, ids=str)
# What one column can't change: there are two directions in it.
OF_DIRECTIONS = ("rkd_angle_loss", "cosine_similarity_loss", "pkt_loss", "correlation_loss")
RKD_CASES = [case for case in PLAIN_PAIR_CASES if case.loss.startswith("rkd")]

Pair = tuple[Tensor, Tensor]


def normal(rows: int = 17, width: int = 40) -> Tensor:
    return torch.randn(rows, width)


def teacher(rows: int = 17) -> Tensor:
    return torch.randn(rows, 20)


def with_twins(x: Tensor, apart: Tensor | float = 0.0) -> Tensor:
    """Some rows once more, `apart` from the first."""
    x = x.clone()
    x[[3, 9, 12]] = x[[0, 1, 1]] + apart
    return x


def with_zeros(x: Tensor) -> Tensor:
    x = x.clone()
    x[[2, 7]] = 0
    return x


def cone(width: int = 40, signs: bool = False) -> Tensor:
    """Rows of different lengths that go the same way within a degree, or opposite ways."""
    x = (torch.randn(1, width) + 0.01 * torch.randn(17, width)) * torch.randn(17, 1).exp()
    return torch.where(torch.arange(17)[:, None] % 2 == 0, -x, x) if signs else x


def unit(width: int = 40) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(3, width))


BATCHES: dict[str, Callable[[], Pair]] = {
    "random": lambda: (normal(), teacher()),
    "offset-100": lambda: (normal() + 100, teacher() + 100),
    "offset-10000": lambda: (normal() + 10000, teacher() + 10000),
    "offset-10000-of-the-student": lambda: (normal() + 10000, teacher()),
    "offset-10000-of-the-teacher": lambda: (normal(), teacher() + 10000),
    "twins-in-student": lambda: (with_twins(normal()), teacher()),
    "twins-in-teacher": lambda: (normal(), with_twins(teacher())),
    "twins-in-both": lambda: (with_twins(normal()), with_twins(teacher())),
    "near-twins": lambda: (with_twins(normal(), 1e-6 * unit()), teacher()),
    "near-twins-of-the-teacher": lambda: (normal(), with_twins(teacher(), 1e-6 * unit(20))),
    "near-twins-in-both": lambda: (
        with_twins(normal(), 1e-6 * unit()),
        with_twins(teacher(), 1e-6 * unit(20)),
    ),
    "near-twins-in-every-coordinate": lambda: (with_twins(normal(), 1e-6), teacher()),
    "near-twins-with-offset": lambda: (with_twins(normal() + 100, 1e-3 * unit()), teacher() + 100),
    "equal-points": lambda: (normal()[:1].repeat(17, 1), teacher()),
    "equal-points-of-the-teacher": lambda: (normal(), teacher()[:1].repeat(17, 1)),
    "equal-points-in-both": lambda: (normal()[:1].repeat(17, 1), teacher()[:1].repeat(17, 1)),
    "one-row": lambda: (normal(1), teacher(1)),
    "two-rows": lambda: (normal(2), teacher(2)),
    "three-rows": lambda: (normal(3), teacher(3)),
    "zero-vectors": lambda: (with_zeros(normal()), teacher()),
    "zero-vectors-of-the-teacher": lambda: (normal(), with_zeros(teacher())),
    "only-zeros": lambda: (torch.zeros(17, 40), teacher()),
    "only-zeros-in-both": lambda: (torch.zeros(17, 40), torch.zeros(17, 3)),
    "one-column": lambda: (normal(17, 1), teacher()),
    "one-column-in-both": lambda: (normal(17, 1), normal(17, 1)),
    "4096-columns": lambda: (normal(7, 4096), normal(7, 4096)),
    "4096-columns-offset-100": lambda: (normal(7, 4096) + 100, teacher(7)),
    "opposites": lambda: (torch.cat([x := normal(8), -x]), teacher(16)),
    "opposites-in-both": lambda: (torch.cat([x := normal(8), -x]), torch.cat([x, -x])),
    "norms-of-all-sizes": lambda: (normal() * torch.logspace(-4, 4, 17)[:, None], teacher()),
    "norms-of-all-sizes-in-both": lambda: (
        normal() * torch.logspace(-4, 4, 17)[:, None],
        teacher() * torch.logspace(4, -4, 17)[:, None],
    ),
    "narrow-cone": lambda: (cone(), cone(20)),
    "narrow-cone-both-ways": lambda: (cone(signs=True), cone(20)),
    "narrow-cone-of-the-teacher": lambda: (normal(), cone(20, signs=True)),
    "very-large": lambda: (1e15 * normal(), 1e15 * teacher()),
    "in-thousandths": lambda: (1e-3 * normal(), 1e-3 * teacher()),
    "below-eps": lambda: (1e-30 * normal(), teacher()),
    "far-below-eps-in-both": lambda: (1e-38 * normal(), 1e-38 * teacher()),
    "in-millions": lambda: (1e6 * normal(), 1e6 * teacher()),
    "float16": lambda: (normal().half(), teacher().half()),
    "float16-offset-100": lambda: ((normal() + 100).half(), (teacher() + 100).half()),
    "float16-twins": lambda: (with_twins(normal()).half(), teacher().half()),
    "float16-large": lambda: ((2e4 * normal().clamp(-3, 3)).half(), teacher().half()),
    "float16-one-row": lambda: (normal(1).half(), teacher(1).half()),
}


def gradient_error(grad: Tensor, truth: Tensor, student: Tensor) -> float:
    """Over the largest true entry, or where the true gradient is 0 over one that is not.

    Such a one has entries around 1 / (rows * length of an embedding): how a cosine of one row among
    all moves with it.
    """
    length = float(student.double().norm(dim=1).mean()) or 1.0
    usual = 1 / (len(student) * length)
    largest = float(truth.abs().max())
    scale = largest if largest > 1e-12 * usual else usual
    return float((grad - truth).abs().max()) / scale


@pytest.mark.parametrize("batch", BATCHES)
def test_gradients_keep_four_digits(backend: str, batch: str) -> None:
    student, teacher = BATCHES[batch]()
    found = {}
    for case in PLAIN_PAIR_CASES:
        inputs = Inputs((student, teacher))
        _, true_grad = value_and_grad(case, inputs.to(torch.float64), True, (1.0,))
        largest = float(true_grad.abs().max())
        scale, rounding = 1.0, 0.0
        if student.dtype == torch.float16:  # a loss scale keeps gradients out of the subnormals
            scale = 2.0 ** -math.frexp(largest)[1] if largest else 1.0
            rounding = HALF_UNIT[torch.float16]
        if student.shape[1] == 1 and case.loss in OF_DIRECTIONS:
            true_grad = torch.zeros_like(true_grad)  # and not what float64 rounds
        loss, grad = value_and_grad(case, inputs, False, (scale,))
        true_loss = case.run_reference(inputs.to(torch.float64))
        assert loss.isfinite(), case
        assert grad.isfinite().all(), case
        error = gradient_error(grad.double() / scale, true_grad, student)
        found[case.loss] = (
            float((loss - true_loss).abs()) / max(float(true_loss), 1e-6) / LOSS_ERROR,
            error / (GRADIENT_ERROR + rounding),
        )
    assert not {loss: errors for loss, errors in found.items() if max(errors) > 1}


def row_errors(found: Tensor, truth: Tensor) -> Tensor:
    return (found.double() - truth).norm(dim=1) / truth.norm(dim=1)


@pytest.mark.parametrize("apart", [1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7])
def test_near_twins_cost_other_rows_no_digits(backend: str, apart: float) -> None:
    student, teacher = normal(), torch.randn(17, 20)
    student[3] = student[0] + apart * unit()[0]
    teacher[9] = teacher[4] + apart * unit(20)[0]
    for case in PLAIN_PAIR_CASES:
        inputs = Inputs((student, teacher))
        _, grad = value_and_grad(case, inputs, False)
        _, truth = value_and_grad(case, inputs.to(torch.float64), True)
        assert row_errors(grad, truth).max() < 1e-5, case


def test_near_twins_of_many_rows_cost_others_no_digits(backend: str) -> None:
    student, teacher = normal(70), torch.randn(70, 20)
    student[[3, 41]] = student[[2, 69]] + 1e-6 * unit()[:2]
    for case in PLAIN_PAIR_CASES:
        inputs = Inputs((student, teacher))
        _, grad = value_and_grad(case, inputs, False)
        _, truth = value_and_grad(case, inputs.to(torch.float64), True)
        assert row_errors(grad, truth).max() < 1e-5, case


def test_rows_of_all_sizes_keep_their_digits(backend: str) -> None:
    # Short rows have the largest gradients: errors relative to those would hide the others'.
    sizes = torch.logspace(-4, 4, 17)[:, None]
    student, teacher = sizes * normal(), sizes.flip(0) * torch.randn(17, 20)
    opposite = student.clone()
    opposite[[2, 11, 16]] = -torch.tensor([[1e-3], [1.0], [1.0]]) * student[[3, 10, 1]]
    for case, x in itertools.product(PLAIN_PAIR_CASES, (student, opposite)):
        inputs = Inputs((x, teacher))
        _, grad = value_and_grad(case, inputs, False)
        _, truth = value_and_grad(case, inputs.to(torch.float64), True)
        assert row_errors(grad, truth).max() < 1e-5, case


@pytest.mark.parametrize("scale", [1e20, 1e26, 1e32])
def test_angles_of_the_largest_embeddings(backend: str, scale: float) -> None:
    inputs = Inputs((scale * normal().clamp(-3, 3), scale * teacher().clamp(-3, 3)))
    for case in RKD_CASES:
        if case.loss == "rkd_distance_loss":  # says that it may give NaN
            continue
        loss, grad = value_and_grad(case, inputs, False)
        true_loss, true_grad = value_and_grad(case, inputs.to(torch.float64), True)
        assert relative_error(loss, true_loss) < 2e-6
        assert row_errors(grad, true_grad).max() < 1e-5, case


def test_rkd_of_nothing_is_nothing(backend: str) -> None:
    for rows in (1, 3, 40):
        student = normal(rows)
        student[0, 0] = math.nan
        student.requires_grad_()
        for rkd_loss in (fastkd.rkd_loss, fastkd.reference.rkd_loss):
            loss = rkd_loss(student, teacher(rows), distance_weight=0, angle_weight=0)
            (grad,) = torch.autograd.grad(loss, student)
            assert loss.item() == 0
            assert grad.count_nonzero() == 0
        both = normal(rows).requires_grad_()
        none = fastkd.reference.rkd_loss(teacher(rows), both, distance_weight=0, angle_weight=0)
        assert torch.autograd.grad(none, both)[0].count_nonzero() == 0


def test_pkt_of_opposites_without_eps(backend: str) -> None:
    for _ in range(20):  # rounding puts some cosines below -1
        student = torch.randn(4, 2)
        student[1] = -3 * student[0]
        loss = fastkd.pkt_loss(student, torch.randn(4, 1), eps=1e-18)
        assert loss.isfinite()
        assert fastkd.reference.pkt_loss(student, torch.randn(4, 1), eps=1e-18).isfinite()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_gives_nan(backend: str, bad: float) -> None:
    for case, which in itertools.product(PLAIN_PAIR_CASES, (0, 1)):
        tensors = normal(), teacher()
        tensors[which][5, 3] = bad
        loss, grad = value_and_grad(case, Inputs(tensors), False)
        assert loss.isnan(), (case, which)
        assert grad.isnan().any(), (case, which)
        assert value_and_grad(case, Inputs(tensors), True)[0].isnan(), "the reference too"
        reductions = ["mean", "sum"]
        if case.loss not in ("similarity_preserving_loss", "pkt_loss"):
            reductions.append("mean_distinct")
        for reduction in reductions:
            single = dataclasses.replace(case, options={**case.options, "reduction": reduction})
            row = Inputs(tuple(tensor[5:6] for tensor in tensors))
            for reference in (False, True):
                assert value_and_grad(single, row, reference)[0].isnan(), (single, reference)


@pytest.mark.parametrize("case", RKD_CASES, ids=str)
def test_criteria_and_reductions(backend: str, case: LossCase) -> None:
    inputs = Inputs((normal(), teacher()))
    choices = [
        {"criterion": criterion, "reduction": reduction}
        for criterion in ("smooth_l1", "l1", "l2")
        for reduction in ("mean", "sum", "mean_distinct")
    ]
    if case.loss != "rkd_angle_loss":
        choices += [{**options, "squared": True} for options in choices]
    for options in choices:
        loss = case.run(inputs, **options)
        truth = case.run_reference(inputs.to(torch.float64), **options)
        assert relative_error(loss, truth) < 2e-6, options


@EVERY_CASE
def test_a_batch_in_another_order(backend: str, case: LossCase) -> None:
    student, teacher = torch.randn(37, 24), torch.randn(37, 9)
    order = torch.randperm(37)
    loss, grad = value_and_grad(case, Inputs((student, teacher)), False)
    moved = value_and_grad(case, Inputs((student[order], teacher[order])), False)
    assert relative_error(moved[0], loss) < 1e-6
    assert relative_error(moved[1], grad[order]) < 2e-6


@pytest.mark.parametrize("case", RKD_CASES, ids=str)
def test_relations_do_not_change_with_the_scale(backend: str, case: LossCase) -> None:
    student, teacher = normal(), normal()
    loss, grad = value_and_grad(case, Inputs((student, teacher)), False)
    for scale in (2.0**-8, 300.0, 2.0**12):
        of_student = value_and_grad(case, Inputs((scale * student, teacher)), False)
        of_teacher = value_and_grad(case, Inputs((student, scale * teacher)), False)
        assert relative_error(of_student[0], loss) < 2e-6
        assert relative_error(of_student[1] * scale, grad) < 5e-6
        assert relative_error(of_teacher[0], loss) < 2e-6
        assert relative_error(of_teacher[1], grad) < 5e-6


@EVERY_CASE
def test_teacher_and_student_alike(backend: str, case: LossCase) -> None:
    student = normal()
    loss, grad = value_and_grad(case, Inputs((student, student.clone())), False)
    assert loss.item() == 0
    # The eps of pkt_loss moves its minimum by as much.
    assert grad.abs().max() <= (1e-7 if case.loss == "pkt_loss" else 1e-12)


@EVERY_CASE
def test_many_rows_on_several_threads(cpu_backend: str, case: LossCase) -> None:
    inputs = Inputs((torch.randn(150, 70), torch.randn(150, 33)))
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(value_and_grad(case, inputs, False))
    finally:
        torch.set_num_threads(before)
    for loss, grad in results[1:]:
        assert loss.equal(results[0][0])
        assert grad.equal(results[0][1])
    loss, grad = results[0]
    true_loss, true_grad = value_and_grad(case, inputs.to(torch.float64), True)
    assert relative_error(loss, true_loss) < 1e-6
    assert relative_error(grad, true_grad) < 2e-6


@EVERY_CASE
def test_several_hundred_rows(cpu_backend: str, case: LossCase) -> None:
    # The gradient says how the loss changes along it: no reference of this size is needed.
    student, teacher = torch.randn(400, 8), torch.randn(400, 5)
    loss, grad = value_and_grad(case, Inputs((student, teacher)), False, (1.0,))
    assert loss.isfinite()
    step = 1e-2 * grad / grad.norm()
    ends = [case.run(Inputs((student + s * step, teacher))).double() for s in (0.5, -0.5)]
    slope = (ends[0] - ends[1]) / step.double().norm()
    assert slope.item() == pytest.approx(grad.double().norm().item(), rel=2e-2)


@pytest.mark.parametrize("p", [0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 7.3])
def test_powers_and_zeros_of_attention(backend: str, p: float) -> None:
    student, teacher = torch.randn(4, 5, 6, 6), torch.randn(4, 3, 6, 6)
    student[0] = 0  # a map of zeros
    student[1, :, 2, 3] = 0  # a position of zeros
    student[1, 0, 4, 4] = 0
    student[1, 1, 4, 4] = -0.0
    teacher[2] = 0
    case = dataclasses.replace(ATTENTION, options={"p": p})
    for dtype in (torch.float32, torch.float16):
        inputs = Inputs((student.to(dtype), teacher))
        loss, grad = value_and_grad(case, inputs, False)
        true_loss, true_grad = value_and_grad(case, inputs.to(torch.float64), True)
        assert relative_error(loss, true_loss) < 1e-6
        assert relative_error(grad, true_grad) < 3e-6 + HALF_UNIT[dtype]
        assert grad[student == 0].abs().max() == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_attention_to_what_is_no_number_is_nan(backend: str, bad: float) -> None:
    for which in (0, 1):
        tensors = torch.randn(3, 5, 4, 4), torch.randn(3, 2, 4, 4)
        tensors[which][1, 1, 2, 2] = bad
        student = tensors[0].requires_grad_()
        loss = fastkd.attention_transfer_loss(student, tensors[1])
        assert loss.isnan()
        (grad,) = torch.autograd.grad(loss, student)
        assert grad[1].isnan().any()
        if which == 1:
            assert grad[[0, 2]].isfinite().all()


def test_attention_to_large_and_small_features(backend: str) -> None:
    for scale in (1e-4, 1e4):
        inputs = Inputs((scale * torch.randn(3, 5, 4, 4), scale * torch.randn(3, 2, 4, 4)))
        loss, grad = value_and_grad(ATTENTION, inputs, False)
        true_loss, true_grad = value_and_grad(ATTENTION, inputs.to(torch.float64), True)
        assert relative_error(loss, true_loss) < 1e-6
        assert relative_error(grad, true_grad) < 1e-6
