# SPDX-License-Identifier: Apache-2.0
"""Calls on a real GPU: no waiting, memory, wrong targets, autocast, 64 bits, several devices."""

import contextlib
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
from cases import KD_LOSS, LOGIT_CASES, Geometry, Inputs, LossCase
from devices import DEVICE, ON_GPU, gpu_only, some
from tolerance import relative_error
from torch import Tensor

import fastkd

pytestmark = pytest.mark.cuda
every_case = pytest.mark.parametrize("case", some(LOGIT_CASES), ids=str)
plain_case = pytest.mark.parametrize("case", [KD_LOSS], ids=str)
# A warp a row, a block, a cluster, shared memory, columns.
GEOMETRIES = (
    Geometry((64, 100)),
    Geometry((16, 4096)),
    Geometry((4, 50257)),
    Geometry((2, 140000)),
    Geometry((2, 19, 16, 16), 1),
)
every_geometry = pytest.mark.parametrize("geometry", some(GEOMETRIES), ids=str)
two_gpus = pytest.mark.skipif(
    not ON_GPU or torch.cuda.device_count() < 2, reason="there are no two CUDA devices"
)
HUGE = 2**31  # elements, from which 32-bit offsets fail


@contextlib.contextmanager
def no_waiting() -> Iterator[None]:
    """Waiting for the GPU is an error."""
    if not ON_GPU:
        yield
        return
    torch.cuda.synchronize()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that the mode does not find everything
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def step_of(case: LossCase, inputs: Inputs) -> tuple[Tensor, Callable[[], tuple[Tensor, Tensor]]]:
    """The leaf, and a forward and backward over it."""
    leaf = inputs.tensors[0].detach().requires_grad_()
    arguments = Inputs((leaf, *inputs.tensors[1:]), inputs.keywords)

    def step() -> tuple[Tensor, Tensor]:
        loss = case.run(arguments)
        (grad,) = torch.autograd.grad(loss.sum(), leaf)
        return loss.detach(), grad

    return leaf, step


