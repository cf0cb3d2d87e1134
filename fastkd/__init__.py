# SPDX-License-Identifier: Apache-2.0
"""Fused knowledge-distillation losses for PyTorch.

functional, nn (the public lists)
    -> losses/     one file per loss: checks, choice of path, the docstring, the module
         -> ops/        autograd functions and registered ops  -> _native.py -> the compiled modules
                        (_backends.py finds and loads them)
         -> reference/  plain differentiable PyTorch: the truth of the tests, and the fallback
"""

from fastkd import functional, nn, reference
from fastkd._info import info
from fastkd._labels import shift_labels
from fastkd._topk import topk_from_logits
from fastkd._version import __version__
from fastkd.functional import (
    attention_transfer_loss,
    correlation_loss,
    cosine_similarity_loss,
    decoupled_kd_loss,
    dist_loss,
    fsp_loss,
    hint_loss,
    kd_loss,
    linear_kd_loss,
    logit_mse_loss,
    nst_loss,
    pkt_loss,
    rkd_angle_loss,
    rkd_distance_loss,
    rkd_loss,
    similarity_preserving_loss,
    topk_kd_loss,
)
from fastkd.nn import (
    AttentionTransferLoss,
    CorrelationLoss,
    CosineSimilarityLoss,
    DecoupledKDLoss,
    DISTLoss,
    FSPLoss,
    HintLoss,
    HintRegressor,
    KDLoss,
    LinearKDLoss,
    LogitMSELoss,
    NSTLoss,
    PKTLoss,
    RKDAngleLoss,
    RKDDistanceLoss,
    RKDLoss,
    SimilarityPreservingLoss,
    TopKKDLoss,
)

__all__ = [
    "AttentionTransferLoss",
    "CorrelationLoss",
    "CosineSimilarityLoss",
    "DISTLoss",
    "DecoupledKDLoss",
    "FSPLoss",
    "HintLoss",
    "HintRegressor",
    "KDLoss",
    "LinearKDLoss",
    "LogitMSELoss",
    "NSTLoss",
    "PKTLoss",
    "RKDAngleLoss",
    "RKDDistanceLoss",
    "RKDLoss",
    "SimilarityPreservingLoss",
    "TopKKDLoss",
    "__version__",
    "attention_transfer_loss",
    "correlation_loss",
    "cosine_similarity_loss",
    "decoupled_kd_loss",
    "dist_loss",
    "fsp_loss",
    "functional",
    "hint_loss",
    "info",
    "kd_loss",
    "linear_kd_loss",
    "logit_mse_loss",
    "nn",
    "nst_loss",
    "pkt_loss",
    "reference",
    "rkd_angle_loss",
    "rkd_distance_loss",
    "rkd_loss",
    "shift_labels",
    "similarity_preserving_loss",
    "topk_from_logits",
    "topk_kd_loss",
]
