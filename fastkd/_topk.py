# SPDX-License-Identifier: Apache-2.0
"""The largest classes of a teacher, for topk_kd_loss and for storing a teacher."""

from typing import NamedTuple

import torch
from torch import Tensor

from fastkd._option_checks import check_real, check_type
from fastkd._validation import check_classes, check_floating


class TopK(NamedTuple):
    """The result of `topk_from_logits`."""

    values: Tensor
    indices: Tensor


def topk_from_logits(
    teacher_logits: Tensor, k: int, *, temperature: float = 1.0, dim: int = -1
) -> TopK:
    r"""Return the k most probable classes of each row, for `topk_kd_loss` or to store a teacher.

    Args:
        teacher_logits: (..., C, ...) with the classes in `dim`; float32, bfloat16, float16 or
            float64. Gets no gradient.
        k: the number of classes, in [1, C].
        temperature: T of the loss that will take the classes, in [1e-6, 1e6].
        dim: the class dimension.

    Returns:
        values: (..., k, ...), :math:`\log \mathrm{softmax}(t / T)` of these classes, largest
        first; float32, or float64 if the logits are float64. The value of a masked class is -inf;
        `topk_kd_loss` ignores such an entry.
        indices: the same shape, int64. A file can store them in a smaller type: int32 for any
        vocabulary, int16 for fewer than 32,768 classes. It can store the values in float16, which
        is finer than bfloat16 for log-probabilities.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: k, temperature or dim is out of range, or the logits are a scalar.

    Example:
        >>> import torch, fastkd
        >>> fastkd.topk_from_logits(torch.tensor([[0.0, 0.0, -99.0]]), 2).values
        tensor([[-0.6931, -0.6931]])
    """
    function = "topk_from_logits"
    check_floating(function, "teacher_logits", teacher_logits)
    check_type(function, "dim", dim, int)
    check_type(function, "k", k, int)
    rule = "in [1e-6, 1e6]"
    check_real(function, "temperature", temperature, rule, lambda x: 1e-6 <= x <= 1e6)
    dim = check_classes(function, "teacher_logits", teacher_logits, dim)
    classes = teacher_logits.shape[dim]
    if not 1 <= k <= classes:
        raise ValueError(f"{function}: k must be in [1, {classes}], the classes, got {k}")
    logits = teacher_logits.detach()
    values, indices = logits.topk(k, dim)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    largest = values.narrow(dim, 0, 1).to(logits.dtype)
    log_sum = ((logits - largest) / temperature).logsumexp(dim, keepdim=True)
    return TopK((values.to(logits.dtype) - largest) / temperature - log_sum, indices)
