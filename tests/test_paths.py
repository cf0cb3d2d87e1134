# SPDX-License-Identifier: Apache-2.0
"""The ways of a call: eager, compiled, transformed. Each gives the same numbers."""

import dataclasses
import math
import os
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from cases import ATTENTION, KD_LOSS, PLAIN_BATCH_CASES, PLAIN_CASES, Inputs, LossCase
from tolerance import HALF_UNIT, relative_error
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import fastkd
from fastkd import _backends

every_case = pytest.mark.parametrize("case", PLAIN_CASES, ids=str)
kd_case = pytest.mark.parametrize("case", [KD_LOSS], ids=str)
every_batch_case = pytest.mark.parametrize("case", PLAIN_BATCH_CASES, ids=str)


def leaf(inputs: Inputs) -> Tensor:
    """The tensor that gets the gradient, as a fresh leaf."""
    return inputs.tensors[0].detach().clone().requires_grad_()


def loss_of(case: LossCase, inputs: Inputs) -> Callable[[Tensor], Tensor]:
    """The loss as a function of its first tensor."""
    return lambda first: case.run(Inputs((first, *inputs.tensors[1:]), inputs.keywords))


def reference_grad(case: LossCase, inputs: Inputs) -> Tensor:
    """The reference's gradient."""
    first = leaf(inputs)
    loss = case.run_reference(Inputs((first, *inputs.tensors[1:]), inputs.keywords))
    return torch.autograd.grad(loss, first)[0]


def true_grad(case: LossCase, inputs: Inputs) -> Tensor:
    """The same in float64."""
    return reference_grad(case, inputs.to(torch.float64))


# ---- eager ----


@every_case
def test_eager_calls_the_kernel_once_forward_and_once_backward(
    kernel_calls: list[str], case: LossCase
) -> None:
    inputs = case.make_inputs(case.geometry)
    loss_of(case, inputs)(leaf(inputs)).backward()
    assert kernel_calls == case.kernel_calls


@every_case
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_no_gradient_is_allocated_without_grad_mode(
    kernel_calls: list[str], monkeypatch: pytest.MonkeyPatch, case: LossCase, mode: type
) -> None:
    inputs = case.make_inputs(case.geometry)
    first = leaf(inputs)
    expected = loss_of(case, inputs)(first).detach()

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a gradient was allocated")

    monkeypatch.setattr(torch, "empty_like", forbidden)
    with mode():
        loss = loss_of(case, inputs)(first)
    assert loss.equal(expected)
    assert not loss.requires_grad
    assert kernel_calls == [case.kernels.forward] * 2


@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_two_backwards_of_a_kept_graph_agree(case: LossCase, dtype: torch.dtype) -> None:
    inputs = case.make_inputs(case.geometry, dtype)
    first = leaf(inputs)
    loss = loss_of(case, inputs)(first)
    (one,) = torch.autograd.grad(loss, first, torch.tensor(3.0), retain_graph=True)
    kept = one.clone()
    one.zero_()  # what a caller does to its gradient must not reach the graph
    (two,) = torch.autograd.grad(loss, first, torch.tensor(3.0), retain_graph=True)
    (last,) = torch.autograd.grad(loss, first, torch.tensor(3.0))
    assert two.equal(kept)
    assert last.equal(kept)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


@every_case
def test_gradients_accumulate(case: LossCase) -> None:
    inputs = case.make_inputs(case.geometry)
    first = leaf(inputs)
    for _ in range(2):
        loss_of(case, inputs)(first).backward()
    torch.testing.assert_close(first.grad, 2 * reference_grad(case, inputs))


@every_case
@pytest.mark.parametrize("factor", [0.0, 1.0, -2.5, 65536.0])
def test_grad_output_scales_the_gradient(case: LossCase, factor: float) -> None:
    inputs = case.make_inputs(case.geometry)
    first = leaf(inputs)
    (loss_of(case, inputs)(first) * factor).backward()
    assert first.grad is not None
    assert relative_error(first.grad, factor * true_grad(case, inputs)) < 1e-6


