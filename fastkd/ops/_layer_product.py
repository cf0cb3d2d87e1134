# SPDX-License-Identifier: Apache-2.0
"""Some rows times a large matrix, by the library that is quickest at it."""

from typing import Any

import torch
from torch import Tensor

# F.linear in float32 is MKL's product on x86, which packs the whole matrix anew for each call: with
# 131 rows that takes as long as half the product. oneDNN's packs nothing, and holds nothing more.
# torch calls it so for compiled code; there is no other way to it for tensors that are not its own.
_ONEDNN: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None)


def layer_product(rows: Tensor, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
    """rows [N, A] @ matrix.T [A, B] + bias [B], in new memory."""
    if _is_of_mkl(rows) and _ONEDNN is not None and _is_plain_matrix(matrix) and rows.numel() > 0:
        # It does not look at the bias's strides.
        bias = None if bias is None else bias.contiguous()
        product: Tensor = _ONEDNN(rows, matrix, bias, "none", [], "")
        return product
    return torch.nn.functional.linear(rows, matrix, bias)


def _is_of_mkl(rows: Tensor) -> bool:
    """Whether torch would have MKL do it, and may ask oneDNN."""
    return (
        rows.device.type == "cpu"
        and rows.dtype == torch.float32
        and torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
        and bool(torch.backends.mkldnn.enabled)
    )


def _is_plain_matrix(matrix: Tensor) -> bool:
    """Whether rows or columns are contiguous and apart from each other."""
    (rows, columns), (down, across) = matrix.shape, matrix.stride()
    by_rows = across == 1 and down >= columns
    return matrix.numel() > 0 and (by_rows or (down == 1 and across >= rows))
