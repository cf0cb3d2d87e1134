# SPDX-License-Identifier: Apache-2.0
"""decoupled_kd_loss: the original's values, and rows whose label or rest has no probability."""

import math
from typing import Any

import pytest
import torch
from row_values import INF, ROWS_AND_MAPS
from tolerance import LOSS_FLOOR, assert_as_good, relative_error
from torch import Tensor
from torch.nn import functional

import fastkd

TERMS = pytest.mark.parametrize(
    "terms",
    [{"alpha": 1.0, "beta": 0.0}, {"alpha": 0.0, "beta": 1.0}, {"hard_weight": 0.5}],
    ids=["label", "others", "all"],
)


def decoupled(
    student: Tensor, teacher: Tensor, target: Tensor, as_map: bool, **options: Any
) -> tuple[Tensor, Tensor]:
    """Row losses and gradient of (N, C) logits, given to the kernel as rows or as a map."""
    leaf = (student.t().contiguous().t() if as_map else student).detach().requires_grad_()
    loss = fastkd.decoupled_kd_loss(
        leaf,
        teacher.t().contiguous().t() if as_map else teacher,
        target,
        **{"reduction": "none", **options},
    )
    loss.sum().backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    return loss.detach(), leaf.grad


def original(student: Tensor, teacher: Tensor, target: Tensor, alpha: float, beta: float) -> Tensor:
    """The authors' dkd_loss with T = 4, in the arithmetic of the logits."""
    label = functional.one_hot(target, student.shape[1])

    def of_label(logits: Tensor) -> Tensor:
        p = functional.softmax(logits / 4, 1)
        return torch.stack([(p * label).sum(1), (p * (1 - label)).sum(1)], 1)

    tckd = functional.kl_div(of_label(student).log(), of_label(teacher), reduction="sum")
    log_q = functional.log_softmax(student / 4 - 1000.0 * label, 1)
    nckd = functional.kl_div(
        log_q, functional.softmax(teacher / 4 - 1000.0 * label, 1), reduction="sum"
    )
    return (alpha * tckd + beta * nckd) * 16 / len(target)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_terms_that_weigh_nothing_have_a_gradient_of_zero(backend: str, dtype: torch.dtype) -> None:
    student, teacher = torch.randn(2, 3, 5, dtype=dtype)
    target = torch.tensor([0, -100, 2])
    loss, grad = decoupled(student, teacher, target, as_map=False, alpha=0.0, beta=0.0)
    assert loss.tolist() == [0.0, 0.0, 0.0]
    assert grad.count_nonzero() == 0


def test_equals_the_original_code(backend: str) -> None:
    student, teacher = 3 * torch.randn(2, 64, 100)
    target = torch.randint(100, (64,))
    ours = fastkd.decoupled_kd_loss(student, teacher, target, alpha=1.0, beta=8.0)
    theirs = original(student.double(), teacher.double(), target, 1.0, 8.0)
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-6, atol=0)


@ROWS_AND_MAPS
@pytest.mark.parametrize("classes", [2, 10, 1500])
def test_its_terms_make_up_the_divergence_of_all_classes(
    backend: str, as_map: bool, classes: int
) -> None:
    """KL(p, q) = KL of the label + (1 - p_y) KL of the others, equation 6 of the paper."""
    student, teacher = 3 * torch.randn(2, 20, classes)
    target = torch.randint(classes, (20,))
    label, _ = decoupled(student, teacher, target, as_map, alpha=1.0, beta=0.0)
    others, _ = decoupled(student, teacher, target, as_map, alpha=0.0, beta=1.0)
    p = functional.softmax(teacher.double() / 4, 1).gather(1, target.unsqueeze(1)).squeeze(1)
    whole = fastkd.kd_loss(student.double(), teacher.double(), temperature=4.0, reduction="none")
    torch.testing.assert_close(label + (1 - p) * others, whole, rtol=3e-6, atol=3e-6)