@every_case
def test_a_loss_scale_saves_float16_gradients_from_underflow(case: LossCase) -> None:
    # 1 / (N C) is far below float16's smallest number; a GradScaler's 2^16 must find it intact.
    inputs = case.make_inputs(case.family.large, torch.float16)
    first = leaf(inputs)
    (loss_of(case, inputs)(first) * 65536.0).backward()
    assert first.grad is not None
    truth = 65536.0 * true_grad(case, inputs)
    error = (first.grad.double() - truth).abs().max() / truth.abs().max()
    assert error < 1e-3
    assert (first.grad != 0).float().mean() > 0.9


@every_case
def test_a_teacher_from_inference_mode(kernel_calls: list[str], case: LossCase) -> None:
    inputs = case.make_inputs(case.geometry)
    with torch.inference_mode():
        teacher = inputs.tensors[1] * 1.0
    first = leaf(inputs)
    case.run(Inputs((first, teacher), inputs.keywords)).backward()
    torch.testing.assert_close(first.grad, reference_grad(case, inputs))
    assert kernel_calls


@every_case
def test_the_teacher_may_change_after_the_loss(case: LossCase) -> None:
    inputs = case.make_inputs(case.geometry)
    first, teacher = leaf(inputs), inputs.tensors[1].clone()
    expected = reference_grad(case, inputs)
    loss = case.run(Inputs((first, teacher), inputs.keywords))
    teacher.zero_()
    (grad,) = torch.autograd.grad(loss, first, retain_graph=True)
    torch.testing.assert_close(grad, expected)
    with pytest.raises(RuntimeError, match="changed in place before backward"):
        torch.autograd.grad(loss, first, create_graph=True)


def test_num_items_is_read_when_the_loss_is_made() -> None:
    student, teacher = torch.randn(2, 4, 5)
    student.requires_grad_()
    num_items = torch.tensor(8.0, requires_grad=True)
    loss = fastkd.kd_loss(student, teacher, num_items=num_items)
    num_items.data.fill_(1.0)
    (plain,) = torch.autograd.grad(loss, student, retain_graph=True)
    (again,) = torch.autograd.grad(loss, student, create_graph=True)
    torch.testing.assert_close(plain, again.detach())
    double = fastkd.kd_loss(student.double(), teacher.double(), num_items=num_items)
    assert torch.autograd.grad(double, num_items, allow_unused=True) == (None,)


@every_case
def test_the_teacher_is_let_go_after_backward(case: LossCase) -> None:
    inputs = case.make_inputs(case.geometry)
    teacher = inputs.tensors[1].clone()
    gone = weakref.ref(teacher)
    loss = case.run(Inputs((leaf(inputs), teacher), inputs.keywords))
    loss.backward()
    del teacher
    assert gone() is None


@every_case
@pytest.mark.parametrize("device", ["meta", "cpu"])
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_a_default_device_does_not_move_the_outputs(
    case: LossCase, device: str, which: int, dtype: torch.dtype
) -> None:
    inputs = case.make_inputs(case.geometry, dtype)
    first = leaf(inputs)
    with torch.device(device):
        loss = case.run(
            Inputs((first, *inputs.tensors[1:]), inputs.keywords),
            reduction=case.family.reductions[which],
        )
    loss.sum().backward()
    assert loss.device.type == "cpu"
    assert first.grad is not None
    assert first.grad.isfinite().all()


@kd_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_batched_gradients(case: LossCase, dtype: torch.dtype) -> None:
    inputs = case.make_inputs(case.geometry, dtype)
    first = leaf(inputs)
    loss = case.run(Inputs((first, *inputs.tensors[1:]), inputs.keywords), reduction="none")
    (jacobian,) = torch.autograd.grad(loss, first, torch.eye(6), is_grads_batched=True)
    loss = case.run(Inputs((first, *inputs.tensors[1:]), inputs.keywords), reduction="none")
    (grad,) = torch.autograd.grad(loss.sum(), first)
    torch.testing.assert_close(jacobian.sum(0), grad)
    assert (jacobian != 0).any(-1).equal(torch.eye(6, dtype=torch.bool))


