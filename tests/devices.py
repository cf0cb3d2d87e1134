# SPDX-License-Identifier: Apache-2.0
"""Where the tests in test_cuda_device*.py run: on a GPU; without one, some of each on the CPU.

On the CPU they show nothing about CUDA. They show that the tests themselves still work, so that the
first GPU is not spent on their faults.
"""

import os
from collections.abc import Sequence
from typing import TypeVar

import pytest
import torch

DEVICE = os.environ.get("FASTKD_TEST_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
ON_GPU = DEVICE == "cuda"
gpu_only = pytest.mark.skipif(not ON_GPU, reason="there is no CUDA device")

Value = TypeVar("Value")


def some(values: Sequence[Value], most: int = 2) -> Sequence[Value]:
    """All of them on a GPU; on the CPU so many, evenly spread."""
    if ON_GPU or len(values) <= most:
        return values
    step = (len(values) - 1) / max(1, most - 1)
    return [values[int(place * step)] for place in range(most)]