@ROWS_AND_MAPS
@TERMS
@pytest.mark.parametrize("classes", [2, 21, 1500])
@pytest.mark.parametrize("spread", [30.0, 1000.0])
def test_finite_and_right_for_logits_far_apart(
    backend: str, as_map: bool, terms: dict[str, float], classes: int, spread: float
) -> None:
    student, teacher = spread * torch.randn(2, 30, classes)
    target = torch.randint(classes, (30,))
    loss, grad = decoupled(student, teacher, target, as_map, temperature=1.0, **terms)
    leaf = student.double().requires_grad_()
    truth = fastkd.reference.decoupled_kd_loss(
        leaf, teacher.double(), target, reduction="none", temperature=1.0, **terms
    )
    truth.sum().backward()
    assert leaf.grad is not None
    assert loss.isfinite().all()
    assert relative_error(loss, truth) <= 1e-6
    # e^x knows x to a unit in its last place.
    assert relative_error(grad, leaf.grad) <= 2**-23 * spread
    assert (grad.sum(1).abs() <= 1e-4 * (1 + grad.abs().sum(1))).all()


@ROWS_AND_MAPS
@pytest.mark.parametrize("classes", [1, 2, 100, 3000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_equal_logits_give_exactly_zero(
    backend: str, as_map: bool, classes: int, dtype: torch.dtype
) -> None:
    logits = (5 * torch.randn(16, classes)).to(dtype)
    loss, grad = decoupled(logits, logits.clone(), torch.randint(classes, (16,)), as_map)
    assert loss.equal(torch.zeros(16))
    assert grad.equal(torch.zeros_like(logits))


@ROWS_AND_MAPS
@TERMS
@pytest.mark.parametrize("classes", [5, 40, 2000])
def test_masked_classes(backend: str, as_map: bool, terms: dict[str, float], classes: int) -> None:
    """What is -inf on both sides does not count, the label's class too."""
    student, teacher = 3 * torch.randn(2, 8, classes)
    target = torch.full((8,), 2)
    narrow = decoupled(
        student[:, : classes - 2], teacher[:, : classes - 2], target, as_map, **terms
    )
    masked = torch.tensor([classes - 2, classes - 1])
    wide = decoupled(
        student.index_fill(1, masked, -INF), teacher.index_fill(1, masked, -INF), target, as_map,
        **terms,
    )  # fmt: skip
    torch.testing.assert_close(wide[0], narrow[0], rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(wide[1][:, : classes - 2], narrow[1], rtol=1e-5, atol=1e-6)
    assert (wide[1][:, classes - 2 :] == 0).all()


@ROWS_AND_MAPS
@pytest.mark.parametrize("classes", [3, 40, 2000])
def test_sides_without_the_label_or_without_the_rest(
    backend: str, as_map: bool, classes: int
) -> None:
    logits = torch.zeros(classes)
    label_only = torch.full((classes,), -INF)
    label_only[1] = 0.0
    no_label = logits.clone()
    no_label[1] = -INF
    student = torch.stack([label_only, logits, label_only, no_label, no_label, logits])
    teacher = torch.stack([label_only, label_only, logits, no_label, logits, no_label])
    target = torch.ones(6, dtype=torch.int64)
    loss, grad = decoupled(student, teacher, target, as_map, temperature=1.0)
    truth = fastkd.reference.decoupled_kd_loss(
        student.double(), teacher.double(), target, reduction="none", temperature=1.0
    )
    torch.testing.assert_close(loss.double(), truth, rtol=1e-6, atol=1e-6)
    surest = math.log(classes)  # of a teacher that knows the label, KL = -log q_y
    label_alone = -math.log1p(-1 / classes)  # of one that knows all but the label
    expected = torch.tensor([0.0, surest, INF, 0.0, INF, label_alone])
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    for row in (0, 1, 3, 5):
        assert grad[row].isfinite().all()
        assert abs(float(grad[row].sum())) <= 1e-6
    assert (grad[[0, 3]] == 0).all()


@ROWS_AND_MAPS
def test_nan_and_infinities(backend: str, as_map: bool) -> None:
    student, teacher = torch.randn(2, 8, 30)
    student[0] = -INF
    student[1, 5] = teacher[2, 7] = INF
    teacher[3, 9] = student[4, 4] = teacher[5, 5] = math.nan  # the last two at the label
    teacher[6, 6] = student[6, 6] = INF  # certain of the label, both
    loss, grad = decoupled(student, teacher, torch.arange(8), as_map)
    assert loss.isnan().tolist() == [True] * 6 + [False] * 2
    assert grad[[1, 2, 3, 4, 5]].isnan().any(1).all()
    assert loss[6:].isfinite().all()
    assert grad[6:].isfinite().all()
    assert grad[6, 6] == 0


def test_the_label_keeps_its_digits_where_it_is_sure(backend: str) -> None:
    """Both sides almost sure of the label: the difference is in what is left to the others."""
    student, teacher = torch.zeros(2, 1, 100)
    student[0, 0], teacher[0, 0] = 18.0, 20.0
    target = torch.zeros(1, dtype=torch.int64)

    def loss_of(student: Tensor, function: Any) -> Tensor:
        found: Tensor = function(
            student, teacher.to(student.dtype), target, temperature=1.0, beta=0.0
        )
        return found

    truth = loss_of(student.double(), fastkd.reference.decoupled_kd_loss)
    plain = original_label_term(student, teacher)
    assert_as_good(loss_of(student, fastkd.decoupled_kd_loss), plain, truth, LOSS_FLOOR, "loss")
    assert relative_error(loss_of(student, fastkd.decoupled_kd_loss), truth) <= 1e-5


def original_label_term(student: Tensor, teacher: Tensor) -> Tensor:
    q, p = functional.softmax(student, 1), functional.softmax(teacher, 1)
    both = torch.stack([q[:, 0], 1 - q[:, 0]]).log(), torch.stack([p[:, 0], 1 - p[:, 0]])
    return functional.kl_div(*both, reduction="sum")


S, T = torch.randn(2, 4, 6)
Y = torch.zeros(4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("error", "message", "arguments", "options"),
    [
        (TypeError, "target must be a torch.Tensor, got NoneType", (S, T, None), {}),
        (TypeError, "target must be int64 class indices, got torch.int32", (S, T, Y.int()), {}),
        (ValueError, r"teacher_logits must have the student's shape \(4, 6\), got \(4, 5\)",
         (S, T[:, :5], Y), {}),
        (IndexError, r"target must be in \[0, 6\) or ignore_index, got 6 at \(0,\)",
         (S, T, Y + 6), {}),
        (IndexError, r"target must be in \[0, 6\) or ignore_index, got 6 at \(0,\)",
         (S.double(), T, Y + 6), {}),
        (ValueError, r"alpha must be in \[0, 1e6\], got -1.0", (S, T, Y), {"alpha": -1.0}),
        (ValueError, r"beta must be in \[0, 1e6\], got inf", (S, T, Y), {"beta": INF}),
        (ValueError, r"hard_weight must be in \[0, 1e6\], got nan", (S, T, Y),
         {"hard_weight": math.nan}),
        (ValueError, r"temperature must be in \[1e-6, 1e6\], got 0", (S, T, Y), {"temperature": 0}),
        (ValueError, "reduction must be one of none, sum, mean, batchmean, got 'max'", (S, T, Y),
         {"reduction": "max"}),
        (ValueError, "with inplace=True student_logits must be the output of an operation",
         (S.clone().requires_grad_(), T, Y), {"inplace": True}),
    ],
)  # fmt: skip
def test_errors(
    error: type[Exception], message: str, arguments: tuple[Any, ...], options: dict[str, Any]
) -> None:
    def by_module(*arguments: Any, **options: Any) -> Tensor:
        found: Tensor = fastkd.DecoupledKDLoss(**options)(*arguments)
        return found

    for function in (fastkd.decoupled_kd_loss, by_module):
        with pytest.raises(error, match=f"decoupled_kd_loss: {message}"):
            function(*arguments, **options)


def test_the_kernel_refuses_what_it_could_not_read() -> None:
    """The checks above stand before it; a call around them must not crash."""
    inputs = fastkd._options.KDLossInputs(S, T, None, None, None)  # type: ignore[attr-defined]
    from fastkd.ops.decoupled_kd_loss import PATHS

    with pytest.raises(ValueError, match="a decoupled loss needs a target"):
        PATHS.eager(inputs, fastkd._options.DecoupledKDLossOptions())  # type: ignore[attr-defined]