@every_batch_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_batched_gradients_of_one_number(case: LossCase, dtype: torch.dtype) -> None:
    inputs = case.make_inputs(case.geometry, dtype)
    first = leaf(inputs)
    factors = torch.tensor([1.0, 0.0, -2.5])
    loss = loss_of(case, inputs)(first)
    (batched,) = torch.autograd.grad(loss, first, factors, is_grads_batched=True)
    expected = factors.reshape(3, *[1] * first.ndim) * true_grad(case, inputs)
    assert relative_error(batched, expected) < 1e-6 + HALF_UNIT[dtype]


@every_case
def test_a_student_changed_before_backward_is_an_error_not_a_wrong_gradient(
    case: LossCase,
) -> None:
    inputs = case.make_inputs(case.geometry)
    student = leaf(inputs) * 1.0
    loss = loss_of(case, inputs)(student)
    student.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@every_case
def test_the_teacher_gets_no_gradient(case: LossCase) -> None:
    inputs = case.make_inputs(case.geometry)
    teacher = inputs.tensors[1].requires_grad_()
    for dtype in (torch.float32, torch.float64):  # the kernel and the reference
        student = inputs.tensors[0].to(dtype).requires_grad_()
        case.run(Inputs((student, teacher.to(dtype)), inputs.keywords)).backward()
        assert teacher.grad is None
        assert not case.run(
            Inputs((student.detach(), teacher.to(dtype)), inputs.keywords)
        ).requires_grad


@every_case
def test_double_backward(case: LossCase) -> None:
    inputs = case.make_inputs(case.family.small)
    results = []
    for run in (case.run, case.run_reference):
        first = leaf(inputs)
        loss = run(Inputs((first, *inputs.tensors[1:]), inputs.keywords))
        (grad,) = torch.autograd.grad(loss, first, create_graph=True)
        (second,) = torch.autograd.grad(grad.square().sum(), first)
        results.append((grad, second))
    torch.testing.assert_close(results[0], results[1])
    assert results[0][1].abs().max() > 0


@every_case
def test_autocast_with_a_bfloat16_student_and_a_float32_teacher(
    kernel_calls: list[str], case: LossCase
) -> None:
    inputs = case.make_inputs(case.geometry)
    rows, *others = case.geometry.shape
    layer = torch.nn.Linear(8, math.prod(others))
    x = torch.randn(rows, 8)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = layer(x).reshape(rows, *others)
        loss = loss_of(case, inputs)(outputs)
    assert outputs.dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    loss.backward()
    assert layer.weight.grad is not None
    assert kernel_calls
    half = Inputs((outputs.detach(), *inputs.tensors[1:]), inputs.keywords)
    torch.testing.assert_close(loss.detach(), case.run_reference(half))


@every_case
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint(case: LossCase, reentrant: bool) -> None:
    inputs = case.make_inputs(case.geometry)
    first = leaf(inputs)
    checkpoint(loss_of(case, inputs), first, use_reentrant=reentrant).backward()
    torch.testing.assert_close(first.grad, reference_grad(case, inputs))


@every_case
def test_saved_tensor_hooks(case: LossCase) -> None:
    inputs = case.make_inputs(case.geometry)
    first = leaf(inputs)
    with torch.autograd.graph.save_on_cpu():
        loss = loss_of(case, inputs)(first)
    loss.backward()
    torch.testing.assert_close(first.grad, reference_grad(case, inputs))


# ---- compiled ----


