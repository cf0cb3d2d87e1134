# SPDX-License-Identifier: Apache-2.0
"""The reference on its own: closed forms, other people's formulas, gradcheck. Never the kernel."""

import math

import pytest
import torch
from cases import LOGIT_CASES, Geometry, Inputs, LossCase
from torch.nn import functional

from fastkd import reference


def test_two_classes_by_hand() -> None:
    # T = 2: p = softmax(0, ln 3) = (1/4, 3/4), q = softmax(0, 0) = (1/2, 1/2).
    student = torch.zeros(1, 2, dtype=torch.float64)
    teacher = torch.tensor([[0.0, 2 * math.log(3)]], dtype=torch.float64)
    kl = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    soft = reference.kd_loss(student, teacher, temperature=2.0)
    assert soft.item() == pytest.approx(4 * kl, rel=1e-12)
    both = reference.kd_loss(student, teacher, torch.tensor([1]), temperature=2.0, alpha=0.25)
    assert both.item() == pytest.approx(0.25 * 4 * kl + 0.75 * math.log(2), rel=1e-12)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_matches_torch_functional(temperature: float, smoothing: float) -> None:
    student, teacher = torch.randn(2, 6, 11, dtype=torch.float64)
    target = torch.tensor([0, 3, -100, 10, 5, -100])
    ours = reference.kd_loss(
        student,
        teacher,
        target,
        temperature=temperature,
        alpha=0.3,
        label_smoothing=smoothing,
        reduction="sum",
    )
    rows = target != -100
    soft = functional.kl_div(
        functional.log_softmax(student[rows] / temperature, -1),
        functional.log_softmax(teacher[rows] / temperature, -1),
        reduction="sum",
        log_target=True,
    )
    hard = functional.cross_entropy(student, target, reduction="sum", label_smoothing=smoothing)
    torch.testing.assert_close(ours, 0.3 * temperature**2 * soft + 0.7 * hard)


def test_high_temperature_is_logit_matching() -> None:
    # Hinton et al. 2015, section 2.1: T^2 KL -> sum (s - t)^2 / (2 C) for zero-mean logits.
    student, teacher = torch.randn(2, 5, 7, dtype=torch.float64)
    student, teacher = student - student.mean(-1, True), teacher - teacher.mean(-1, True)
    loss = reference.kd_loss(student, teacher, temperature=1e4, reduction="sum")
    matching = ((student - teacher) ** 2).sum() / (2 * 7)
    torch.testing.assert_close(loss, matching, rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("reduction", "expected"),
    [("sum", 3.0), ("mean", 1.0), ("batchmean", 0.75)],
)
def test_reductions(reduction: str, expected: float) -> None:
    # Three of four rows count, each with a cross-entropy of log 2.
    student = torch.zeros(4, 2, dtype=torch.float64)
    target = torch.tensor([0, 1, -100, 1])
    loss = reference.kd_loss(student, student, target, alpha=0.0, reduction=reduction)
    assert loss.item() == pytest.approx(expected * math.log(2))


def test_num_items_replaces_the_denominator() -> None:
    student = torch.zeros(4, 2, dtype=torch.float64)
    target = torch.tensor([0, 1, -100, 1])
    for num_items in (6, torch.tensor(6)):
        loss = reference.kd_loss(student, student, target, alpha=0.0, num_items=num_items)
        assert loss.item() == pytest.approx(math.log(2) / 2)


def test_mean_is_weighted() -> None:
    student = torch.tensor([[0.0, 0.0], [0.0, 100.0]], dtype=torch.float64)
    weight = torch.tensor([3.0, 1.0], dtype=torch.float64)
    target = torch.tensor([0, 1])
    loss = reference.kd_loss(student, student, target, alpha=0.0, sample_weight=weight)
    assert loss.item() == pytest.approx(0.75 * math.log(2))


def test_common_vocab_renormalises_over_the_shared_classes() -> None:
    student, teacher = (
        torch.randn(3, 9, dtype=torch.float64),
        torch.randn(3, 6, dtype=torch.float64),
    )
    padded = reference.kd_loss(student, teacher, temperature=3.0, common_vocab=True)
    cut = reference.kd_loss(student[:, :6], teacher, temperature=3.0)
    torch.testing.assert_close(padded, cut)
    target = torch.tensor([8, 0, 6])
    hard = reference.kd_loss(student, teacher, target, alpha=0.0, common_vocab=True)
    torch.testing.assert_close(hard, functional.cross_entropy(student, target))


@pytest.mark.parametrize("case", LOGIT_CASES, ids=str)
def test_gradcheck_in_both_logits(case: LossCase) -> None:
    inputs = case.make_inputs(Geometry((3, 4)), torch.float64, scale=1.0)
    student, teacher, *indices = inputs.tensors
    logits = student.requires_grad_(), teacher.requires_grad_()

    def loss(*tensors: torch.Tensor) -> torch.Tensor:
        return case.run_reference(Inputs((*tensors, *indices), inputs.keywords))

    assert torch.autograd.gradcheck(loss, logits)
    assert torch.autograd.gradgradcheck(loss, logits)


@pytest.mark.parametrize("masked", ["student", "teacher", "both"])
def test_masked_classes_give_no_nan(masked: str) -> None:
    student, teacher = torch.randn(2, 3, 5, dtype=torch.float64)
    if masked in ("student", "both"):
        student[:, 2] = -math.inf
    if masked in ("teacher", "both"):
        teacher[:, 2] = -math.inf
    student.requires_grad_()
    teacher.requires_grad_()
    loss = reference.kd_loss(student, teacher, torch.tensor([0, 1, 3]), temperature=2.0)
    assert loss.isinf() if masked == "student" else loss.isfinite()
    loss.backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    if masked != "student":
        assert teacher.grad is not None
        assert teacher.grad.isfinite().all()


def test_an_unknown_option_is_an_error() -> None:
    with pytest.raises(TypeError, match="tau"):
        reference.kd_loss(torch.zeros(1, 2), torch.zeros(1, 2), tau=4.0)
