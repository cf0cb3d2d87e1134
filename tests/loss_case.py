# SPDX-License-Identifier: Apache-2.0
"""What a case is: one loss with one set of options, and the shapes it runs on."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

import fastkd

Kind = Literal["logits", "layers", "relations", "features"]


@dataclass(frozen=True)
class Geometry:
    """A shape of the student's tensor, and of the teacher's where it is another."""

    shape: tuple[int, ...]
    dim: int = -1  # the classes of logits
    teacher: tuple[int, ...] | None = None
    width: int | None = None  # of the hidden states, for a loss that computes the logits from them

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
        # rows x width x classes, as of a matrix product
        width = () if self.width is None else (self.width,)
        text = "x".join(map(str, (*self.shape[:-1], *width, *self.shape[-1:])))
        if self.teacher is not None:
            text += f"-of-{'x'.join(map(str, self.teacher))}"
        return text if self.dim == -1 else f"{text}-dim{self.dim}"


@dataclass(frozen=True)
class Inputs:
    """Arguments of one call; the first tensors are learned."""

    tensors: tuple[Tensor, ...]
    keywords: Mapping[str, Any] = field(default_factory=dict)
    learned: int = 1  # how many of the tensors get a gradient

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        """The tensors that get a gradient."""
        return self.tensors[: self.learned]

    def with_gradient(self) -> "Inputs":
        """The same values; what is learned are leaves that want a gradient."""
        leaves = (tensor.detach().requires_grad_() for tensor in self.leaves)
        return replace(self, tensors=(*leaves, *self.tensors[self.learned :]))

    def to(self, dtype: torch.dtype) -> "Inputs":
        """The same values, floating tensors in another dtype: float64 makes the oracle's inputs."""
        return self.map(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)

    def on(self, device: torch.device | str) -> "Inputs":
        """The same values in the memory of a device."""
        return self.map(lambda tensor: tensor.to(device))

    def map(self, change: Callable[[Tensor], Tensor]) -> "Inputs":
        """The same with every tensor changed."""
        keywords = {
            name: change(value) if isinstance(value, Tensor) else value
            for name, value in self.keywords.items()
        }
        return replace(self, tensors=tuple(map(change, self.tensors)), keywords=keywords)


def ideal_bytes(inputs: Inputs) -> int:
    """Every tensor read once, the gradients written once."""
    return sum(tensor.nbytes for tensor in (*inputs.tensors, *inputs.leaves))


@dataclass(frozen=True)
class BenchRow:
    """One row of the benchmark table."""

    geometry: Geometry
    dtype: torch.dtype
    # Providers that are not asked, and why: what they would have to hold, say.
    spared: Mapping[str, str] = field(default_factory=dict)
    most_threads_only: bool = False


@dataclass(frozen=True)
class Work:
    """What a loss is done for, where that and not bytes sets its time."""

    unit: str  # one of them
    count: Callable[[Geometry], int]


@dataclass(frozen=True)
class Family:
    """What losses of the same arguments run on."""

    geometries: tuple[Geometry, ...]  # values and gradients of every case
    mixed: tuple[Geometry, ...]  # every mixture of dtypes
    scaled: tuple[Geometry, ...]  # any grad_loss
    plain: tuple[Geometry, Geometry, Geometry]  # three sizes for tests that are about a path
    small: Geometry  # for second derivatives
    large: Geometry  # whose mean leaves little for one entry: gradients below float16's least
    threaded: tuple[Geometry, ...]  # work for several threads
    reductions: tuple[str, str]
    kind: Kind = "logits"


@dataclass(frozen=True)
class Kernels:
    """What a loss calls of fastkd._native."""

    forward: str
    backward: tuple[str, ...] = ()  # none: torch's multiplication by grad_loss


@dataclass(frozen=True)
class LossCase:
    """One loss with one set of options."""

    loss: str  # the public function's name
    label: str  # the options, in words
    options: Mapping[str, Any]
    make_inputs: Callable[..., Inputs]  # (geometry, student dtype, teacher dtype, seed)
    family: Family
    kernels: Kernels
    # As people write it today, for benchmarks: the same arguments and options, eager PyTorch.
    eager: Callable[..., Tensor] | None = None
    bench_rows: tuple[BenchRow, ...] = ()
    gpu_bench_rows: tuple[BenchRow, ...] = ()
    # Bytes that any implementation must move for these inputs.
    ideal_bytes: Callable[[Inputs], int] | None = None
    # A call that does what any implementation must and nothing else, where bytes don't set the
    # time. Its buffers are made before it is timed, its results with every call.
    floor: Callable[[Inputs], Callable[[], object]] | None = None
    work: Work | None = None
    # Numbers that the float64 reference holds: with too many, errors are taken on fewer rows.
    # None: some tensors like the student's.
    reference_numbers: Callable[[Geometry], int] | None = None
    in_pairs: bool = False  # tensors are passed two by two, as those of two layers
    # Gradients in bfloat16 are sums of products that were rounded to it: they are rounded twice.
    sums_products: bool = False

    def __str__(self) -> str:
        """The test id."""
        return f"{self.loss}-{self.label}"

    @property
    def geometry(self) -> Geometry:
        """A plain one."""
        return self.family.plain[0]

    @property
    def kernel_calls(self) -> list[str]:
        """What a forward and a backward call of fastkd._native."""
        return [self.kernels.forward, *self.kernels.backward]

    def arguments(self, inputs: Inputs) -> tuple[Any, ...]:
        """The positional ones."""
        tensors = inputs.tensors
        return (tensors[:2], tensors[2:]) if self.in_pairs else tensors

    def run(self, inputs: Inputs, **more: Any) -> Tensor:
        """The public function."""
        function: Callable[..., Tensor] = getattr(fastkd, self.loss)
        return function(*self.arguments(inputs), **{**inputs.keywords, **self.options, **more})

    def module(self) -> Any:
        """The public module with these options."""
        word = self.loss.replace("_", "")
        (name,) = (name for name in fastkd.nn.__all__ if name.lower() == word)
        return getattr(fastkd.nn, name)(**self.options)

    def run_reference(self, inputs: Inputs, **more: Any) -> Tensor:
        """The plain PyTorch reference."""
        function: Callable[..., Tensor] = getattr(fastkd.reference, self.loss)
        return function(*self.arguments(inputs), **{**inputs.keywords, **self.options, **more})
