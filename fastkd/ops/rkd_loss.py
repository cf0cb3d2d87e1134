# SPDX-License-Identifier: Apache-2.0
"""The kernel of distances and angles, which serves three losses."""

import functools
from typing import Any

from torch import Tensor

from fastkd._feature_validation import check_embeddings
from fastkd._native import CRITERION_CODES, PAIR_REDUCTION_CODES
from fastkd._native_module import NativeModule
from fastkd._relational_options import RKDAngleOptions, RKDDistanceOptions, RKDOptions
from fastkd.ops import _pairs
from fastkd.ops._with_gradient import Loss, Paths, paths_of
from fastkd.reference.rkd_angle_loss import evaluate as evaluate_angle
from fastkd.reference.rkd_distance_loss import evaluate as evaluate_distance
from fastkd.reference.rkd_loss import evaluate as evaluate_both


def _paths(options: Any, evaluate: Any) -> Paths:
    function = options.FUNCTION

    def kernel(
        student: Tensor, teacher: Tensor, chosen: Any, with_grad: bool
    ) -> tuple[Tensor, Tensor | None]:
        native = functools.partial(_native_options, options=chosen)
        return _pairs.run("rkd_loss", function, native, student, teacher, with_grad)

    check = functools.partial(check_embeddings, function)
    return paths_of(Loss(function, "teacher_embeddings", options, check, kernel, evaluate))


@functools.lru_cache(maxsize=256)
def _native_options(module: NativeModule, options: Any) -> Any:
    if isinstance(options, RKDOptions):
        weights = options.distance_weight, options.angle_weight
    else:
        weights = (0.0, 1.0) if isinstance(options, RKDAngleOptions) else (1.0, 0.0)
    return module.RkdOptions(
        *weights,
        CRITERION_CODES[options.criterion],
        options.beta,
        PAIR_REDUCTION_CODES[options.reduction],
        getattr(options, "squared", False),
        options.eps,
    )


distance = _paths(RKDDistanceOptions, evaluate_distance)
angle = _paths(RKDAngleOptions, evaluate_angle)
both = _paths(RKDOptions, evaluate_both)
