# SPDX-License-Identifier: Apache-2.0
"""linear_kd_loss: what it refuses, and what it says."""

from typing import Any

import pytest
import torch

import fastkd

H, W, T, TW = torch.zeros(8, 4), torch.zeros(10, 4), torch.zeros(8, 3), torch.zeros(10, 3)
BAD: list[tuple[type[Exception], str, tuple[Any, ...], dict[str, Any]]] = [
    (TypeError, "expected teacher_hidden and teacher_weight, or .* got none of them", (H, W), {}),
    (TypeError, "or teacher_values and teacher_indices, got teacher_hidden", (H, W, T), {}),
    (TypeError, "as values and indices, got teacher_hidden, teacher_weight, tea", (H, W, T, TW),
     {"teacher_logits": torch.zeros(8, 10)}),
    (TypeError, "student_hidden must be a torch.Tensor, got list", ([1.0], W, T, TW), {}),
    (TypeError, "student_weight must have dtype .* got torch.int64", (H, W.long(), T, TW), {}),
    (ValueError, r"student_weight must have shape \(V, H\) .* got \(10, 3\) for \(8, 4\)",
     (H, TW, T, TW), {}),
    (ValueError, r"teacher_weight must have shape \(V, H\) .* got \(10, 4\) for \(8, 3\)",
     (H, W, T, W), {}),
    (ValueError, r"student_bias must have shape \(10,\), got \(8,\)", (H, W, T, TW),
     {"student_bias": torch.zeros(8)}),
    (TypeError, "student_hidden, student_weight must have one dtype outside of autocast, got "
     "torch.bfloat16, torch.float32", (H.bfloat16(), W, T, TW), {}),
    (ValueError, r"teacher_hidden must have the rows of student_hidden, \(8,\), got shape \(7, 3\)",
     (H, W, T[:7], TW), {}),
    (ValueError, r"teacher_logits must have the rows of student_hidden, \(8,\), got .*\(7, 10\)",
     (H, W), {"teacher_logits": torch.zeros(7, 10)}),
    (ValueError, r"teacher_logits must have shape \(..., V\), got a scalar", (H, W),
     {"teacher_logits": torch.zeros(())}),
    (ValueError, "the teacher must have the student's 10 classes, got 9 .common_vocab=True",
     (H, W, T, TW[:9]), {}),
    (ValueError, "at least one class a side, got 0 and 0", (H, W[:0], T, TW[:0]), {}),
    (ValueError, "teacher_weight must be on the student's device cpu, got meta",
     (H, W, T, TW.to("meta")), {}),
    (ValueError, r"target must have the logits' shape .*\(8,\), got \(7,\)",
     (H, W, T, TW, torch.zeros(7, dtype=torch.int64)), {}),
    (IndexError, r"target must be in \[0, 10\) or ignore_index, got 10 at \(7,\)",
     (H, W, T, TW, torch.arange(3, 11)), {"chunk_rows": 2}),
    (ValueError, "logit_softcap must be in \\[1e-3, 1e4\\], got 0", (H, W, T, TW),
     {"logit_softcap": 0}),
    (TypeError, "chunk_rows must be int or 'auto', got str 'all'", (H, W, T, TW),
     {"chunk_rows": "all"}),
    (ValueError, "chunk_rows must be >= 1, got 0", (H, W, T, TW), {"chunk_rows": 0}),
    (ValueError, "temperature must be in", (H, W, T, TW), {"temperature": 0}),
    (ValueError, "num_items replaces the denominator", (H, W, T, TW),
     {"num_items": 3, "reduction": "sum"}),
    (ValueError, "num_items must be >= 0 and finite", (H, W, T, TW),
     {"num_items": torch.tensor(-1)}),
]  # fmt: skip


@pytest.mark.parametrize(("error", "message", "arguments", "options"), BAD)
def test_bad_input(
    error: type[Exception], message: str, arguments: tuple[Any, ...], options: dict[str, Any]
) -> None:
    with pytest.raises(error, match=f"linear_kd_loss: .*{message}|linear_kd_loss: {message}"):
        fastkd.linear_kd_loss(*arguments, **options)
