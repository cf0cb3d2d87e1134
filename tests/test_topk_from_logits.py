# SPDX-License-Identifier: Apache-2.0
"""topk_from_logits: a teacher's largest classes."""

from typing import Any

import pytest
import torch
from topk_values import INF

from fastkd import topk_from_logits, topk_kd_loss

S = torch.randn(3, 5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("dim", [-1, 0])
def test_topk_from_logits(dtype: torch.dtype, dim: int) -> None:
    torch.manual_seed(0)
    logits = (5 * torch.randn(30, 30) + 1000).to(dtype).requires_grad_()
    values, indices = topk_from_logits(logits, 4, temperature=2.0, dim=dim)
    assert not values.requires_grad
    assert values.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected = torch.log_softmax(logits.detach().double() / 2, dim)
    assert indices.equal(logits.topk(4, dim).indices)
    torch.testing.assert_close(values.double(), expected.gather(dim, indices), rtol=0, atol=1e-6)


def test_topk_from_masked_logits() -> None:
    logits = torch.tensor([[0.0, -INF, 1.0, -INF]])
    values, indices = topk_from_logits(logits, 3)
    assert values.isneginf().tolist() == [[False, False, True]]
    assert topk_kd_loss(logits, values, indices) == 0


@pytest.mark.parametrize(
    ("error", "logits", "k", "options", "message"),
    [
        (TypeError, [1.0], 1, {}, "teacher_logits must be a torch.Tensor, got list"),
        (TypeError, S.long(), 1, {}, "teacher_logits must have dtype"),
        (TypeError, S, 1.0, {}, "k must be"),
        (ValueError, S, 0, {}, r"k must be in \[1, 5\], the classes, got 0"),
        (ValueError, S, 6, {}, r"k must be in \[1, 5\], the classes, got 6"),
        (ValueError, S, 1, {"temperature": 0.0}, "temperature must be in"),
        (ValueError, S, 1, {"dim": 2}, r"dim must be in \[-2, 1\]"),
        (ValueError, torch.tensor(1.0), 1, {}, "must have a class dimension, got a scalar"),
    ],
)
def test_topk_from_logits_errors(
    error: type[Exception], logits: Any, k: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(error, match=message):
        topk_from_logits(logits, k, **options)
