# SPDX-License-Identifier: Apache-2.0
"""Gradients of an output layer, added up from chunks of the gradient of its logits."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from fastkd.ops._layer_product import layer_product

_BLOCK_CLASSES = 8192  # of which half types hold a product before it is added up

Wanted = tuple[bool, bool, bool]
NONE_WANTED: Wanted = (False, False, False)


class Gradients(NamedTuple):
    """Of hidden states [N, H], weight and bias, in float32 at least; None: not wanted."""

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


class GradientSums:
    """Gradients that grow by chunks."""

    def __init__(self, hidden: Tensor, weight: Tensor, wanted: Wanted) -> None:
        self.weight = weight
        dtype = torch.promote_types(weight.dtype, torch.float32)
        self.is_half = dtype != weight.dtype
        self.grads = Gradients(
            hidden.new_zeros(hidden.shape, dtype=dtype) if wanted[0] else None,
            weight.new_zeros(weight.shape, dtype=dtype) if wanted[1] else None,
            weight.new_zeros(len(weight), dtype=dtype) if wanted[2] else None,
        )

    def add(self, part: slice, rows: Tensor, grad: Tensor, unscale: Tensor | None) -> None:
        """Take in a chunk's gradient of the logits, times 1 / unscale, and its hidden states."""
        hidden, weight, bias = self.grads
        if hidden is not None:
            self._add_hidden(hidden[part], grad, unscale)
        if weight is not None and not self.is_half:
            weight.addmm_(grad.t(), rows)
        elif weight is not None:
            for block in self._blocks():
                weight[block].add_(_unscaled(_product(grad[:, block].t(), rows), unscale))
        if bias is not None:
            bias.add_(_unscaled(grad.sum(0, dtype=bias.dtype), unscale))

    def _add_hidden(self, out: Tensor, grad: Tensor, unscale: Tensor | None) -> None:
        if not self.is_half:
            out.copy_(layer_product(grad, self.weight.t()))
            return
        for block in self._blocks():
            out.add_(_product(grad[:, block], self.weight[block]))
        _unscaled(out, unscale)

    def _blocks(self) -> Iterator[slice]:
        for begin in range(0, len(self.weight), _BLOCK_CLASSES):
            yield slice(begin, begin + _BLOCK_CLASSES)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Of half types, in a type of float32's range: sums of float16 gradients leave float16's."""
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32)
    if a.dtype == torch.bfloat16:  # several times as fast as in float32, where the CPU has it
        return torch.mm(a, b)
    return torch.mm(a.float(), b.float())


def _unscaled(x: Tensor, unscale: Tensor | None) -> Tensor:
    return x if unscale is None else x.mul_(unscale)
