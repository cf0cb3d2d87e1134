# SPDX-License-Identifier: Apache-2.0
"""Values and derivatives of dist_loss, against the authors' code in float64."""

import math
from typing import Any

import pytest
import torch
from eager_losses import eager_dist_loss
from tolerance import GRAD_FLOOR, LOSS_FLOOR, assert_as_good, relative_error
from torch import Tensor

import fastkd
from benchmarks.memory import peak_tensor_bytes
from fastkd import reference

Shape = tuple[int, ...]
each_form = pytest.mark.parametrize("where", [fastkd, reference], ids=["public", "reference"])
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def value_and_grad(
    function: Any, student: Tensor, teacher: Tensor, **options: Any
) -> tuple[Tensor, Tensor]:
    student = student.detach().clone().requires_grad_()
    loss = function(student, teacher, **options)
    return loss.detach(), torch.autograd.grad(loss, student)[0]


def second_derivative(function: Any, student: Tensor, teacher: Tensor) -> Tensor:
    student = student.detach().clone().requires_grad_()
    (grad,) = torch.autograd.grad(function(student, teacher), student, create_graph=True)
    return torch.autograd.grad((grad * torch.linspace(-1, 1, grad.shape[-1])).sum(), student)[0]


def test_by_hand() -> None:
    # Of two classes every correlation is 1 or -1: the second row's, here.
    student = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    teacher = torch.tensor([[2.0, 0.0], [1.0, 0.0]])
    assert fastkd.dist_loss(student, teacher, beta=3.0).item() == pytest.approx(3.0, abs=1e-5)
    turned = fastkd.dist_loss(student, teacher.flip(0), gamma=3.0)
    assert turned.item() == pytest.approx(1 + 2 * 3.0, abs=1e-5)


@each_form
@pytest.mark.parametrize("options", [{}, {"temperature": 4.0, "beta": 1.5, "gamma": 0.5}], ids=str)
@pytest.mark.parametrize("shape", [(6, 10), (1, 5), (5, 1), (40, 1000), (300, 7), (16, 4)], ids=str)
@pytest.mark.parametrize("scale", [0.01, 1.0, 10.0])
def test_the_original_code(where: Any, options: Any, shape: Shape, scale: float) -> None:
    student, teacher = scale * torch.randn(2, *shape)
    truth = value_and_grad(eager_dist_loss, student.double(), teacher.double(), **options)
    double = value_and_grad(where.dist_loss, student.double(), teacher.double(), **options)
    torch.testing.assert_close(double, truth, rtol=1e-9, atol=1e-13)
    loss, grad = value_and_grad(where.dist_loss, student, teacher, **options)
    plain = value_and_grad(eager_dist_loss, student, teacher, **options)
    assert_as_good(loss, plain[0], truth[0], LOSS_FLOOR, "loss")
    # Probabilities near each other carry the rounding of softmax, relative to their spread.
    assert_as_good(grad, plain[1], truth[1], 2 * GRAD_FLOOR / min(scale, 1.0), "gradient")


@each_form
def test_small_probabilities_in_many_classes(where: Any) -> None:
    student, teacher = 5 * torch.randn(2, 16, 32000)
    truth = value_and_grad(eager_dist_loss, student.double(), teacher.double())
    plain = value_and_grad(eager_dist_loss, student, teacher)
    loss, grad = value_and_grad(where.dist_loss, student, teacher)
    assert relative_error(loss, truth[0]) < LOSS_FLOOR
    # Two large slopes of a class cancel: the original code errs by 1e-5 to 3e-5.
    assert_as_good(grad, plain[1], truth[1], GRAD_FLOOR, "gradient")


@each_form
@pytest.mark.parametrize(
    ("shape", "dim"),
    [((2, 5, 3, 4), 1), ((2, 5, 3, 4), -3), ((3, 4, 6), -1), ((3, 4, 6), 0), ((7,), -1), ((7,), 0)],
)
def test_all_that_is_no_class_is_a_row(where: Any, shape: Shape, dim: int) -> None:
    student, teacher = torch.randn(2, *shape, dtype=torch.float64)
    flat = [x.movedim(dim, -1).reshape(-1, shape[dim]) for x in (student, teacher)]
    loss, grad = value_and_grad(where.dist_loss, student, teacher, dim=dim)
    expected, flat_grad = value_and_grad(eager_dist_loss, *flat)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(grad.movedim(dim, -1).reshape(flat_grad.shape), flat_grad)


@each_form
def test_without_temperature_squared(where: Any) -> None:
    student, teacher = torch.randn(2, 4, 6)
    loss = where.dist_loss(student, teacher, temperature=4.0)
    plain = where.dist_loss(student, teacher, temperature=4.0, temperature_squared=False)
    torch.testing.assert_close(16 * plain, loss)


@each_form
@each_dtype
def test_equal_logits_keep_what_damps(where: Any, dtype: torch.dtype) -> None:
    student = 3 * torch.randn(64, 100, dtype=dtype)
    q = student.double().softmax(1)
    missing = [
        (1e-8 / ((q - q.mean(dim, True)).square().sum(dim) + 1e-8)).mean().item() for dim in (0, 1)
    ]
    loss, grad = value_and_grad(where.dist_loss, student, student.clone())
    assert loss.item() == pytest.approx(sum(missing), abs=5e-7 if dtype == torch.float32 else 1e-14)
    assert grad.abs().max() < 1e-6


