# SPDX-License-Identifier: Apache-2.0
"""Every loss with a kernel once: what tests and benchmarks run, on every backend.

A loss joins all value, gradient, dtype, layout, compile, error and benchmark runs by a LossCase in
CASES; nothing else lists losses. loss_case.py says what a case is; logit_cases.py,
decoupled_cases.py, topk_cases.py and relational_cases.py have the cases. Losses without a kernel of
their own have no case here, but in torch_cases.py and linear_cases.py.
"""

from decoupled_cases import DECOUPLED_CASES, DECOUPLED_KD_LOSS
from logit_cases import KD_CASES, KD_LOSS, LOGITS
from loss_case import BenchRow, Family, Geometry, Inputs, Kernels, LossCase
from relational_cases import (
    ATTENTION,
    EMBEDDINGS,
    FEATURE_CASES,
    FEATURES,
    PAIR_CASES,
    PLAIN_PAIR_CASES,
)
from topk_cases import TOPK_CASES, TOPK_KD_LOSS

__all__ = [
    "ATTENTION",
    "BATCH_CASES",
    "CASES",
    "DECOUPLED_KD_LOSS",
    "EMBEDDINGS",
    "FEATURES",
    "FEATURE_CASES",
    "KD_LOSS",
    "LOGITS",
    "LOGIT_CASES",
    "PAIR_CASES",
    "PLAIN_BATCH_CASES",
    "PLAIN_CASES",
    "PLAIN_LOGIT_CASES",
    "PLAIN_PAIR_CASES",
    "TOPK_KD_LOSS",
    "BenchRow",
    "Family",
    "Geometry",
    "Inputs",
    "Kernels",
    "LossCase",
]

# A student's and a teacher's tensor and nothing else.
BATCH_CASES = (*PAIR_CASES, *FEATURE_CASES)
LOGIT_CASES = (*KD_CASES, *DECOUPLED_CASES, *TOPK_CASES)
CASES = (*LOGIT_CASES, *BATCH_CASES)

# Every loss with its plainest case: for tests that are about a path, not about options.
PLAIN_BATCH_CASES = (*PLAIN_PAIR_CASES, ATTENTION)
PLAIN_LOGIT_CASES = (KD_LOSS, DECOUPLED_KD_LOSS, TOPK_KD_LOSS)
PLAIN_CASES = (*PLAIN_LOGIT_CASES, *PLAIN_BATCH_CASES)
