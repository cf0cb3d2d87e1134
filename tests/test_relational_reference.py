# SPDX-License-Identifier: Apache-2.0
"""Relational and attention references: closed forms, the authors' formulas, gradcheck."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import FEATURE_CASES, PAIR_CASES, Inputs, LossCase
from torch import Tensor
from torch.nn import functional

from fastkd import reference

F64 = torch.float64
Loss = Callable[..., Tensor]

TRIANGLE = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=F64)  # right-angled
LINE = torch.tensor([[0.0], [1.0], [2.0]], dtype=F64)
CROSS = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=F64)
SAME = torch.tensor([[3.0], [3.0]], dtype=F64)


# ---- by hand ----

# Distances over their mean: of the triangle 1, 1, sqrt 2, of the line 1, 2, 1.
SHORT, LONG = 3 / (2 + math.sqrt(2)), 3 * math.sqrt(2) / (2 + math.sqrt(2))
OFF = [SHORT - 3 / 4, SHORT - 3 / 2, LONG - 3 / 4]  # of the pairs 01, 02, 12
# Cosines at the corners 0, 1, 2: of the triangle 0, 1/sqrt 2, 1/sqrt 2, of the line 1, -1, 1.
ROOT = math.sqrt(0.5)
ANGLES = [-1.0, ROOT + 1, ROOT - 1]


def huber(x: float, beta: float = 1.0) -> float:
    return x * x / (2 * beta) if abs(x) < beta else abs(x) - beta / 2


@pytest.mark.parametrize(
    ("options", "distance", "angle"),
    [
        ({}, 2 * sum(map(huber, OFF)) / 9, 2 * sum(map(huber, ANGLES)) / 27),
        ({"reduction": "sum"}, 2 * sum(map(huber, OFF)), 2 * sum(map(huber, ANGLES))),
        ({"reduction": "mean_distinct"}, sum(map(huber, OFF)) / 3, sum(map(huber, ANGLES)) / 3),
        ({"criterion": "l1"}, 2 * sum(map(abs, OFF)) / 9, 2 * sum(map(abs, ANGLES)) / 27),
        (
            {"criterion": "l2"},
            2 * sum(x * x for x in OFF) / 9,
            2 * sum(x * x for x in ANGLES) / 27,
        ),
        (
            {"beta": 0.5},
            2 * sum(huber(x, 0.5) for x in OFF) / 9,
            2 * sum(huber(x, 0.5) for x in ANGLES) / 27,
        ),
    ],
    ids=str,
)
def test_a_triangle_and_a_line(options: dict[str, Any], distance: float, angle: float) -> None:
    def both(**weights: float) -> float:
        return reference.rkd_loss(TRIANGLE, LINE, **options, **weights).item()

    found = reference.rkd_distance_loss(TRIANGLE, LINE, **options).item()
    assert found == pytest.approx(distance, rel=1e-12)
    found = reference.rkd_angle_loss(TRIANGLE, LINE, **options).item()
    assert found == pytest.approx(angle, rel=1e-12)
    assert both() == pytest.approx(25 * distance + 50 * angle, rel=1e-12)
    assert both(distance_weight=2, angle_weight=0) == pytest.approx(2 * distance, rel=1e-12)
    assert both(distance_weight=0, angle_weight=0) == 0


def test_squared_distances_by_hand() -> None:
    # Squares 1, 1, 2 and 1, 4, 1 over their means 4/3 and 2.
    off = [3 / 4 - 1 / 2, 3 / 4 - 2, 3 / 2 - 1 / 2]
    loss = reference.rkd_distance_loss(TRIANGLE, LINE, squared=True, criterion="l1")
    assert loss.item() == pytest.approx(2 * sum(map(abs, off)) / 9, rel=1e-12)


@pytest.mark.parametrize(
    ("loss", "options", "expected"),
    [
        # G = I against two equal rows: P = I against 1 / sqrt 2 everywhere.
        ("similarity_preserving_loss", {}, ((1 - ROOT) ** 2 + 0.5) / 2),
        ("similarity_preserving_loss", {"reduction": "sum"}, 2 * (1 - ROOT) ** 2 + 1),
        # The cosine 0 against 1, once above and once below the diagonal.
        ("cosine_similarity_loss", {}, 0.25),
        ("cosine_similarity_loss", {"beta": 0.5}, 0.375),
        ("cosine_similarity_loss", {"criterion": "l1"}, 0.5),
        ("cosine_similarity_loss", {"criterion": "l2", "reduction": "mean_distinct"}, 1.0),
        # q = (2/3, 1/3) against p = (1/2, 1/2), in both rows.
        ("pkt_loss", {"eps": 1e-18}, math.log(9 / 8) / 4),
        ("pkt_loss", {"eps": 1e-18, "reduction": "sum"}, math.log(9 / 8)),
        # exp(-2 gamma) against 1.
        ("correlation_loss", {}, (1 - math.exp(-0.8)) ** 2 / 2),
        ("correlation_loss", {"gamma": 2.0, "reduction": "sum"}, 2 * (1 - math.exp(-4)) ** 2),
        ("correlation_loss", {"reduction": "mean_distinct"}, (1 - math.exp(-0.8)) ** 2),
    ],
)
def test_two_directions_against_one(loss: str, options: dict[str, Any], expected: float) -> None:
    function: Loss = getattr(reference, loss)
    assert function(CROSS, SAME, **options).item() == pytest.approx(expected, rel=1e-12)


def test_attention_by_hand() -> None:
    student = torch.tensor([[[3.0, 4.0]]], dtype=F64)  # one sample, channel, two positions
    teacher = torch.tensor([[[1.0, 1.0], [-1.0, 1.0]]], dtype=F64)  # two channels
    flat = reference.attention_transfer_loss(student, teacher, p=1.0)
    assert flat.item() == pytest.approx(((0.6 - ROOT) ** 2 + (0.8 - ROOT) ** 2) / 2, rel=1e-12)
    norm = math.hypot(9, 16)
    square = reference.attention_transfer_loss(student, teacher, reduction="sum")
    expected = (9 / norm - ROOT) ** 2 + (16 / norm - ROOT) ** 2
    assert square.item() == pytest.approx(expected, rel=1e-12)


def test_interpolation_averages_the_larger_side_of_each_dimension() -> None:
    student, teacher = torch.randn(2, 3, 4, 2, dtype=F64), torch.randn(2, 5, 2, 6, dtype=F64)
    loss = reference.attention_transfer_loss(student, teacher, interpolate=True)
    blocks = student.reshape(2, 3, 2, 2, 2).mean(3), teacher.reshape(2, 5, 2, 2, 3).mean(4)
    torch.testing.assert_close(loss, reference.attention_transfer_loss(*blocks))


@pytest.mark.parametrize("case", [*PAIR_CASES, *FEATURE_CASES], ids=str)
def test_equal_relations_give_zero(case: LossCase) -> None:
    student, _ = case.make_inputs(case.geometry, F64).tensors
    student.requires_grad_()
    loss = case.run_reference(Inputs((student, student.detach().clone())))
    assert loss.item() == 0
    (grad,) = torch.autograd.grad(loss, student)
    # The eps of pkt_loss moves its minimum by as much.
    eps = case.options.get("eps", 1e-7) if case.loss == "pkt_loss" else 0
    assert grad.abs().max() <= eps + 1e-12


# ---- the formulas of PEERS.md, section 2, written anew ----


def pairwise(x: Tensor, squared: bool) -> Tensor:
    """Distances by inner products, 0 on the diagonal."""
    norms = x.square().sum(1)
    square = (norms[:, None] + norms[None, :] - 2 * x @ x.t()).clamp_min(1e-12)
    return (square if squared else square.sqrt()) * (1 - torch.eye(len(x), dtype=x.dtype))


def authors_distance(student: Tensor, teacher: Tensor, squared: bool = False) -> Tensor:
    s, t = pairwise(student, squared), pairwise(teacher, squared)
    return functional.smooth_l1_loss(s / s[s > 0].mean(), t / t[t > 0].mean())


def authors_angle(student: Tensor, teacher: Tensor) -> Tensor:
    def angles(x: Tensor) -> Tensor:
        directions = functional.normalize(x[None] - x[:, None], dim=2)
        return (directions @ directions.transpose(1, 2)).flatten()

    return functional.smooth_l1_loss(angles(student), angles(teacher))


def authors_rkd(student: Tensor, teacher: Tensor) -> Tensor:
    return 25 * authors_distance(student, teacher) + 50 * authors_angle(student, teacher)


def authors_similarity(student: Tensor, teacher: Tensor) -> Tensor:
    def rows(x: Tensor) -> Tensor:
        x = x.reshape(len(x), -1)
        return functional.normalize(x @ x.t())

    return (rows(student) - rows(teacher)).square().sum() / len(student) ** 2


def authors_transfer(student: Tensor, teacher: Tensor) -> Tensor:
    def neighbours(x: Tensor) -> Tensor:
        x = x / x.square().sum(1, keepdim=True).sqrt()  # theirs adds 1e-7 here too
        kernel = (x @ x.t() + 1) / 2
        return kernel / kernel.sum(1, keepdim=True)

    p, q = neighbours(teacher), neighbours(student)
    return (p * torch.log((p + 1e-7) / (q + 1e-7))).mean()


def authors_attention(student: Tensor, teacher: Tensor, p: float = 2.0) -> Tensor:
    def attention(x: Tensor) -> Tensor:
        return functional.normalize(x.abs().pow(p).mean(1).reshape(len(x), -1))

    return (attention(student) - attention(teacher)).square().mean()


def cosines(x: Tensor) -> Tensor:
    return functional.cosine_similarity(x[:, None], x[None], dim=2)


def table_of_cosines(student: Tensor, teacher: Tensor) -> Tensor:
    return functional.smooth_l1_loss(cosines(student), cosines(teacher))


def gaussian_kernels(student: Tensor, teacher: Tensor) -> Tensor:
    def kernel(x: Tensor) -> Tensor:
        unit = functional.normalize(x)
        return torch.exp(-0.4 * (unit[:, None] - unit[None]).square().sum(2))

    return functional.mse_loss(kernel(student), kernel(teacher))


FORMULAS: list[tuple[str, dict[str, Any], Loss]] = [
    ("rkd_distance_loss", {}, authors_distance),
    ("rkd_distance_loss", {"squared": True}, lambda s, t: authors_distance(s, t, True)),
    ("rkd_angle_loss", {}, authors_angle),
    ("rkd_loss", {}, authors_rkd),
    ("similarity_preserving_loss", {}, authors_similarity),
    ("cosine_similarity_loss", {}, table_of_cosines),
    ("pkt_loss", {}, authors_transfer),
    ("correlation_loss", {}, gaussian_kernels),
]


def assert_same(ours: Tensor, theirs: Tensor, student: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=0)
    grads = [torch.autograd.grad(loss, student)[0] for loss in (ours, theirs)]
    scale = grads[1].abs().max()
    assert (grads[0] - grads[1]).abs().max() <= 1e-10 * scale


@pytest.mark.parametrize(("rows", "widths"), [(3, (2, 2)), (8, (5, 5)), (24, (7, 30))])
@pytest.mark.parametrize(("loss", "options", "formula"), FORMULAS)
def test_relations_are_what_the_authors_wrote(
    loss: str, options: dict[str, Any], formula: Loss, rows: int, widths: tuple[int, int]
) -> None:
    student, teacher = (torch.randn(rows, width, dtype=F64) for width in widths)
    student.requires_grad_()
    function: Loss = getattr(reference, loss)
    assert_same(function(student, teacher, **options), formula(student, teacher), student)


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, 4.0])
def test_attention_is_what_the_authors_wrote(p: float) -> None:
    student, teacher = torch.randn(3, 4, 5, 6, dtype=F64), torch.randn(3, 7, 5, 6, dtype=F64)
    student.requires_grad_()
    ours = reference.attention_transfer_loss(student, teacher, p=p)
    assert_same(ours, authors_attention(student, teacher, p), student)


def test_similarity_takes_features_of_any_shape() -> None:
    student, teacher = torch.randn(4, 3, 2, 2, dtype=F64), torch.randn(4, 5, dtype=F64)
    student.requires_grad_()
    ours = reference.similarity_preserving_loss(student, teacher)
    assert_same(ours, authors_similarity(student, teacher), student)


# ---- derivatives ----


@pytest.mark.parametrize("case", [*PAIR_CASES, *FEATURE_CASES], ids=str)
def test_gradcheck_in_student_and_teacher(case: LossCase) -> None:
    inputs = case.make_inputs(case.family.small, F64)
    student, teacher = (t.requires_grad_() for t in inputs.tensors)

    def loss(*tensors: Tensor) -> Tensor:
        return case.run_reference(Inputs(tensors, inputs.keywords))

    assert torch.autograd.gradcheck(loss, (student, teacher))
    assert torch.autograd.gradgradcheck(loss, (student, teacher))


@pytest.mark.parametrize("p", [0.5, 1.0, 1.5, 2.0, 3.0])
def test_attention_of_zeros_has_gradient_zero(p: float) -> None:
    student, teacher = torch.randn(2, 3, 4, dtype=F64), torch.randn(2, 3, 4, dtype=F64)
    student[0] = 0
    student[1, :, 2] = 0
    student.requires_grad_()
    (grad,) = torch.autograd.grad(
        reference.attention_transfer_loss(student, teacher, p=p), student, create_graph=True
    )
    assert grad.isfinite().all()
    assert grad[student == 0].abs().max() == 0
    (second,) = torch.autograd.grad(grad.square().sum(), student)
    assert second.isfinite().all()


# ---- where the original is not defined ----


@pytest.mark.parametrize("loss", ["rkd_distance_loss", "rkd_angle_loss", "rkd_loss"])
def test_points_that_are_all_equal(loss: str) -> None:
    function: Loss = getattr(reference, loss)
    point = torch.ones(4, 3, dtype=F64, requires_grad=True)
    assert function(point, point.detach()).item() == 0
    value = function(point, torch.randn(4, 3, dtype=F64))
    assert value.item() > 0
    assert torch.autograd.grad(value, point)[0].abs().max() == 0


def test_a_duplicate_counts_as_the_smallest_distance() -> None:
    # Distances 1e-6, 1, 1 in place of 0, 1, 1; the teacher's are equal.
    student = torch.tensor([[0.0], [0.0], [1.0]], dtype=F64)
    corners = torch.eye(3, dtype=F64)
    mean = (1e-6 + 2) / 3
    expected = 2 * (huber(1e-6 / mean - 1) + 2 * huber(1 / mean - 1)) / 9
    loss = reference.rkd_distance_loss(student, corners)
    assert loss.item() == pytest.approx(expected, rel=1e-9)


def test_a_duplicate_has_no_direction() -> None:
    # Only the corner 2 sees two points apart from it, both in one direction: cosine 1 against 1/2
    # of the teacher's regular triangle. Corners 0 and 1 see 0 against 1/2, and no direction to each
    # other: 0 in place of 1.
    student = torch.tensor([[0.0], [0.0], [1.0]], dtype=F64)
    corners = torch.eye(3, dtype=F64)
    expected = (6 * huber(0.5) + 2 * huber(1.0)) / 27
    loss = reference.rkd_angle_loss(student, corners)
    assert loss.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("loss", ["cosine_similarity_loss", "correlation_loss", "pkt_loss"])
def test_a_zero_vector_has_the_cosine_zero_with_all(loss: str) -> None:
    student = torch.tensor([[0.0, 0.0], [1.0, 0.0]], dtype=F64, requires_grad=True)
    value = getattr(reference, loss)(student, CROSS)
    expected = {
        "cosine_similarity_loss": huber(1.0) / 4,  # 0 against 1 on the diagonal
        "correlation_loss": (1 - math.exp(-0.8)) ** 2 / 4,
        # q = (1/2, 1/2) against p = (2/3, 1/3) in the first row, the same rows below.
        "pkt_loss": (2 / 3 * math.log(4 / 3) + 1 / 3 * math.log(2 / 3)) / 4,
    }[loss]
    assert value.item() == pytest.approx(expected, rel=1e-6)
    (grad,) = torch.autograd.grad(value, student)
    assert grad.isfinite().all()
    assert grad[0].abs().max() == 0
