# SPDX-License-Identifier: Apache-2.0
"""Cases of linear_kd_loss: kd_loss's kernel between torch's products.

The products add in an order of their own for each chunk and thread count, so these cases are in the
tests of values and gradients and in the benchmarks, not in those about a kernel's bits and calls.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from eager_losses import eager_linear_kd_loss
from logit_cases import make_row_keywords
from loss_case import BenchRow, Family, Geometry, Inputs, Kernels, LossCase, ideal_bytes
from torch import Tensor

SPREAD = 3.0  # of the logits, as in logit_cases


def make_output_layers(
    geometry: Geometry,
    student_dtype: torch.dtype = torch.float32,
    teacher_dtype: torch.dtype | None = None,
    seed: int = 0,
    *,
    weighted: bool = False,
    device: torch.device | str = "cpu",
) -> Inputs:
    """Random hidden states [..., H] and weights [V, H] of both sides, and targets.

    `weighted`: weights of the rows, some of which do not count.
    """
    width = geometry.width
    assert width is not None
    place: dict[str, Any] = {
        "generator": torch.Generator(device).manual_seed(seed),
        "device": device,
    }

    def side(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        hidden = torch.randn(*geometry.rows, width, **place)
        weight = torch.randn(geometry.classes, width, **place).mul_(SPREAD * width**-0.5)
        return hidden.to(dtype), weight.to(dtype)

    tensors = *side(student_dtype), *side(teacher_dtype or student_dtype)
    rest = make_row_keywords(geometry, place, hard=True, weighted=weighted, ignored=weighted)
    return Inputs(tensors, rest, learned=2)


def _weighted(geometry: Geometry, *args: Any, **keywords: Any) -> Inputs:
    return make_output_layers(geometry, *args, weighted=True, **keywords)


def four_products(inputs: Inputs) -> Callable[[], tuple[Tensor, Tensor]]:
    """The logits of both sides, and what makes gradients of the logits' gradient.

    New memory for the gradients alone, as every call needs; a loss need not hold whole logits.
    """
    hidden, weight, teacher, teacher_weight = (tensor.detach() for tensor in inputs.tensors)
    logits = hidden.new_zeros(len(hidden), len(weight))  # [N, V]; a gradient's stand-in too
    teacher_logits = teacher.new_zeros(len(teacher), len(teacher_weight))

    def call() -> tuple[Tensor, Tensor]:
        torch.matmul(hidden, weight.t(), out=logits)
        torch.matmul(teacher, teacher_weight.t(), out=teacher_logits)
        return torch.matmul(logits, weight), torch.matmul(logits.t(), hidden)

    return call


# One of each; chunks that do not divide the rows come with the options; 3-D, long rows.
LAYERS = Family(
    geometries=(
        Geometry((1, 1), width=1),
        Geometry((5, 2), width=3),
        Geometry((37, 50), width=16),
        Geometry((2, 7, 100), width=40),
        Geometry((9, 2500), width=24),
    ),
    mixed=(Geometry((37, 50), width=16), Geometry((6, 2100), width=8)),
    scaled=(Geometry((9, 37), width=21),),
    plain=(
        Geometry((6, 37), width=9),
        Geometry((9, 21), width=33),
        Geometry((4, 50), width=7),
    ),
    small=Geometry((3, 5), width=2),
    large=Geometry((64, 4096), width=16),
    threaded=(Geometry((64, 1000), width=32),),
    reductions=("none", "batchmean"),
    kind="layers",
)
_FP32, _BF16 = torch.float32, torch.bfloat16


def _row(rows: int, width: int, classes: int, dtype: torch.dtype) -> BenchRow:
    return BenchRow(Geometry((rows, classes), width=width), dtype, most_threads_only=True)


def _case(
    label: str, options: Mapping[str, Any], make_inputs: Callable[..., Inputs] = make_output_layers
) -> LossCase:
    kernels = Kernels("kd_loss")
    return LossCase(
        "linear_kd_loss", label, options, make_inputs, LAYERS, kernels, sums_products=True
    )


LINEAR_KD_LOSS = dataclasses.replace(
    _case("t2", {"temperature": 2.0, "alpha": 0.5}),
    eager=eager_linear_kd_loss,
    bench_rows=(
        _row(256, 128, 4096, _FP32),
        _row(1024, 512, 32000, _FP32),
        _row(1024, 512, 32000, _BF16),
    ),
    # In the order of what matters most, for a run that is short of time.
    gpu_bench_rows=(
        _row(4096, 2048, 32000, _BF16),
        _row(8192, 4096, 128256, _BF16),
        _row(4096, 2048, 32000, _FP32),
    ),
    ideal_bytes=ideal_bytes,
    floor=four_products,
)
LINEAR_CASES = (
    LINEAR_KD_LOSS,
    _case("softcap-chunks", {"alpha": 0.3, "logit_softcap": 5.0, "chunk_rows": 4}),
    _case(
        "js-weighted-rows",
        {"temperature": 3.0, "divergence": "js", "reduction": "none", "chunk_rows": 5},
        _weighted,
    ),
)