@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_compile_fullgraph(kernel_calls: list[str], case: LossCase, dtype: torch.dtype) -> None:
    inputs = case.make_inputs(case.geometry, dtype)
    torch._dynamo.reset()

    def step(first: Tensor) -> Tensor:
        return loss_of(case, inputs)(first * 1.0) * 3.0

    eager, compiled = leaf(inputs), leaf(inputs)
    step(eager).backward()
    kernel_calls.clear()
    torch.compile(step, fullgraph=True, dynamic=False)(compiled).backward()
    assert case.kernels.forward in kernel_calls
    assert ("attention_transfer_gradient" in kernel_calls) == (case is ATTENTION)
    torch.testing.assert_close(compiled.grad, eager.grad)


@pytest.mark.parametrize(
    ("case", "dtype", "backend"),
    [
        *((case, torch.float32, "aot_eager") for case in PLAIN_CASES),
        # The reference, whose compiled backward pass would keep a teacher of another type.
        *((case, torch.float64, "inductor") for case in (KD_LOSS, PLAIN_BATCH_CASES[0], ATTENTION)),
    ],
    ids=str,
)
def test_compile_takes_a_teacher_from_inference_mode(
    case: LossCase, dtype: torch.dtype, backend: str
) -> None:
    inputs = case.make_inputs(case.geometry, dtype, torch.float16)
    with torch.inference_mode():
        teacher = inputs.tensors[1] * 1.0
    torch._dynamo.reset()
    first = leaf(inputs)
    compiled = torch.compile(case.run, fullgraph=True, backend=backend)
    compiled(Inputs((first, teacher), inputs.keywords)).backward()
    torch.testing.assert_close(first.grad, reference_grad(case, inputs))


