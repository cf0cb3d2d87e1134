# SPDX-License-Identifier: Apache-2.0
"""linear_kd_loss: kd_loss after an output layer, a chunk of rows at a time."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from tolerance import assert_as_good, relative_error
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import fastkd
from benchmarks.memory import peak_tensor_bytes
from fastkd.ops import linear_kd_loss as ops
from fastkd.ops._linear_gradients import GradientSums

ROWS, WIDTH, TEACHER_WIDTH, CLASSES = 37, 16, 24, 50
OPTIONS: list[dict[str, Any]] = [
    {},
    {"temperature": 2.0, "divergence": "js", "beta": 0.3},
    {"divergence": "reverse_kl", "alpha": 0.3, "label_smoothing": 0.1, "reduction": "sum"},
    {"divergence": "tv", "num_items": 7},
    {"temperature": 4.0, "reduction": "none"},
    {"logit_softcap": 5.0, "reduction": "batchmean"},
    {"standardize_logits": True, "temperature_squared": False, "temperature": 2.0},
]


class Problem:
    """Random layers and labels."""

    def __init__(self, rows: tuple[int, ...] = (ROWS,), hard: bool = True) -> None:
        self.hidden = torch.randn(*rows, WIDTH)
        self.weight, self.bias = torch.randn(CLASSES, WIDTH), torch.randn(CLASSES)
        self.teacher = torch.randn(*rows, TEACHER_WIDTH), torch.randn(CLASSES, TEACHER_WIDTH) / 2
        self.options: dict[str, Any] = {"teacher_bias": torch.randn(CLASSES)}
        self.target = None
        if hard:
            self.target = torch.randint(0, CLASSES, rows)
            self.target.view(-1)[1::5] = -100
            self.options["sample_weight"] = torch.rand(rows)

    def run(
        self, function: Callable[..., Tensor], dtype: torch.dtype = torch.float32, **options: Any
    ) -> list[Tensor]:
        """Loss and gradients."""
        rounded = self.rounded(dtype)
        student = [x.clone().requires_grad_() for x in rounded[:3]]
        loss = function(
            *student[:2],
            *rounded[3:5],
            self.target,
            student_bias=student[2],
            **{**self.options, "teacher_bias": rounded[5], **options},
        )
        seeds = torch.linspace(-1, 2, loss.numel(), dtype=loss.dtype).view(loss.shape)
        return [loss.detach(), *torch.autograd.grad(loss, student, seeds)]

    def rounded(self, dtype: torch.dtype) -> list[Tensor]:
        """All tensors of the two layers."""
        tensors = self.hidden, self.weight, self.bias, *self.teacher, self.options["teacher_bias"]
        return [x.to(dtype) for x in tensors]

    def truth(self, dtype: torch.dtype = torch.float32, **options: Any) -> list[Tensor]:
        """The reference in float64 on numbers rounded to the dtype."""
        wide = Problem.__new__(Problem)
        wide.hidden, wide.weight, wide.bias, *teacher, bias = (
            x.double() for x in self.rounded(dtype)
        )
        wide.teacher, wide.target = (teacher[0], teacher[1]), self.target
        wide.options = {**self.options, "teacher_bias": bias}
        return wide.run(fastkd.reference.linear_kd_loss, torch.float64, **options)


@pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_loss_and_gradients_match_float64(
    options: dict[str, Any], dtype: torch.dtype, hard: bool
) -> None:
    problem = Problem(hard=hard)
    found = problem.run(partial(fastkd.linear_kd_loss, chunk_rows=10), dtype, **options)
    plain = problem.run(fastkd.reference.linear_kd_loss, dtype, **options)
    truth = problem.truth(dtype, **options)
    assert [x.dtype for x in found] == [x.dtype for x in plain]
    for value, ours, true in zip(found, plain, truth, strict=True):
        # Products sum in another order over a chunk than over all rows.
        assert_as_good(value, ours, true, 2e-6 + torch.finfo(dtype).eps, "loss or gradient")


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_chunks_of_any_size_agree(backend: str, options: dict[str, Any]) -> None:
    problem = Problem((5, 7))
    truth = problem.truth(**options)
    for chunk_rows in (1, 4, 35, 1000, "auto"):
        found = problem.run(partial(fastkd.linear_kd_loss, chunk_rows=chunk_rows), **options)
        for value, true in zip(found, truth, strict=True):
            assert relative_error(value, true) < 5e-6


@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4), (0,), (2, 0)])
@pytest.mark.parametrize("reduction", ["mean", "none", "batchmean"])
def test_rows_of_any_shape(shape: tuple[int, ...], reduction: str) -> None:
    problem = Problem(shape)
    found = problem.run(partial(fastkd.linear_kd_loss, chunk_rows=5), reduction=reduction)
    for value, true in zip(found, problem.truth(reduction=reduction), strict=True):
        assert value.shape == true.shape
        assert relative_error(value, true) < 5e-6


def test_float64_takes_chunks_through_the_reference() -> None:
    problem = Problem()
    found = problem.run(partial(fastkd.linear_kd_loss, chunk_rows=10), torch.float64)
    expected = problem.run(fastkd.reference.linear_kd_loss, torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("layout", ["plain", "shifted", "class_major", "one_row"])
def test_the_teacher_may_come_as_logits(layout: str) -> None:
    problem = Problem((5, 8))
    hidden, weight, _, teacher_hidden, teacher_weight, teacher_bias = problem.rounded(torch.float32)
    logits = torch.nn.functional.linear(teacher_hidden, teacher_weight, teacher_bias)
    target = problem.target
    assert target is not None
    if layout == "shifted":  # logits of each position predict the next token
        hidden, logits, target = hidden[:, :-1], logits[:, :-1], target[:, 1:]
        assert not logits.is_contiguous()
    elif layout == "class_major":
        logits = logits.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    elif layout == "one_row":
        hidden, logits, target = hidden[0, 0], logits[0, 0], target[0, 0]
    for of_logits in (logits, logits.log_softmax(-1), logits.bfloat16()):
        leaf = hidden.clone().requires_grad_()
        loss = fastkd.linear_kd_loss(
            leaf, weight, None, None, target, teacher_logits=of_logits, chunk_rows=6
        )
        (grad,) = torch.autograd.grad(loss, leaf)
        true = hidden.double().requires_grad_()
        true_loss = fastkd.kd_loss(true @ weight.double().t(), of_logits.double(), target)
        assert relative_error(loss, true_loss) < 2e-6
        assert relative_error(grad, torch.autograd.grad(true_loss, true)[0]) < 5e-6


def test_padded_vocabularies() -> None:
    hidden, weight = torch.randn(9, WIDTH), torch.randn(40, WIDTH)
    teacher_hidden, teacher_weight = torch.randn(9, 8), torch.randn(33, 8)
    target = torch.randint(0, 40, (9,))
    found = []
    for function in (fastkd.linear_kd_loss, fastkd.reference.linear_kd_loss):
        leaf = weight.clone().requires_grad_()
        loss = function(hidden, leaf, teacher_hidden, teacher_weight, target, common_vocab=True)
        found.append((loss.detach(), torch.autograd.grad(loss, leaf)[0]))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2), ()])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_only_wanted_gradients_are_computed(
    monkeypatch: pytest.MonkeyPatch, wanted: tuple[int, ...], reduction: str
) -> None:
    problem = Problem()
    products = []
    kept = GradientSums.add

    def counted(self: Any, *arguments: Any) -> None:
        products.append([gradient is not None for gradient in self.grads])
        kept(self, *arguments)

    monkeypatch.setattr(GradientSums, "add", counted)
    hidden, weight, bias, teacher_hidden, teacher_weight, _ = problem.rounded(torch.float32)
    student = [x.clone().requires_grad_(i in wanted) for i, x in enumerate((hidden, weight, bias))]
    loss = fastkd.linear_kd_loss(
        *student[:2],
        teacher_hidden,
        teacher_weight,
        problem.target,
        student_bias=student[2],
        reduction=reduction,
        chunk_rows=20,
    )
    assert loss.requires_grad == bool(wanted)
    if wanted:
        loss.sum().backward()
    assert [i for i, x in enumerate(student) if x.grad is not None] == list(wanted)
    assert products == [[i in wanted for i in range(3)]] * (2 if wanted else 0)


def logits_bytes(rows: int) -> int:
    return 4 * rows * 4000


def peak(rows: int, chunk_rows: int, **options: Any) -> int:
    """Bytes held for loss and gradients."""
    hidden = torch.randn(rows, 8, requires_grad=True)
    weight = torch.randn(4000, 8, requires_grad=True)
    teacher_hidden, teacher_weight = torch.randn(rows, 8), torch.randn(4000, 8)
    target = torch.randint(0, 4000, (rows,))

    def call() -> Any:
        loss = fastkd.linear_kd_loss(
            hidden,
            weight,
            teacher_hidden,
            teacher_weight,
            target,
            chunk_rows=chunk_rows,
            **options,
        )
        return torch.autograd.grad(loss * 0.3, (hidden, weight))

    call()
    return peak_tensor_bytes(call)


@pytest.mark.parametrize("divergence", ["forward_kl", "js"])
def test_one_chunk_of_logits_a_side_is_held(divergence: str) -> None:
    gradients = 4 * 8 * (1024 + 4000)
    found = peak(1024, 64, divergence=divergence)
    assert 2 * logits_bytes(64) < found < 1.2 * (2 * logits_bytes(64) + gradients)
    # What grows with the rows is their hidden states' gradient and a few numbers each.
    assert peak(2048, 64, divergence=divergence) - found < 1024 * (4 * 8 + 64)


def test_a_softcap_takes_a_third_chunk() -> None:
    gradients = 4 * 8 * (1024 + 4000)
    assert peak(1024, 64, logit_softcap=30.0) < 1.2 * (3 * logits_bytes(64) + gradients)


def test_autocast_computes_products_in_its_dtype() -> None:
    problem = Problem()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = problem.run(partial(fastkd.linear_kd_loss, chunk_rows=10))
        plain = problem.run(fastkd.reference.linear_kd_loss)
        torch.compiler.reset()
        function = torch.compile(fastkd.linear_kd_loss, fullgraph=True, backend="aot_eager")
        compiled = problem.run(function)
    truth = problem.truth()
    for value, by_op, ours, true in zip(found, compiled, plain, truth, strict=True):
        assert value.dtype == by_op.dtype == ours.dtype
        assert_as_good(value, ours, true, 0.01, "loss or gradient")
        assert_as_good(by_op, ours, true, 0.01, "loss or gradient")
    assert relative_error(found[0], truth[0]) > 1e-6  # it did


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_compiled_as_one_graph(options: dict[str, Any]) -> None:
    problem = Problem((5, 7))
    torch.compiler.reset()
    compiled = torch.compile(fastkd.linear_kd_loss, fullgraph=True, backend="aot_eager")
    function = partial(compiled, chunk_rows=10)
    truth = problem.truth(**options)
    for value, true in zip(problem.run(function, **options), truth, strict=True):
        assert relative_error(value, true) < 5e-6
    for value, true in zip(problem.run(function, torch.float64, **options), truth, strict=True):
        assert relative_error(value, true) < 1e-6  # weights and scale of rows are float32


def test_the_op_refuses_what_it_lacks() -> None:
    layers = torch.zeros(8, 4), torch.zeros(10, 4), None, torch.zeros(8, 3), torch.zeros(10, 3)
    wide = [None if layer is None else layer.double() for layer in layers]
    for of, reduction in ((layers, "none"), (wide, "mean")):
        checked = ops.LinearKDLossOptions(reduction=reduction)
        inputs = ops.LinearKDLossInputs(*of, *(None,) * 7)
        with pytest.raises(ValueError, match="fastkd::linear_kd_loss serves neither"):
            ops.compiled(inputs, checked)


def test_checkpointed() -> None:
    problem = Problem()

    def checkpointed(*args: Any, **options: Any) -> Tensor:
        run = partial(fastkd.linear_kd_loss, **options)
        loss: Tensor = checkpoint(run, *args, use_reentrant=False)
        return loss

    torch.testing.assert_close(problem.run(checkpointed), problem.run(fastkd.linear_kd_loss))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_second_derivatives(reduction: str) -> None:
    problem = Problem((4,))
    teacher_hidden, teacher_weight = problem.teacher
    seconds = []
    for function, dtype in (
        (fastkd.linear_kd_loss, torch.float32),
        (fastkd.reference.linear_kd_loss, torch.float64),
    ):
        leaves = [x.to(dtype).requires_grad_() for x in (problem.hidden, problem.weight)]
        teacher = teacher_hidden.to(dtype), teacher_weight.to(dtype)
        loss = function(*leaves, *teacher, problem.target, reduction=reduction)
        grads = torch.autograd.grad(loss.square().sum(), leaves, create_graph=True)
        total = sum(grad.square().sum() for grad in grads)
        seconds.append(torch.autograd.grad(total, leaves))
    for value, true in zip(*seconds, strict=True):
        assert relative_error(value, true) < 1e-5


def test_transforms_go_through_the_reference() -> None:
    problem = Problem((3, 5), hard=False)
    hidden, weight, _, teacher_hidden, teacher_weight, _ = problem.rounded(torch.float32)

    def of(hidden: Tensor, teacher_hidden: Tensor) -> Tensor:
        return fastkd.linear_kd_loss(hidden, weight, teacher_hidden, teacher_weight)

    expected = torch.stack([of(h, t) for h, t in zip(hidden, teacher_hidden, strict=True)])
    torch.testing.assert_close(torch.func.vmap(of)(hidden, teacher_hidden), expected)
    grad = torch.func.grad(lambda h: of(h, teacher_hidden))(hidden)
    leaf = hidden.clone().requires_grad_()
    torch.testing.assert_close(grad, torch.autograd.grad(of(leaf, teacher_hidden), leaf)[0])


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_graph_may_be_kept(reduction: str) -> None:
    problem = Problem()
    teacher_hidden, teacher_weight = problem.teacher
    leaves = problem.hidden.requires_grad_(), problem.weight.requires_grad_()
    loss = fastkd.linear_kd_loss(*leaves, teacher_hidden, teacher_weight, reduction=reduction)
    first = torch.autograd.grad(loss.sum(), leaves, retain_graph=True)
    second = torch.autograd.grad(loss.sum(), leaves)
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_what_backward_reads_again_must_not_have_changed() -> None:
    problem = Problem()
    teacher_hidden, teacher_weight = problem.teacher
    hidden = problem.hidden.requires_grad_()
    loss = fastkd.linear_kd_loss(
        hidden, problem.weight, teacher_hidden, teacher_weight, reduction="none"
    )
    teacher_hidden.zero_()
    with pytest.raises(RuntimeError, match="was changed in place before backward"):
        loss.sum().backward()


def test_teachers_of_inference_mode_serve() -> None:
    problem = Problem()
    with torch.inference_mode():
        teacher = [x.clone() for x in problem.teacher]
        logits = teacher[0] @ teacher[1].t()
    for options in ({}, {"reduction": "none"}):
        leaf = problem.hidden.clone().requires_grad_()
        fastkd.linear_kd_loss(leaf, problem.weight, *teacher, **options).sum().backward()
        other = problem.hidden.clone().requires_grad_()
        fastkd.linear_kd_loss(
            other, problem.weight, teacher_logits=logits, **options
        ).sum().backward()
        torch.testing.assert_close(leaf.grad, other.grad)


def test_the_module_calls_the_function() -> None:
    problem = Problem()
    options: dict[str, Any] = {"temperature": 2.0, "chunk_rows": 10, "logit_softcap": 20.0}
    module = fastkd.LinearKDLoss(**options)
    torch.testing.assert_close(
        problem.run(module), problem.run(fastkd.linear_kd_loss, **options), rtol=0, atol=0
    )
