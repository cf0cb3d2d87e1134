# SPDX-License-Identifier: Apache-2.0
"""Streams, CUDA graphs and torch.compile on a real GPU."""

import pytest
import torch
from cases import KD_LOSS, Geometry, Inputs, LossCase
from devices import DEVICE, gpu_only
from test_cuda_device_paths import (
    assert_close,
    every_geometry,
    plain_case,
    step_of,
    truth_of,
)
from torch import Tensor

import fastkd

pytestmark = pytest.mark.cuda


@gpu_only
@plain_case
@every_geometry
def test_a_graph_replays_with_other_inputs(case: LossCase, geometry: Geometry) -> None:
    inputs = case.make_inputs(geometry).on(DEVICE)
    leaf, step = step_of(case, inputs)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step()
    for seed in (1, 2):
        other = case.make_inputs(geometry, seed=seed).on(DEVICE)
        with torch.no_grad():
            leaf.copy_(other.tensors[0])
            inputs.tensors[1].copy_(other.tensors[1])
            inputs.keywords["target"].copy_(other.keywords["target"])
        graph.replay()
        assert_close(found, truth_of(case, other))


@gpu_only
@plain_case
@every_geometry
def test_a_side_stream_keeps_its_order(case: LossCase, geometry: Geometry) -> None:
    inputs = case.make_inputs(geometry).on(DEVICE)
    other = case.make_inputs(geometry, seed=1).on(DEVICE)
    leaf, step = step_of(case, inputs)
    step()
    expected = truth_of(case, other)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream), torch.no_grad():
        torch.cuda._sleep(50_000_000)  # some 30 ms, in which the wrong stream would be done
        leaf.copy_(other.tensors[0])
        inputs.tensors[1].copy_(other.tensors[1])
        inputs.keywords["target"].copy_(other.keywords["target"])
        with torch.enable_grad():
            found = step()
    torch.cuda.current_stream().wait_stream(stream)
    assert_close(found, expected)


@gpu_only
@plain_case
def test_backward_from_another_stream(case: LossCase) -> None:
    inputs = case.make_inputs(Geometry((64, 1000))).on(DEVICE)
    leaf = inputs.tensors[0].requires_grad_()
    expected = truth_of(case, inputs)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        loss = case.run(inputs)
    torch.cuda.current_stream().wait_stream(stream)
    (grad,) = torch.autograd.grad(loss, leaf)
    torch.cuda.synchronize()
    assert_close((loss.detach(), grad), expected)


@gpu_only
@plain_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_compile_fullgraph(kernel_calls: list[str], case: LossCase, dtype: torch.dtype) -> None:
    torch._dynamo.reset()
    inputs = case.make_inputs(Geometry((64, 1000)), dtype).on(DEVICE)
    _, step = step_of(case, inputs)
    _, expected = step()
    kernel_calls.clear()
    leaf = inputs.tensors[0].detach().requires_grad_()
    compiled = torch.compile(case.run, fullgraph=True, dynamic=False)
    loss = compiled(Inputs((leaf, *inputs.tensors[1:]), inputs.keywords))
    (grad,) = torch.autograd.grad(loss, leaf)
    assert case.kernels.forward in kernel_calls
    torch.testing.assert_close(grad, expected)


def _reduce_overhead(kernel_calls: list[str], rounds: int) -> list[int]:
    """Kernel calls seen from Python after each round; values are compared on the way."""
    torch._dynamo.reset()
    case = KD_LOSS
    options = dict(case.options)

    @torch.compile(mode="reduce-overhead", fullgraph=True, dynamic=False)
    def loss_of(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        return fastkd.kd_loss(student * 1.0, teacher, target, **options)

    counts = []
    leaf, teacher, target = None, None, None
    for seed in range(rounds):
        inputs = case.make_inputs(Geometry((64, 1000)), seed=seed).on(DEVICE)
        if leaf is None:
            leaf = inputs.tensors[0].clone().requires_grad_()
            teacher, target = inputs.tensors[1].clone(), inputs.keywords["target"].clone()
        with torch.no_grad():
            leaf.copy_(inputs.tensors[0])
            teacher.copy_(inputs.tensors[1])
            target.copy_(inputs.keywords["target"])
        torch.compiler.cudagraph_mark_step_begin()
        loss = loss_of(leaf, teacher, target)
        (grad,) = torch.autograd.grad(loss, leaf)
        assert_close((loss.detach().clone(), grad.clone()), truth_of(case, inputs))
        counts.append(kernel_calls.count(case.kernels.forward))
    return counts


@gpu_only
def test_compile_with_reduce_overhead_gives_the_same_numbers(kernel_calls: list[str]) -> None:
    assert _reduce_overhead(kernel_calls, 5)[0] >= 1


@gpu_only
def test_compile_with_reduce_overhead_replays_a_graph(kernel_calls: list[str]) -> None:
    counts = _reduce_overhead(kernel_calls, 6)
    assert counts[-1] == counts[-3], f"Python was asked for the kernel every time: {counts}"
