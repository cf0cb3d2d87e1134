# SPDX-License-Identifier: Apache-2.0
"""Targets of next-token prediction, from the labels of language models."""

import torch
from torch import Tensor

from fastkd._option_checks import check_ignore_index
from fastkd._validation import check_tensor


def shift_labels(labels: Tensor, *, ignore_index: int = -100) -> Tensor:
    r"""Return the targets of next-token prediction: position i gets the label of position i + 1.

    The last position has no next token and gets `ignore_index`. So the logits need no slice:
    `logits[:, :-1]` would cost a copy of their size in backward, where autograd pads the gradient.

    Args:
        labels: (..., L) int64, as language models take them: the tokens of the input, with
            `ignore_index` in place of tokens that are not predicted.
        ignore_index: the target value that the losses leave out.

    Returns:
        (..., L) int64, a new tensor.

    Raises:
        TypeError: labels are not an int64 tensor, or ignore_index is not an int.
        ValueError: labels are a 0-d tensor, or ignore_index does not fit int64.

    Example:
        >>> import torch, fastkd
        >>> fastkd.shift_labels(torch.tensor([[5, 6, 7], [8, 9, -100]]))
        tensor([[   6,    7, -100],
                [   9, -100, -100]])
    """
    check_ignore_index("shift_labels", ignore_index)
    check_tensor("shift_labels", "labels", labels)
    if labels.dtype != torch.int64:
        raise TypeError(f"shift_labels: labels must be int64, got {labels.dtype}")
    if labels.ndim == 0:
        raise ValueError("shift_labels: labels must have shape (..., L), got a 0-d tensor")
    return torch.nn.functional.pad(
        labels[..., 1:], (0, min(1, labels.shape[-1])), value=ignore_index
    )