@every_case
def test_compile_with_dynamic_shapes_compiles_once(case: LossCase) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(case.run, fullgraph=True, dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for geometry in case.family.plain:
            inputs = case.make_inputs(geometry)
            first = leaf(inputs)
            compiled(Inputs((first, *inputs.tensors[1:]), inputs.keywords)).backward()
            torch.testing.assert_close(first.grad, reference_grad(case, inputs))


def test_compile_takes_an_integer_num_items_as_a_symbol() -> None:
    torch._dynamo.reset()
    student, teacher = torch.randn(2, 4, 5)

    def loss(num_items: int) -> Tensor:
        return fastkd.kd_loss(student, teacher, num_items=num_items)

    compiled = torch.compile(loss, fullgraph=True)
    with torch._dynamo.config.patch(recompile_limit=3):
        for num_items in range(5, 15):
            torch.testing.assert_close(compiled(num_items), loss(num_items))


def test_a_program_exported_without_gradients_can_be_trained() -> None:
    class Distiller(torch.nn.Module):
        def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
            return fastkd.kd_loss(student, teacher, temperature=4.0)

    student, teacher = torch.randn(2, 4, 5)
    program = torch.export.export(Distiller(), (student, teacher))
    trained = student.clone().requires_grad_()
    program.module()(trained, teacher).backward()
    plain = student.clone().requires_grad_()
    fastkd.kd_loss(plain, teacher, temperature=4.0).backward()
    torch.testing.assert_close(trained.grad, plain.grad)


def test_an_exported_program_says_that_it_needs_the_kernel() -> None:
    class Distiller(torch.nn.Module):
        def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
            return fastkd.kd_loss(student, teacher, temperature=4.0)

    student, teacher = torch.randn(2, 4, 5)
    program = torch.export.export(Distiller(), (student, teacher)).module()
    with _backends.use_on_cpu(None), pytest.MonkeyPatch.context() as patch:
        patch.delenv("FASTKD_REQUIRE_NATIVE", raising=False)
        with (
            pytest.warns(RuntimeWarning, match="no native CPU module"),
            pytest.raises(RuntimeError, match=r"has no kernel here \(all: switched off\)"),
        ):
            program(student, teacher)


def test_compile_checks_the_target() -> None:
    torch._dynamo.reset()
    student, teacher = torch.randn(2, 3, 5)
    loss = torch.compile(fastkd.kd_loss, fullgraph=True)
    with pytest.raises(IndexError, match=r"target must be in \[0, 5\).*got 7 at \(1,\)"):
        loss(student, teacher, torch.tensor([0, 7, 1]))


@kd_case
def test_opcheck(case: LossCase) -> None:
    inputs = case.make_inputs(case.geometry)
    arguments = (
        leaf(inputs),
        inputs.tensors[1],
        inputs.keywords["target"],
        torch.rand(6),
        None,
        *(4.0, 0.5, "forward_kl", -1, -100, 0.1, "mean", True, False),
        True,
    )
    torch.library.opcheck(torch.ops.fastkd.kd_loss.default, arguments)


@every_batch_case
@pytest.mark.parametrize("with_grad", [False, True])
def test_opcheck_of_two_batches(case: LossCase, with_grad: bool) -> None:
    inputs = case.make_inputs(case.geometry)
    options = dataclasses.asdict(case.module().options)
    op = getattr(torch.ops.fastkd, case.loss).default
    torch.library.opcheck(op, (leaf(inputs), inputs.tensors[1], *options.values(), with_grad))


def test_opcheck_of_the_gradient_of_attention() -> None:
    for layout in (torch.contiguous_format, torch.channels_last):
        student = torch.randn(2, 3, 4, 5).to(memory_format=layout)
        arguments = student, torch.randn(2, 20), torch.tensor(0.5), 3.0
        torch.library.opcheck(torch.ops.fastkd.attention_transfer_gradient.default, arguments)


@every_case
@pytest.mark.parametrize("strict", [False, True])
def test_export(kernel_calls: list[str], case: LossCase, strict: bool) -> None:
    inputs = case.make_inputs(case.geometry)

    class Distiller(torch.nn.Module):
        def forward(self, student: Tensor, teacher: Tensor, keywords: dict[str, Any]) -> Tensor:
            return case.run(Inputs((student, teacher), keywords))

    arguments = (*inputs.tensors, inputs.keywords)
    program = torch.export.export(Distiller(), arguments, strict=strict)
    assert any("fastkd" in str(node.target) for node in program.graph.nodes)
    kernel_calls.clear()
    torch.testing.assert_close(program.module()(*arguments), case.run_reference(inputs))
    assert case.kernels.forward in kernel_calls


# ---- transforms, subclasses and modes: the reference ----


@kd_case
def test_func_grad_and_vmap(kernel_calls: list[str], case: LossCase) -> None:
    inputs = case.make_inputs(case.geometry)
    grad = torch.func.grad(loss_of(case, inputs))(inputs.tensors[0])
    torch.testing.assert_close(grad, reference_grad(case, inputs))

    student, teacher = torch.randn(2, 4, 6, 37)
    target = torch.randint(0, 37, (4, 6))

    def one(s: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return fastkd.kd_loss(s, t, y, **case.options)

    batched = torch.func.vmap(one)(student, teacher, target)
    assert not kernel_calls
    expected = [one(*arguments) for arguments in zip(student, teacher, target, strict=True)]
    torch.testing.assert_close(batched, torch.stack(expected))

    per_sample = torch.func.vmap(torch.func.grad(one))(student, teacher, target)
    assert per_sample.shape == student.shape


@every_batch_case
def test_func_grad_and_vmap_of_two_batches(kernel_calls: list[str], case: LossCase) -> None:
    inputs = case.make_inputs(case.geometry)
    grad = torch.func.grad(loss_of(case, inputs))(inputs.tensors[0])
    torch.testing.assert_close(grad, reference_grad(case, inputs))

    pairs = [case.make_inputs(case.geometry, seed=seed).tensors for seed in range(4)]
    student, teacher = (torch.stack(tensors) for tensors in zip(*pairs, strict=True))

    def one(s: Tensor, t: Tensor) -> Tensor:
        return case.run(Inputs((s, t)))

    batched = torch.func.vmap(one)(student, teacher)
    per_sample = torch.func.vmap(torch.func.grad(one))(student, teacher)
    assert not kernel_calls
    torch.testing.assert_close(batched, torch.stack([one(*pair) for pair in pairs]))
    expected = [reference_grad(case, Inputs(pair)) for pair in pairs]
    torch.testing.assert_close(per_sample, torch.stack(expected))


@every_case
def test_forward_mode(case: LossCase) -> None:
    inputs = case.make_inputs(case.geometry)
    direction = torch.randn(case.geometry.shape)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(inputs.tensors[0], direction)
        tangent = torch.autograd.forward_ad.unpack_dual(loss_of(case, inputs)(dual)).tangent
    torch.testing.assert_close(tangent, (reference_grad(case, inputs) * direction).sum())


@every_case
def test_meta_and_fake_tensors(kernel_calls: list[str], case: LossCase) -> None:
    inputs = case.make_inputs(case.geometry)
    loss = case.run(inputs.on("meta"))
    assert (loss.device.type, loss.shape, loss.dtype) == ("meta", (), torch.float32)

    mode = FakeTensorMode()
    fake = inputs.map(mode.from_tensor)
    for context in (mode, torch.no_grad()):  # inside the mode, and fake tensors outside it
        with context:
            assert case.run(fake).shape == ()
    assert not kernel_calls


class Wrapped(torch.Tensor):
    """A subclass that could hold its data anywhere."""


@every_case
def test_subclasses_and_lazy_negation_take_the_reference(
    kernel_calls: list[str], case: LossCase
) -> None:
    inputs = case.make_inputs(case.geometry)
    first, *others = inputs.tensors
    expected = case.run(inputs)
    kernel_calls.clear()
    wrapped = first.as_subclass(Wrapped)
    torch.testing.assert_close(
        case.run(Inputs((wrapped, *others), inputs.keywords)).as_subclass(Tensor), expected
    )
    negated = torch._neg_view(-first)  # its memory holds the negative
    assert negated.is_neg()
    torch.testing.assert_close(case.run(Inputs((negated, *others), inputs.keywords)), expected)
    zero = torch._efficientzerotensor(case.geometry.shape)  # has no memory
    assert case.run(Inputs((zero, *others), inputs.keywords)).isfinite()
    assert not kernel_calls


@every_case
def test_a_parameter_and_a_default_device_take_the_kernel(
    kernel_calls: list[str], case: LossCase
) -> None:
    inputs = case.make_inputs(case.geometry)
    parameter = torch.nn.Parameter(inputs.tensors[0])
    with torch.device("cpu"):
        loss_of(case, inputs)(parameter).backward()
    assert kernel_calls == case.kernel_calls


# ---- several processes ----


def _train_one_step(rank: int, folder: str) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    torch.manual_seed(0)
    layer = torch.nn.Linear(8, 10)
    model = DistributedDataParallel(layer)
    x, teacher = torch.randn(8, 8), torch.randn(8, 10)
    target = torch.tensor([1, 2, -100, 3, 4, -100, -100, 5])
    mine = slice(4 * rank, 4 * rank + 4)
    counted = (target[mine] != -100).sum()
    dist.all_reduce(counted)
    loss = fastkd.kd_loss(
        model(x[mine]), teacher[mine], target[mine], temperature=4.0, num_items=counted
    )
    (2 * loss).backward()  # DDP averages over the two processes
    if rank == 0:
        torch.save([layer.weight.grad, x, teacher, target], Path(folder) / "result.pt")
    dist.barrier()  # a process that leaves early closes connections that the other still uses
    dist.destroy_process_group()


def test_ddp_on_two_processes_equals_one_batch(tmp_path: Path) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    mp.spawn(_train_one_step, args=(str(tmp_path),), nprocs=2)
    grad, x, teacher, target = torch.load(tmp_path / "result.pt")
    torch.manual_seed(0)
    layer = torch.nn.Linear(8, 10)
    fastkd.reference.kd_loss(layer(x), teacher, target, temperature=4.0).backward()
    torch.testing.assert_close(grad, layer.weight.grad)
