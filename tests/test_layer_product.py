# SPDX-License-Identifier: Apache-2.0
"""The product of linear_kd_loss's chunks, and which library computes it."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.memory import peak_resident_bytes
from fastkd.ops._layer_product import layer_product

of_mkl = pytest.mark.skipif(
    not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()),
    reason="torch's float32 products are not MKL's",
)


def operations(*arguments: torch.Tensor) -> set[str]:
    with profile(activities=[ProfilerActivity.CPU]) as found:
        layer_product(*arguments)
    return {event.key for event in found.key_averages()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("layout", ["plain", "transposed", "every other"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7), (131, 40, 1000), (0, 3, 4), (3, 0, 4)])
def test_layer_product(dtype: torch.dtype, layout: str, shape: tuple[int, int, int]) -> None:
    count, width, classes = shape
    rows, bias = torch.randn(count, width).to(dtype), torch.randn(classes).to(dtype)
    if layout == "transposed":
        matrix = torch.randn(width, classes).to(dtype).t()
    elif layout == "every other":
        rows, matrix = (
            torch.randn(count, 2 * width).to(dtype)[:, ::2],
            torch.randn(2 * classes, width),
        )
        matrix = matrix.to(dtype)[::2]
    else:
        matrix = torch.randn(classes, width).to(dtype)
    truth = rows.double() @ matrix.double().t()
    bound = 1e-2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(layer_product(rows, matrix).double(), truth, rtol=bound, atol=bound)
    found = layer_product(rows, matrix, bias).double()
    torch.testing.assert_close(found, truth + bias.double(), rtol=bound, atol=bound)


def test_bias_and_matrix_of_any_strides() -> None:
    rows, bias = torch.randn(40, 16), torch.randn(30, 2)[:, 0]
    numbers = torch.randn(4000)
    for matrix in (
        torch.randn(30, 16),
        numbers.as_strided((30, 16), (3, 1)),  # rows that overlap
        numbers.as_strided((30, 16), (1, 3)),
        numbers.as_strided((30, 16), (0, 1)),
        numbers.as_strided((30, 16), (40, 2)),
        numbers.as_strided((30, 16), (50, 1)),
        torch.randn(30, 1).expand(30, 16),
    ):
        for of_class in (bias, torch.tensor([0.25]).expand(30)):
            truth = rows.double() @ matrix.double().t() + of_class.double()
            found = layer_product(rows, matrix, of_class).double()
            torch.testing.assert_close(found, truth, rtol=1e-5, atol=1e-5)


@of_mkl
def test_onednn_computes_it_in_place_of_mkl(monkeypatch: pytest.MonkeyPatch) -> None:
    """A release of torch without the operation would make linear_kd_loss a third slower."""
    rows, matrix = torch.randn(3, 5), torch.randn(7, 5)
    assert "mkldnn::_linear_pointwise" in operations(rows, matrix)
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    assert "mkldnn::_linear_pointwise" not in operations(rows, matrix)


@pytest.mark.parametrize("transposed", [False, True])
def test_the_matrix_is_not_copied(transposed: bool) -> None:
    rows = torch.randn(131, 16000 if transposed else 256)
    matrix = torch.randn(16000, 256)
    matrix = matrix.t() if transposed else matrix
    # The least of three: the system pages inputs out and in too.
    grown = [peak_resident_bytes(lambda: layer_product(rows, matrix)) for _ in range(3)]
    known = [size for size in grown if size is not None]
    if not known:
        pytest.skip("Linux tells the peak")
    assert min(known) < 131 * len(matrix) * 4 + matrix.nbytes / 2
