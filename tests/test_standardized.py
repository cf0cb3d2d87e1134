# SPDX-License-Identifier: Apache-2.0
"""kd_loss(standardize_logits=True): the divergence of z-scores."""

import math
from typing import Any

import pytest
import torch
from cases import Geometry, Inputs, LossCase
from logit_cases import KD_CASES, make_logits
from tolerance import assert_as_good, relative_error
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import fastkd
from benchmarks.memory import peak_tensor_bytes
from fastkd._options import KDLossInputs, KDLossOptions
from fastkd.ops import _standardized
from fastkd.ops.kd_loss import forward

KERNEL_CASES = [case for case in KD_CASES if case.label != "alpha0"]
SHAPES = (Geometry((9, 37)), Geometry((2, 19, 5, 7), 1), Geometry((3, 1025)))


def original(student: Tensor, teacher: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Both terms as the authors' trainer adds them, with weights of one half."""

    def normalize(logits: Tensor) -> Tensor:
        deviation = logits.std(dim=-1, keepdim=True)
        return (logits - logits.mean(dim=-1, keepdim=True)) / (1e-7 + deviation)

    log_q = functional.log_softmax(normalize(student) / temperature, dim=1)
    p = functional.softmax(normalize(teacher) / temperature, dim=1)
    soft = functional.kl_div(log_q, p, reduction="none").sum(1).mean() * temperature**2
    return 0.5 * soft + 0.5 * functional.cross_entropy(student, target)


def differentiated(
    function: Any, student: Tensor, *rest: Any, **options: Any
) -> tuple[Tensor, Tensor]:
    leaf = student.detach().requires_grad_()
    loss = function(leaf, *rest, **options)
    (grad,) = torch.autograd.grad(loss.sum(), leaf)
    return loss.detach(), grad


def test_it_is_the_original_code() -> None:
    student, teacher = torch.randn(2, 16, 100, dtype=torch.float64)
    target = torch.randint(0, 100, (16,))
    expected = differentiated(original, student, teacher, target, 2.0)
    options = {"temperature": 2.0, "standardize_logits": True}
    for function in (fastkd.kd_loss, fastkd.reference.kd_loss):
        found = differentiated(function, 7 * student - 3, teacher, target, **options)
        truth = differentiated(original, 7 * student - 3, teacher, target, 2.0)
        torch.testing.assert_close(found, truth)
    found = differentiated(fastkd.kd_loss, student.float(), teacher.float(), target, **options)
    assert relative_error(found[0], expected[0]) < 1e-6
    assert relative_error(found[1], expected[1]) < 2e-6


@pytest.mark.parametrize("geometry", SHAPES, ids=str)
@pytest.mark.parametrize("case", KERNEL_CASES, ids=str)
def test_every_option_matches_the_reference(
    backend: str, case: LossCase, geometry: Geometry
) -> None:
    inputs = case.make_inputs(geometry)
    found = run(case.run, inputs)
    truth = run(case.run_reference, inputs.to(torch.float64))
    plain = run(case.run_reference, inputs)
    # The scores are rounded before the kernel sees them, and a divergence is a difference of sums.
    assert_as_good(found[0], plain[0], truth[0], 2e-6, "loss")
    assert_as_good(found[1], plain[1], truth[1], 1e-6, "gradient")


def run(function: Any, inputs: Inputs) -> tuple[Tensor, Tensor]:
    def of(student: Tensor) -> Tensor:
        changed = Inputs((student, inputs.tensors[1]), inputs.keywords)
        loss: Tensor = function(changed, standardize_logits=True)
        return loss

    return differentiated(of, inputs.tensors[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_types_are_standardized_in_float32(dtype: torch.dtype) -> None:
    inputs = make_logits(Geometry((9, 137)), dtype)
    loss, grad = run(fastkd_run, inputs)
    true_loss, true_grad = run(fastkd_run, inputs.to(torch.float64))
    assert loss.dtype == torch.float32
    assert grad.dtype == dtype
    assert relative_error(loss, true_loss) < 1e-6
    assert relative_error(grad, true_grad) < torch.finfo(dtype).eps


def fastkd_run(inputs: Inputs, **options: Any) -> Tensor:
    return fastkd.kd_loss(*inputs.tensors, **inputs.keywords, temperature=2.0, **options)


@pytest.mark.parametrize("lowest", [-math.inf, torch.finfo(torch.float32).min])
def test_masked_classes_are_not_of_the_sample(lowest: float) -> None:
    student, teacher = torch.randn(2, 8, 30)
    masked_student, masked_teacher = student.clone(), teacher.clone()
    masked_student[:, 20:] = masked_teacher[:, 20:] = lowest
    found = differentiated(fastkd.kd_loss, masked_student, masked_teacher, standardize_logits=True)
    expected = differentiated(
        fastkd.kd_loss, student[:, :20], teacher[:, :20], standardize_logits=True
    )
    torch.testing.assert_close(found[0], expected[0])
    torch.testing.assert_close(found[1][:, :20], expected[1])
    assert found[1][:, 20:].count_nonzero() == 0


@pytest.mark.parametrize(("scale", "offset"), [(1e19, 0.0), (1e-3, 1e3), (0.01, 1e4)])
@pytest.mark.parametrize("function", [fastkd.kd_loss, fastkd.reference.kd_loss])
def test_scale_and_shift_cost_no_digits(function: Any, scale: float, offset: float) -> None:
    student, teacher = scale * torch.randn(2, 8, 30) + offset
    found = differentiated(function, student, teacher, standardize_logits=True)
    truth = differentiated(
        fastkd.reference.kd_loss, student.double(), teacher.double(), standardize_logits=True
    )
    assert relative_error(found[0], truth[0]) < 2e-6
    assert relative_error(found[1], truth[1]) < 2e-6


def test_common_vocab_standardizes_what_both_have() -> None:
    student, teacher = torch.randn(8, 40), torch.randn(8, 33)
    options: dict[str, Any] = {"standardize_logits": True, "common_vocab": True}
    target = torch.randint(33, 40, (8,))
    found = differentiated(fastkd.kd_loss, student, teacher, target, alpha=1.0, **options)
    expected = differentiated(fastkd.kd_loss, student[:, :33], teacher, standardize_logits=True)
    torch.testing.assert_close(found[0], expected[0])
    torch.testing.assert_close(found[1][:, :33], expected[1])
    both = differentiated(fastkd.kd_loss, student, teacher, target, **options)
    truth = differentiated(
        fastkd.reference.kd_loss, student.double(), teacher.double(), target, **options
    )
    torch.testing.assert_close(both[0].double(), truth[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(both[1].double(), truth[1], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("function", [fastkd.kd_loss, fastkd.reference.kd_loss])
def test_level_rows_give_no_gradient_and_ignored_rows_may_hold_anything(function: Any) -> None:
    student, teacher = torch.randn(2, 6, 30)
    student[0] = 0.1
    student[1] = math.nan
    teacher[2] = 1e4
    target = torch.randint(0, 30, (6,))
    target[1] = -100
    options = {"standardize_logits": True, "alpha": 1.0, "reduction": "none"}
    loss, grad = differentiated(function, student, teacher, target, **options)
    assert loss.isfinite().all()
    assert grad.isfinite().all()
    assert grad[:2].count_nonzero() == 0
    assert grad[2:].count_nonzero() == 4 * 30


def test_one_class_and_no_row() -> None:
    for shape in ((4, 1), (0, 5)):
        student, teacher = torch.randn(2, *shape)
        loss, grad = differentiated(fastkd.kd_loss, student, teacher, standardize_logits=True)
        assert loss == 0
        assert grad.count_nonzero() == 0


def test_a_bad_target_is_an_error_with_any_alpha() -> None:
    student, teacher = torch.randn(2, 8, 30)
    for alpha in (1.0, 0.5):
        with pytest.raises(IndexError, match=r"target must be in \[0, 30\)"):
            fastkd.kd_loss(
                student, teacher, torch.full((8,), 30), alpha=alpha, standardize_logits=True
            )


def test_a_bad_target_poisons_its_row_on_cuda(
    emulated: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastkd.ops._standardized.check_target_range", lambda *_: None)
    student, teacher = torch.randn(2, 3, 30)
    target = torch.tensor([1, 30, -100])
    inputs = KDLossInputs(student, teacher, target, None, None)
    options = KDLossOptions(alpha=1.0, reduction="none", standardize_logits=True)
    loss = forward(inputs, options, with_grad=False).loss
    assert loss.isnan().tolist() == [False, True, False]
    assert loss[2] == 0


def test_second_derivatives() -> None:
    student, teacher = torch.randn(2, 3, 5, dtype=torch.float64)
    target = torch.tensor([1, 2, 4])
    student.requires_grad_()

    def of(student: Tensor) -> Tensor:
        return fastkd.reference.kd_loss(student, teacher, target, standardize_logits=True)

    assert torch.autograd.gradcheck(of, student)
    assert torch.autograd.gradgradcheck(of, student)
    leaf = student.detach().float().requires_grad_()
    loss = fastkd.kd_loss(leaf, teacher.float(), target, standardize_logits=True)
    (grad,) = torch.autograd.grad(loss, leaf, create_graph=True)
    (second,) = torch.autograd.grad(grad.square().sum(), leaf)
    (true_grad,) = torch.autograd.grad(of(student), student, create_graph=True)
    (truth,) = torch.autograd.grad(true_grad.square().sum(), student)
    assert relative_error(second, truth) < 1e-5


def test_compiled_and_in_transforms() -> None:
    student, teacher = torch.randn(2, 8, 30)
    target = torch.randint(0, 30, (8,))

    def of(student: Tensor, teacher: Tensor, target: Tensor | None = None) -> Tensor:
        return fastkd.kd_loss(student, teacher, target, standardize_logits=True)

    expected = differentiated(of, student, teacher, target)
    found = differentiated(torch.compile(of, fullgraph=True), student, teacher, target)
    torch.testing.assert_close(found, expected)
    rows = torch.func.vmap(of)(student, teacher, target)
    torch.testing.assert_close(rows.mean(), expected[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_the_registered_op(dtype: torch.dtype, reduction: str) -> None:
    student, teacher = torch.randn(2, 6, 3, 20, dtype=dtype)
    student = student.transpose(0, 1).requires_grad_()
    arguments = (
        *(student, teacher.transpose(0, 1), torch.randint(0, 20, (3, 6)), torch.rand(3, 6), None),
        *(None, 4.0, 0.5, "forward_kl", 0.5, -1, -100, 0.1, reduction, True, False, True, True),
    )
    torch.library.opcheck(torch.ops.fastkd.kd_loss.default, arguments)


KINDS_OF_ROWS = ("masked", "level", "not a number", "extreme")


def rows_of(kind: str) -> tuple[Tensor, Tensor]:
    """Logits of which one row can't be standardized as the others are."""
    student, teacher = torch.randn(2, 6, 20)
    if kind == "masked":
        student[2, 3] = teacher[2, 3] = teacher[4, 5] = -math.inf
    elif kind == "level":
        student[2], teacher[3] = 1.0, -2.0
    elif kind == "not a number":
        student[2, 3] = math.nan
    else:
        student[2] *= 1e20
        teacher[3] *= 1e-20
    return student, teacher


@pytest.mark.parametrize("kind", KINDS_OF_ROWS)
@pytest.mark.parametrize("how", ["eager", "compiled"])
def test_rows_unlike_others_are_as_the_reference_has_them(kind: str, how: str) -> None:
    student, teacher = rows_of(kind)
    target = torch.randint(0, 20, (6,))
    target[2] = 7
    options: dict[str, Any] = {"standardize_logits": True, "reduction": "none", "temperature": 2.0}
    reference = fastkd.reference.kd_loss
    expected = differentiated(reference, student.double(), teacher.double(), target, **options)
    torch._dynamo.reset()
    function = (
        torch.compile(fastkd.kd_loss, fullgraph=True) if how == "compiled" else fastkd.kd_loss
    )
    found = differentiated(function, student, teacher, target, **options)
    for value, truth in zip(found, expected, strict=True):
        torch.testing.assert_close(value.double(), truth, rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("kind", KINDS_OF_ROWS[:2])
def test_checkpointed_rows_are_computed_twice(kind: str) -> None:
    student, teacher = rows_of(kind)
    student.requires_grad_()
    calls = []

    def of(student: Tensor) -> Tensor:
        calls.append(1)
        return fastkd.kd_loss(student * 1, teacher, standardize_logits=True)

    checkpoint(of, student, use_reentrant=False).backward()
    assert len(calls) == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_logits_are_not_overwritten(dtype: torch.dtype) -> None:
    """Their gradient is in float32, so nothing would be saved."""
    leaf, teacher = torch.randn(2, 8, 30, dtype=dtype).unbind()
    logits = leaf.requires_grad_() * 1
    fastkd.kd_loss(logits, teacher, standardize_logits=True, inplace=True).backward()
    assert logits.equal(leaf)
    assert logits._version == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_compiled_half_types_get_their_gradient(dtype: torch.dtype) -> None:
    student, teacher = torch.randn(2, 8, 30, dtype=dtype)
    options = {"standardize_logits": True, "reduction": "none", "temperature": 2.0}
    expected = differentiated(fastkd.kd_loss, student, teacher, **options)
    compiled = torch.compile(fastkd.kd_loss, fullgraph=True)
    found = differentiated(compiled, student, teacher, **options)
    assert found[1].dtype == dtype
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(7, 5), (3, 4, 5), (5, 3, 4), (2, 5, 3, 2), (5,)])
@pytest.mark.parametrize("limit", [1, 12, 41])
def test_parts_do_not_matter(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], limit: int
) -> None:
    """One row at a time, some, or some of a dimension: the same rows."""
    dim = shape.index(5)
    student, teacher = torch.randn(2, *shape)
    rows = shape[:dim] + shape[dim + 1 :]
    target, weight = torch.randint(-1, 5, rows), torch.rand(rows)
    options: dict[str, Any] = {"dim": dim, "ignore_index": -1, "standardize_logits": True}
    for reduction in ("none", "mean", "batchmean"):
        arguments = student, teacher, target
        options |= {"reduction": reduction, "sample_weight": weight}
        expected = differentiated(fastkd.kd_loss, *arguments, **options)
        with monkeypatch.context() as patch:
            patch.setitem(_standardized._PART_BYTES, "cpu", 4 * limit)
            found = differentiated(fastkd.kd_loss, *arguments, **options)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


def test_ordinary_rows_do_not_suffer_from_others_of_their_part() -> None:
    """Rows in closed form, and the same beside a masked and a level one, by autograd."""
    student, teacher = torch.randn(2, 8, 30)
    of_parts = differentiated(
        fastkd.kd_loss, student, teacher, standardize_logits=True, reduction="none"
    )
    student[0, 3], student[1], teacher[2, 5] = -math.inf, 1.0, -math.inf
    found = differentiated(
        fastkd.kd_loss, student, teacher, standardize_logits=True, reduction="none"
    )
    torch.testing.assert_close(found[0][3:], of_parts[0][3:], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found[1][3:], of_parts[1][3:], rtol=1e-5, atol=1e-7)


def test_inplace_overwrites_the_logits_of_the_hard_term() -> None:
    leaf, teacher = torch.randn(2, 8, 30).unbind()
    leaf.requires_grad_()
    target = torch.randint(0, 30, (8,))
    expected = differentiated(fastkd.kd_loss, leaf, teacher, target, standardize_logits=True)
    loss = fastkd.kd_loss(leaf * 1, teacher, target, standardize_logits=True, inplace=True)
    (grad,) = torch.autograd.grad(loss, leaf)
    assert loss.equal(expected[0])
    torch.testing.assert_close(grad, expected[1])


def test_memory_is_one_gradient_and_some_parts() -> None:
    student = torch.randn(256, 16000, requires_grad=True)
    teacher, target = torch.randn(256, 16000), torch.randint(16000, (256,))

    def call() -> tuple[Tensor, ...]:
        loss = fastkd.kd_loss(student, teacher, target, temperature=4.0, standardize_logits=True)
        return torch.autograd.grad(loss, student)

    assert peak_tensor_bytes(call) < student.nbytes + 7 * (2 << 20)
