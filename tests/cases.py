# SPDX-License-Identifier: Apache-2.0
"""Every loss once: what tests and benchmarks run, on every backend.

A loss joins all value, gradient, dtype, layout, compile, error and benchmark runs by a LossCase in
CASES; nothing else lists losses.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import fastkd


@dataclass(frozen=True)
class Geometry:
    """A shape of logits and where its classes are."""

    shape: tuple[int, ...]
    dim: int = -1

    @property
    def classes(self) -> int:
        """The class count."""
        return self.shape[self.dim]

    @property
    def rows(self) -> tuple[int, ...]:
        """The shape without the classes."""
        shape = list(self.shape)
        del shape[self.dim]
        return tuple(shape)

    def __str__(self) -> str:
        """Words for a test id or a table."""
        text = "x".join(map(str, self.shape))
        return text if self.dim == -1 else f"{text}-dim{self.dim}"


@dataclass(frozen=True)
class Inputs:
    """Arguments of one call; the first tensor gets the gradient."""

    tensors: tuple[Tensor, ...]
    keywords: Mapping[str, Any] = field(default_factory=dict)

    def to(self, dtype: torch.dtype) -> "Inputs":
        """The same values, floating tensors in another dtype: float64 makes the oracle's inputs."""
        return self._map(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)

    def on(self, device: torch.device | str) -> "Inputs":
        """The same values in the memory of a device."""
        return self._map(lambda tensor: tensor.to(device))

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Inputs":
        return Inputs(
            tuple(change(t) for t in self.tensors),
            {
                name: change(value) if isinstance(value, Tensor) else value
                for name, value in self.keywords.items()
            },
        )


@dataclass(frozen=True)
class BenchRow:
    """One row of the benchmark table."""

    geometry: Geometry
    dtype: torch.dtype


@dataclass(frozen=True)
class LossCase:
    """One loss with one set of options."""

    loss: str  # the public function's name
    label: str  # the options, in words
    options: Mapping[str, Any]
    make_inputs: Callable[..., Inputs]  # (geometry, student dtype, teacher dtype, seed)
    # As people write it today, for benchmarks: the same arguments and options, eager PyTorch.
    eager: Callable[..., Tensor] | None = None
    bench_rows: tuple[BenchRow, ...] = ()
    gpu_bench_rows: tuple[BenchRow, ...] = ()
    # Bytes that any implementation must move for these inputs: each logit read, gradient written.
    ideal_bytes: Callable[[Inputs], int] | None = None

    def __str__(self) -> str:
        """The test id."""
        return f"{self.loss}-{self.label}"

    def run(self, inputs: Inputs, **more: Any) -> Tensor:
        """The public function."""
        function: Callable[..., Tensor] = getattr(fastkd, self.loss)
        return function(*inputs.tensors, **{**inputs.keywords, **self.options, **more})

    def run_reference(self, inputs: Inputs, **more: Any) -> Tensor:
        """The plain PyTorch reference."""
        function: Callable[..., Tensor] = getattr(fastkd.reference, self.loss)
        return function(*inputs.tensors, **{**inputs.keywords, **self.options, **more})


def make_logits(
    geometry: Geometry,
    student_dtype: torch.dtype = torch.float32,
    teacher_dtype: torch.dtype | None = None,
    seed: int = 0,
    *,
    hard: bool = True,
    weighted: bool = False,
    ignored: bool = False,
    scale: float = 3.0,
    device: torch.device | str = "cpu",
) -> Inputs:
    """Random logits with a spread of `scale`, targets, and per-row weights if asked for."""
    place: dict[str, Any] = {
        "generator": torch.Generator(device).manual_seed(seed),
        "device": device,
    }

    def normal(dtype: torch.dtype) -> Tensor:
        return torch.randn(geometry.shape, **place).mul_(scale).to(dtype)

    student, teacher = normal(student_dtype), normal(teacher_dtype or student_dtype)
    keywords: dict[str, Any] = {"dim": geometry.dim}
    if hard:
        target = torch.randint(0, geometry.classes, geometry.rows, **place)
        if ignored:
            target[torch.rand(geometry.rows, **place) < 0.3] = -100
        keywords["target"] = target
    if weighted:
        weight = torch.rand(geometry.rows, **place)
        weight[torch.rand(geometry.rows, **place) < 0.2] = 0
        keywords["sample_weight"] = weight
    return Inputs((student, teacher), keywords)


def _soft_only(geometry: Geometry, *args: Any, **keywords: Any) -> Inputs:
    return make_logits(geometry, *args, hard=False, **keywords)


def _weighted(geometry: Geometry, *args: Any, **keywords: Any) -> Inputs:
    return make_logits(geometry, *args, weighted=True, ignored=True, **keywords)


def _ignored(geometry: Geometry, *args: Any, **keywords: Any) -> Inputs:
    return make_logits(geometry, *args, ignored=True, **keywords)


def _soft_weighted(geometry: Geometry, *args: Any, **keywords: Any) -> Inputs:
    return make_logits(geometry, *args, hard=False, weighted=True, **keywords)