LEVEL = {
    "uniform rows": torch.zeros(6, 10),
    "equal rows": torch.randn(1, 10, generator=torch.Generator().manual_seed(0)).repeat(6, 1),
    "one row": torch.linspace(-1, 1, 10).unsqueeze(0),
    "one class": torch.linspace(-1, 1, 6).unsqueeze(1),
}
# Relations that are level: without a gradient.
OF_ROWS, OF_COLUMNS = {"uniform rows", "one class"}, {*LEVEL}


@each_form
@each_dtype
@pytest.mark.parametrize("which", ["student", "teacher"])
@pytest.mark.parametrize("kind", LEVEL)
def test_level_probabilities_have_no_gradient(
    where: Any, dtype: torch.dtype, which: str, kind: str
) -> None:
    level = LEVEL[kind].to(dtype)
    other = torch.randn(level.shape, dtype=dtype)
    sides = (level, other) if which == "student" else (other, level)
    truth = eager_dist_loss(*(side.double() for side in sides))
    loss, _ = value_and_grad(where.dist_loss, *sides)
    assert abs(loss - truth) < 1e-6
    for weights, levels in (({"gamma": 0.0}, OF_ROWS), ({"beta": 0.0}, OF_COLUMNS)):
        _, grad = value_and_grad(where.dist_loss, *sides, **weights)
        assert grad.isfinite().all()
        assert (grad.count_nonzero() == 0) == (kind in levels)
    assert second_derivative(where.dist_loss, *sides).isfinite().all()


@pytest.mark.parametrize("rows", [3, 64, 1000, 100_003])
def test_equal_rows_are_level_despite_rounding(rows: int) -> None:
    student = torch.randn(1, 7).repeat(rows, 1)
    _, grad = value_and_grad(fastkd.dist_loss, student, torch.randn(rows, 7), beta=0.0)
    assert grad.count_nonzero() == 0


@pytest.mark.parametrize(("rows", "classes"), [(2, 17), (2, 5), (3, 100)])
@pytest.mark.parametrize("masked", [False, True])
def test_few_rows_keep_their_digits(rows: int, classes: int, masked: bool) -> None:
    # Two numbers correlate by 1 or -1 whatever they are: next to nothing is left of a column's
    # gradient, and rounding must not be. One draw may do worse than the reference, not all.
    ours, theirs = 0.0, 0.0
    mask = torch.tensor([True] * rows + [False] * 2) if masked else None
    for _ in range(50):
        student, teacher = torch.randn(2, rows + 2 * masked, classes)
        _, truth = value_and_grad(
            reference.dist_loss, student.double(), teacher.double(), mask=mask
        )
        gradients = (
            value_and_grad(where.dist_loss, student, teacher, mask=mask)[1]
            for where in (fastkd, reference)
        )
        error, error_of_reference = (relative_error(grad, truth) for grad in gradients)
        ours, theirs = ours + error, theirs + error_of_reference
    assert ours < 1.5 * theirs


@each_form
@each_dtype
@pytest.mark.parametrize("which", ["student", "teacher", "both", "other classes"])
def test_classes_may_be_masked_by_infinity(where: Any, dtype: torch.dtype, which: str) -> None:
    student, teacher = torch.randn(2, 6, 10, dtype=dtype)
    if which != "teacher":
        student[:, 3], student[0, 5:] = -math.inf, -math.inf
    if which != "student":
        teacher[:, 8 if which == "other classes" else 3] = -math.inf
    truth = eager_dist_loss(student.double(), teacher.double())
    loss, grad = value_and_grad(where.dist_loss, student, teacher)
    torch.testing.assert_close(loss.double(), truth, rtol=1e-6, atol=0)
    assert grad.isfinite().all()
    assert grad[student == -math.inf].count_nonzero() == 0
    assert second_derivative(where.dist_loss, student, teacher).isfinite().all()


@each_form
def test_a_row_of_no_class_is_nan(where: Any) -> None:
    student, teacher = torch.randn(2, 3, 4)
    student[1] = -math.inf
    assert where.dist_loss(student, teacher).isnan()


@each_form
@pytest.mark.parametrize("scale", [10.0, 40.0, 100.0, 1e4])
def test_derivatives_of_far_logits(where: Any, scale: float) -> None:
    student, teacher = scale * torch.randn(2, 8, 20)
    truth = value_and_grad(where.dist_loss, student.double(), teacher.double())
    loss, grad = value_and_grad(where.dist_loss, student, teacher)
    assert relative_error(loss, truth[0]) < LOSS_FLOOR
    assert (grad - truth[1]).abs().max() < 1e-5 * max(float(truth[1].abs().max()), 1e-3)
    assert second_derivative(where.dist_loss, student, teacher).isfinite().all()


