# SPDX-License-Identifier: Apache-2.0
"""The kernel between tables of similarities, which serves four losses."""

import functools
from typing import Any

from torch import Tensor

from fastkd._feature_validation import check_embeddings, check_features
from fastkd._native import CRITERION_CODES, PAIR_REDUCTION_CODES, SIMILARITY_CODES
from fastkd._native_module import NativeModule
from fastkd._relational_options import (
    CorrelationOptions,
    CosineSimilarityOptions,
    PKTOptions,
    SimilarityPreservingOptions,
)
from fastkd.ops import _pairs
from fastkd.ops._with_gradient import Loss, Paths, paths_of
from fastkd.reference.correlation_loss import evaluate as evaluate_correlation
from fastkd.reference.cosine_similarity_loss import evaluate as evaluate_cosine
from fastkd.reference.pkt_loss import evaluate as evaluate_pkt
from fastkd.reference.similarity_preserving_loss import evaluate as evaluate_preserving


def _paths(options: Any, evaluate: Any) -> Paths:
    function = options.FUNCTION

    def kernel(
        student: Tensor, teacher: Tensor, chosen: Any, with_grad: bool
    ) -> tuple[Tensor, Tensor | None]:
        native = functools.partial(_native_options, options=chosen)
        return _pairs.run("similarity_loss", function, native, student, teacher, with_grad)

    any_rank = options is SimilarityPreservingOptions
    check = functools.partial(check_embeddings, function)
    if any_rank:
        check = functools.partial(check_features, function, rank=2, shape="(N, ...)")
    teacher_name = "teacher_features" if any_rank else "teacher_embeddings"
    return paths_of(Loss(function, teacher_name, options, check, kernel, evaluate))


@functools.lru_cache(maxsize=256)
def _native_options(module: NativeModule, options: Any) -> Any:
    return module.SimilarityOptions(
        SIMILARITY_CODES[options.FUNCTION],
        PAIR_REDUCTION_CODES[options.reduction],
        CRITERION_CODES[getattr(options, "criterion", "smooth_l1")],
        getattr(options, "beta", 1.0),
        getattr(options, "gamma", 1.0),
        options.eps,
    )


similarity_preserving = _paths(SimilarityPreservingOptions, evaluate_preserving)
cosine = _paths(CosineSimilarityOptions, evaluate_cosine)
pkt = _paths(PKTOptions, evaluate_pkt)
correlation = _paths(CorrelationOptions, evaluate_correlation)