def eager_kd_loss(
    student: Tensor,
    teacher: Tensor,
    target: Tensor,
    *,
    dim: int,
    temperature: float,
    alpha: float,
    reduction: str,
) -> Tensor:
    """The loss as most training code has it, both terms summed over rows and divided by N."""
    assert reduction == "batchmean"
    soft = functional.kl_div(
        functional.log_softmax(student / temperature, dim),
        functional.softmax(teacher / temperature, dim),
        reduction="batchmean",
    )
    hard = functional.cross_entropy(student.movedim(dim, 1), target, reduction="sum") / len(student)
    return soft * temperature * temperature * alpha + hard * (1 - alpha)


def kd_ideal_bytes(inputs: Inputs) -> int:
    """Student and teacher read once, gradient written once."""
    student, teacher = inputs.tensors
    return 2 * student.numel() * student.element_size() + teacher.numel() * teacher.element_size()


_FP32, _BF16 = torch.float32, torch.bfloat16
_KD_BENCH_ROWS = tuple(
    BenchRow(Geometry(shape, dim), dtype)
    for shape, dim, dtypes in (
        ((8, 10), -1, (_FP32,)),
        ((128, 10), -1, (_FP32, _BF16)),
        ((128, 100), -1, (_FP32, _BF16)),
        ((256, 1000), -1, (_FP32, _BF16)),
        ((64, 21841), -1, (_FP32, _BF16)),
        ((512, 32000), -1, (_FP32, _BF16)),
        ((256, 128256), -1, (_FP32, _BF16)),
        ((8, 19, 256, 256), 1, (_FP32, _BF16)),
    )
    for dtype in dtypes
)
# In the order of what matters most, for a run that is short of time.
_KD_GPU_BENCH_ROWS = tuple(
    BenchRow(Geometry(shape, dim), dtype)
    for dtype in (_BF16, _FP32)
    for shape, dim in (
        ((8, 10), -1),
        ((1 << 20, 10), -1),
        ((65536, 100), -1),
        ((65536, 1000), -1),
        ((16384, 4096), -1),
        ((16384, 8192), -1),
        ((8192, 32000), -1),
        ((4096, 50257), -1),
        ((4096, 128256), -1),
        ((2048, 262144), -1),
        ((64, 19, 256, 256), 1),
        ((16, 150, 128, 128), 1),
    )
)

KD_LOSS = LossCase(
    "kd_loss",
    "t4",
    {"temperature": 4.0, "alpha": 0.5, "reduction": "batchmean"},
    make_logits,
    eager_kd_loss,
    _KD_BENCH_ROWS,
    _KD_GPU_BENCH_ROWS,
    kd_ideal_bytes,
)

CASES = (
    KD_LOSS,
    LossCase("kd_loss", "t1", {"temperature": 1.0, "alpha": 0.3}, make_logits),
    LossCase("kd_loss", "t2-weighted", {"temperature": 2.0, "alpha": 0.7}, _weighted),
    LossCase(
        "kd_loss",
        "t3.5-smoothed",
        {"temperature": 3.5, "alpha": 0.6, "label_smoothing": 0.1, "reduction": "sum"},
        make_logits,
    ),
    LossCase(
        "kd_loss", "t0.5-rows", {"temperature": 0.5, "alpha": 0.5, "reduction": "none"}, _ignored
    ),
    LossCase(
        "kd_loss",
        "t4-smoothed-rows",
        {"temperature": 4.0, "alpha": 0.2, "label_smoothing": 0.3, "reduction": "none"},
        _weighted,
    ),
    LossCase("kd_loss", "soft-only", {"temperature": 4.0}, _soft_only),
    LossCase(
        "kd_loss",
        "soft-weighted-no-t2",
        {"temperature": 3.0, "temperature_squared": False, "reduction": "batchmean"},
        _soft_weighted,
    ),
    LossCase("kd_loss", "alpha1", {"temperature": 2.0, "alpha": 1.0}, make_logits),
    LossCase("kd_loss", "alpha0", {"temperature": 2.0, "alpha": 0.0}, _ignored),
    LossCase("kd_loss", "num-items", {"temperature": 4.0, "alpha": 0.9, "num_items": 37}, _ignored),
)

# Every loss with its plainest case: for tests that are about a path, not about options.
PLAIN_CASES = (KD_LOSS,)

# 1x1, one vector and its neighbours, a chunk and its neighbours, a long row, 3-D, maps, no rows.
GEOMETRIES = (
    Geometry((1, 1)),
    Geometry((5, 2)),
    Geometry((8, 10)),
    Geometry((3, 16)),
    Geometry((4, 17)),
    Geometry((7, 100)),
    Geometry((10,)),
    Geometry((3, 1023)),
    Geometry((3, 1024)),
    Geometry((3, 1025)),
    Geometry((2, 2500)),
    Geometry((2, 40001)),
    Geometry((2, 3, 50)),
    Geometry((2, 19, 5, 7), 1),
    Geometry((3, 10, 4, 4), 1),
    Geometry((1, 150, 9, 15), 1),
    Geometry((2, 1500, 12), 1),
    Geometry((33, 40), 0),
    Geometry((3, 5, 2), 1),
    Geometry((0, 10)),
    Geometry((2, 0, 10)),
    Geometry((0, 19, 8, 8), 1),
)