@each_form
@pytest.mark.parametrize(("shape", "dim"), [((6, 5), -1), ((2, 5, 3), 1)])
def test_masked_rows_do_not_count(where: Any, shape: Shape, dim: int) -> None:
    student, teacher = torch.randn(2, *shape)
    mask = torch.tensor([True, False, True, True, False, True])
    mask = mask if dim == -1 else mask.view(2, 3)
    kept = [x.movedim(dim, -1)[mask] for x in (student, teacher)]
    expected, expected_grad = value_and_grad(eager_dist_loss, *kept)
    for x in (student, teacher):
        x.movedim(dim, -1)[~mask] = torch.tensor([math.nan, math.inf, -math.inf, 0.0, 1e38])
    loss, grad = value_and_grad(where.dist_loss, student, teacher, dim=dim, mask=mask)
    torch.testing.assert_close(loss, expected)
    grad = grad.movedim(dim, -1)
    torch.testing.assert_close(grad[mask], expected_grad)
    assert grad[~mask].count_nonzero() == 0


@each_form
@pytest.mark.parametrize("shape", [(0, 4), (3, 4), (0, 4, 2), (4,)])
def test_no_row_gives_0(where: Any, shape: Shape) -> None:
    dim = 1 if len(shape) == 3 else -1
    rows = torch.empty(shape).select(dim, 0).shape
    student = torch.full(shape, math.nan, requires_grad=True)
    options = {"mask": torch.zeros(rows, dtype=torch.bool)} if 0 not in shape else {}
    loss = where.dist_loss(student, student.detach(), dim=dim, **options)
    assert loss.item() == 0
    loss.backward()
    assert torch.equal(student.grad, torch.zeros(shape))


def test_nothing_depends_on_what_tensors_hold() -> None:
    # Else CUDA graphs and torch.compile would break: meta tensors hold nothing.
    student, teacher = torch.empty(2, 4, 6, device="meta")
    mask = torch.empty(4, dtype=torch.bool, device="meta")
    loss, grad = value_and_grad(fastkd.dist_loss, student, teacher, mask=mask)
    assert (loss.shape, grad.shape) == ((), (4, 6))


@pytest.mark.parametrize("name", ["teacher", "mask"])
def test_what_double_backward_reads_again_must_not_change(name: str) -> None:
    student, teacher = torch.randn(4, 6), torch.randn(4, 6)
    tensors = {"teacher": teacher, "mask": torch.ones(4, dtype=torch.bool)}
    student.requires_grad_()
    loss = fastkd.dist_loss(student, teacher, mask=tensors["mask"])
    tensors[name].zero_()
    torch.autograd.grad(loss, student, retain_graph=True)
    with pytest.raises(RuntimeError, match="dist_loss: teacher_logits or mask was changed"):
        torch.autograd.grad(loss, student, create_graph=True)


def test_backward_scales_by_any_gradient() -> None:
    student, teacher = torch.randn(2, 4, 6)
    _, grad = value_and_grad(fastkd.dist_loss, student, teacher)
    student.requires_grad_()
    loss = fastkd.dist_loss(student, teacher)
    factors = torch.tensor([0.3, -2.0])
    (grads,) = torch.autograd.grad(loss, student, factors, is_grads_batched=True, retain_graph=True)
    torch.testing.assert_close(grads, factors.view(2, 1, 1) * grad)
    for _ in range(2):
        assert torch.equal(torch.autograd.grad(3 * loss, student, retain_graph=True)[0], 3 * grad)


def test_forward_mode() -> None:
    student, teacher, direction = torch.randn(3, 4, 6)
    loss, grad = value_and_grad(fastkd.dist_loss, student, teacher)
    value, slope = torch.func.jvp(lambda s: fastkd.dist_loss(s, teacher), (student,), (direction,))
    torch.testing.assert_close(value, loss)
    # torch's slope of a number times a 0-d tensor is float64.
    torch.testing.assert_close(slope, (grad * direction).sum(), check_dtype=False)


def test_only_the_student_learns() -> None:
    student, teacher = torch.randn(4, 6), torch.randn(4, 6, requires_grad=True)
    assert not fastkd.dist_loss(student, teacher).requires_grad
    assert reference.dist_loss(student, teacher).requires_grad


def test_a_mask_may_come_from_inference_mode() -> None:
    student, teacher = torch.randn(2, 12, 10)
    with torch.inference_mode():
        mask = torch.arange(12) != 5
    expected = value_and_grad(fastkd.dist_loss, student, teacher, mask=mask.clone())
    for function in (fastkd.dist_loss, torch.compile(fastkd.dist_loss, backend="aot_eager")):
        torch.testing.assert_close(value_and_grad(function, student, teacher, mask=mask), expected)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_four_tensors_are_held(dtype: torch.dtype, temperature: float) -> None:
    student, teacher = torch.randn(2, 512, 1000).to(dtype)
    student.requires_grad_()

    def call() -> Tensor:
        loss = fastkd.dist_loss(student, teacher, temperature=temperature)
        return torch.autograd.grad(loss, student)[0]

    assert peak_tensor_bytes(call) < 4.2 * 4 * student.numel()