def truth_of(case: LossCase, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Loss and gradient of the reference."""
    leaf = inputs.tensors[0].detach().clone().requires_grad_()
    loss = case.run_reference(Inputs((leaf, *inputs.tensors[1:]), inputs.keywords))
    return loss.detach(), torch.autograd.grad(loss.sum(), leaf)[0]


def assert_close(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    """float32 on both sides."""
    for value, truth in zip(found, expected, strict=True):
        assert relative_error(value, truth) < 2e-5


@every_case
@every_geometry
def test_nothing_waits_for_the_gpu(
    kernel_calls: list[str], case: LossCase, geometry: Geometry
) -> None:
    _, step = step_of(case, case.make_inputs(geometry).on(DEVICE))
    expected = step()
    with no_waiting():
        found = step()
    assert found[0].equal(expected[0])
    assert found[1].equal(expected[1])
    assert {*kernel_calls} == {*case.kernel_calls}


@gpu_only
@plain_case
@every_geometry
def test_no_gradient_without_grad_mode(case: LossCase, geometry: Geometry) -> None:
    inputs = case.make_inputs(geometry).on(DEVICE)
    expected = case.run(inputs)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            loss = case.run(inputs)
            peak = torch.cuda.max_memory_allocated() - before
        assert loss.equal(expected)
        assert peak <= 64 * inputs.keywords["target"].numel() + 8192


@gpu_only
@pytest.mark.parametrize("classes", [10, 1000, 3000, 9000, 140000])
@pytest.mark.parametrize("wrong", [-1, None, 2**40])
def test_a_wrong_target_poisons_its_row_alone(classes: int, wrong: int | None) -> None:
    case = KD_LOSS
    inputs = case.make_inputs(Geometry((9, classes))).on(DEVICE)
    arguments = {**inputs.keywords, "target": inputs.keywords["target"].clone()}
    arguments["target"][4] = classes if wrong is None else wrong
    losses, grads = [], []
    for keywords in (inputs.keywords, arguments):
        leaf = inputs.tensors[0].detach().requires_grad_()
        loss = case.run(Inputs((leaf, inputs.tensors[1]), keywords), reduction="none")
        losses.append(loss.detach())
        grads.append(torch.autograd.grad(loss.sum(), leaf)[0])
    assert losses[1][4].isnan()
    others = torch.arange(9, device=DEVICE) != 4
    assert losses[1][others].equal(losses[0][others])
    assert grads[1][others].equal(grads[0][others])
    torch.cuda.synchronize()  # raises if the device is lost


def test_num_items_stays_on_the_device() -> None:
    case = KD_LOSS
    inputs = case.make_inputs(Geometry((64, 1000))).on(DEVICE)
    for dtype in (torch.int64, torch.float32, torch.float64):
        count = torch.tensor(37, dtype=dtype, device=DEVICE)
        with no_waiting():
            loss = case.run(inputs, num_items=count)
        torch.testing.assert_close(loss, case.run_reference(inputs, num_items=37))
    empty = case.run(inputs, num_items=torch.zeros((), dtype=torch.int64, device=DEVICE))
    assert empty.item() == 0


@every_geometry
@pytest.mark.parametrize("reduction", ["mean", "sum", "none", "batchmean"])
def test_ignored_rows_give_zero(geometry: Geometry, reduction: str) -> None:
    case = KD_LOSS
    inputs = case.make_inputs(geometry).on(DEVICE)
    inputs.keywords["target"].fill_(-100)
    leaf = inputs.tensors[0].detach().requires_grad_()
    arguments = Inputs((leaf, inputs.tensors[1]), inputs.keywords)
    loss = case.run(arguments, reduction=reduction)
    loss.sum().backward()
    assert leaf.grad is not None
    assert loss.detach().abs().max() == 0
    assert leaf.grad.abs().max() == 0


def test_no_rows() -> None:
    student = torch.randn(0, 10, device=DEVICE, requires_grad=True)
    loss = fastkd.kd_loss(student, torch.randn(0, 10, device=DEVICE))
    loss.backward()
    assert loss.item() == 0
    assert student.grad is not None
    assert student.grad.shape == (0, 10)


@plain_case
def test_autocast(kernel_calls: list[str], case: LossCase) -> None:
    inputs = case.make_inputs(Geometry((64, 128))).on(DEVICE)
    layer = torch.nn.Linear(32, 128, device=DEVICE)
    with torch.autocast(DEVICE, torch.bfloat16):
        logits = layer(torch.randn(64, 32, device=DEVICE))
        loss = case.run(Inputs((logits, *inputs.tensors[1:]), inputs.keywords))
    loss.backward()
    assert (logits.dtype, loss.dtype) == (torch.bfloat16, torch.float32)
    assert layer.weight.grad is not None
    assert kernel_calls
    half = Inputs((logits.detach(), *inputs.tensors[1:]), inputs.keywords)
    torch.testing.assert_close(loss.detach(), case.run_reference(half))


@gpu_only
@plain_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("factor", [1.0, 0.3])
@pytest.mark.parametrize(
    "geometry", [Geometry((512, 4000)), Geometry((4, 21, 200, 200), 1)], ids=str
)
def test_memory_is_one_gradient(
    case: LossCase, geometry: Geometry, factor: float, dtype: torch.dtype
) -> None:
    inputs = case.make_inputs(geometry, dtype).on(DEVICE)
    leaf = inputs.tensors[0].detach().requires_grad_()
    arguments = Inputs((leaf, *inputs.tensors[1:]), inputs.keywords)
    case.run(arguments).backward()
    leaf.grad = None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    (grad,) = torch.autograd.grad(case.run(arguments) * factor, leaf)
    peak = torch.cuda.max_memory_allocated() - before
    rows = inputs.keywords["target"].numel()
    assert grad.nbytes <= peak <= grad.nbytes + 16 * rows + 8192


@plain_case
@every_geometry
def test_backward_twice(case: LossCase, geometry: Geometry) -> None:
    inputs = case.make_inputs(geometry).on(DEVICE)
    leaf = inputs.tensors[0].requires_grad_()
    loss = case.run(inputs) * 3.0
    (first,) = torch.autograd.grad(loss, leaf, retain_graph=True)
    kept = first.clone()
    (second,) = torch.autograd.grad(loss, leaf)
    assert second.equal(kept)
    assert first.equal(kept)
    assert_close((loss.detach() / 3, second / 3), truth_of(case, inputs))


@plain_case
def test_double_backward(case: LossCase) -> None:
    inputs = case.make_inputs(Geometry((3, 5))).on(DEVICE)
    leaf = inputs.tensors[0].requires_grad_()
    (grad,) = torch.autograd.grad(case.run(inputs), leaf, create_graph=True)
    (second,) = torch.autograd.grad(grad.square().sum(), leaf)
    assert second.abs().max() > 0


@gpu_only
@pytest.mark.parametrize(
    "geometry", [Geometry((70000, 32768)), Geometry((60, 150, 512, 512), 1)], ids=str
)
def test_more_than_two_billion_logits(geometry: Geometry) -> None:
    elements = torch.Size(geometry.shape).numel()
    assert elements > HUGE
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    if free < 4 * 2 * elements:
        pytest.skip(f"{free / 2**30:.0f} GiB are free, too little")
    student, teacher = (
        torch.randn(geometry.shape, dtype=torch.bfloat16, device=DEVICE) for _ in range(2)
    )
    target = torch.randint(0, geometry.classes, geometry.rows, device=DEVICE)
    student.requires_grad_()
    options = {"dim": geometry.dim, "temperature": 2.0, "reduction": "none"}
    loss = fastkd.kd_loss(student, teacher, target, **options)
    (grad,) = torch.autograd.grad(loss, student, torch.ones_like(loss))
    for part in (slice(0, 1), slice(-1, None)):
        leaf = student.detach()[part].double().requires_grad_()
        true = fastkd.reference.kd_loss(leaf, teacher[part].double(), target[part], **options)
        (true_grad,) = torch.autograd.grad(true.sum(), leaf)
        assert relative_error(loss.detach()[part], true) < 1e-5
        assert relative_error(grad[part], true_grad) < 2**-8


@plain_case
@every_geometry
@two_gpus
def test_the_tensors_device_is_used_and_the_current_one_kept(
    case: LossCase, geometry: Geometry
) -> None:
    inputs = case.make_inputs(geometry).on("cuda:1")
    with torch.cuda.device(0):
        _, step = step_of(case, inputs)
        found = step()
        assert torch.cuda.current_device() == 0
        assert found[1].get_device() == 1
        assert_close(found, truth_of(case, inputs))


@two_gpus
def test_a_gpu_that_is_not_used_gets_no_context() -> None:
    """A context takes half a gigabyte of its memory."""
    program = """
import torch, fastkd
logits = torch.randn(4, 10, device="cuda:1", requires_grad=True)
(fastkd.kd_loss(logits, torch.randn(4, 10, device="cuda:1")) * 3).backward()
torch.cuda.synchronize(1)
assert torch._C._cuda_hasPrimaryContext(1)
assert not torch._C._cuda_hasPrimaryContext(0)
"""
    subprocess.run([sys.executable, "-c", program], check=True)
