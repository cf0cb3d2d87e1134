# SPDX-License-Identifier: Apache-2.0
"""The divergences of kd_loss at their limits: equal, far apart, masked, nearly one-sided."""

import pytest
import torch
from row_values import INF, ROWS_AND_MAPS, kd, masked_sides, plain_values, true_values
from tolerance import assert_as_good, relative_error

DIVERGENCES = pytest.mark.parametrize(
    "divergence",
    [
        {"divergence": "reverse_kl"},
        {"divergence": "js"},
        {"divergence": "js", "beta": 0.01},
        {"divergence": "tv"},
    ],
    ids=["reverse_kl", "js", "js-0.01", "tv"],
)


@ROWS_AND_MAPS
@DIVERGENCES
@pytest.mark.parametrize("width", [1, 10, 3000])
def test_equal_logits_give_exactly_zero_by_any_divergence(
    backend: str, as_map: bool, divergence: dict[str, object], width: int
) -> None:
    logits = 5 * torch.randn(16, width)
    loss, grad = kd(logits, logits.clone(), None, as_map, temperature=2.0, **divergence)
    assert loss.equal(torch.zeros(16))
    assert grad.equal(torch.zeros_like(logits))


@ROWS_AND_MAPS
@DIVERGENCES
def test_equal_logits_of_subnormal_probabilities(
    backend: str, as_map: bool, divergence: dict[str, object]
) -> None:
    logits = 20 * torch.randn(64, 1000)
    loss, grad = kd(logits, logits.clone(), None, as_map, **divergence)
    assert loss.equal(torch.zeros(64))
    # Jensen-Shannon's logarithms have no digits there: some 1e-37 (2.4e-37 was the most seen).
    assert grad.abs().max() <= (5e-37 if divergence["divergence"] == "js" else 0)


@ROWS_AND_MAPS
@DIVERGENCES
@pytest.mark.parametrize("spread", [1e-2, 30.0, 1e4])
def test_divergences_of_large_offsets_and_spreads(
    backend: str, as_map: bool, divergence: dict[str, object], spread: float
) -> None:
    student = spread * torch.randn(16, 2500) + 1e4
    teacher = spread * torch.randn(16, 2500) - 1e4
    for temperature in (1.0, 3.0):
        options = {"temperature": temperature, **divergence}
        loss, grad = kd(student, teacher, None, as_map, **options)
        plain_loss, plain_grad = plain_values(student, teacher, None, **options)
        true_loss, true_grad = plain_values(student.double(), teacher.double(), None, **options)
        assert_as_good(loss, plain_loss, true_loss, 1e-6, "loss")
        # Where student or teacher is certain the true gradient is next to none; reverse KL makes it
        # of differences of logits, which have their own last digit.
        error, plain_error = ((g - true_grad).abs().max() for g in (grad, plain_grad))
        digit = 0.0
        if divergence["divergence"] == "reverse_kl":
            relative = [x - x.amax(-1, True) for x in (student, teacher)]
            digit = 2.0**-23 * float((relative[0] - relative[1]).abs().max())
        assert error <= 2 * plain_error + 2e-6 * true_grad.abs().max().clamp_min(1e-3) + digit


@ROWS_AND_MAPS
@DIVERGENCES
@pytest.mark.parametrize("width", [6, 2500])
def test_masked_classes_by_any_divergence(
    backend: str, as_map: bool, divergence: dict[str, object], width: int
) -> None:
    student, teacher = torch.randn(2, 16, width)
    target = torch.full((16,), width - 1)
    for where, s, t in masked_sides(student, teacher):
        loss, grad = kd(s, t, target, as_map, temperature=2.0, **divergence)
        if where == "teacher" and divergence["divergence"] == "reverse_kl":
            assert loss.equal(torch.full((16,), INF))
            continue
        true_loss, true_grad = true_values(s, t, target, temperature=2.0, **divergence)
        assert relative_error(loss, true_loss) < 1e-5
        assert relative_error(grad, true_grad) < 1e-5


@ROWS_AND_MAPS
@DIVERGENCES
def test_a_student_close_to_its_teacher_by_any_divergence(
    backend: str, as_map: bool, divergence: dict[str, object]
) -> None:
    teacher = (3 * torch.randn(16, 4000)).bfloat16()
    student = (teacher.float() + 0.1 * torch.randn(16, 4000)).bfloat16()
    loss, grad = kd(student, teacher, None, as_map, **divergence)
    true_loss, true_grad = true_values(student, teacher, None, **divergence)
    assert (grad - true_grad).norm() / true_grad.norm() < 0.005
    plain_loss, _ = plain_values(student.float(), teacher.float(), None, **divergence)
    assert_as_good(loss, plain_loss, true_loss, 1e-6, "loss")


@ROWS_AND_MAPS
@DIVERGENCES
@pytest.mark.parametrize(("student_classes", "teacher_classes"), [(40, 33), (2600, 1030)])
def test_common_vocab_by_any_divergence(
    backend: str,
    as_map: bool,
    divergence: dict[str, object],
    student_classes: int,
    teacher_classes: int,
) -> None:
    student, teacher = 3 * torch.randn(16, student_classes), 3 * torch.randn(16, teacher_classes)
    target = torch.randint(0, student_classes, (16,))
    options = {"temperature": 3.0, "common_vocab": True, **divergence}
    loss, grad = kd(student, teacher, target, as_map, **options)
    true_loss, true_grad = true_values(student, teacher, target, **options)
    assert relative_error(loss, true_loss) < 1e-6
    assert relative_error(grad, true_grad) < 2e-6


@ROWS_AND_MAPS
def test_a_float16_gradient_of_reverse_kl_may_be_large(backend: str, as_map: bool) -> None:
    # q (u - mean of u) / T has no bound but that of the logits.
    student, teacher = torch.zeros(16, 40), torch.zeros(16, 40)
    student[:, 0], teacher[:, 0] = 3.0, -6e4
    loss, grad = kd(student.half(), teacher.half(), None, as_map, divergence="reverse_kl")
    true_loss, true_grad = true_values(
        student.half(), teacher.half(), None, divergence="reverse_kl"
    )
    assert true_grad.abs().max() > 1e4
    assert relative_error(loss, true_loss) < 1e-6
    assert relative_error(grad, true_grad) < 1e-3


@ROWS_AND_MAPS
def test_the_ends_of_beta_are_the_divergences_of_kl(backend: str, as_map: bool) -> None:
    student, teacher = torch.randn(2, 16, 50)
    target = torch.randint(0, 50, (16,))
    for beta, same in ((0.0, "forward_kl"), (1.0, "reverse_kl"), (0, "forward_kl")):
        found = kd(student, teacher, target, as_map, divergence="js", beta=beta)
        expected = kd(student, teacher, target, as_map, divergence=same)
        assert found[0].equal(expected[0])
        assert found[1].equal(expected[1])


@ROWS_AND_MAPS
@pytest.mark.parametrize("beta", [1e-4, 0.1, 0.9, 1 - 1e-4])
def test_a_mixture_of_nearly_one_side(backend: str, as_map: bool, beta: float) -> None:
    # The loss is about beta (1 - beta) of the terms that cancel in it.
    student, teacher = 3 * torch.randn(2, 16, 300)
    loss, grad = kd(student, teacher, None, as_map, divergence="js", beta=beta)
    true_loss, true_grad = true_values(student, teacher, None, divergence="js", beta=beta)
    plain_loss, plain_grad = plain_values(student, teacher, None, divergence="js", beta=beta)
    assert_as_good(loss, plain_loss, true_loss, 1e-6, "loss")
    assert_as_good(grad, plain_grad, true_grad, 1e-6, "gradient")
