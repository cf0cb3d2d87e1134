# SPDX-License-Identifier: Apache-2.0
"""Distillation losses as modules, which store options and call the function."""

from fastkd.losses.attention_transfer_loss import AttentionTransferLoss
from fastkd.losses.correlation_loss import CorrelationLoss
from fastkd.losses.cosine_similarity_loss import CosineSimilarityLoss
from fastkd.losses.decoupled_kd_loss import DecoupledKDLoss
from fastkd.losses.dist_loss import DISTLoss
from fastkd.losses.fsp_loss import FSPLoss
from fastkd.losses.hint_loss import HintLoss, HintRegressor
from fastkd.losses.kd_loss import KDLoss
from fastkd.losses.linear_kd_loss import LinearKDLoss
from fastkd.losses.logit_mse_loss import LogitMSELoss
from fastkd.losses.nst_loss import NSTLoss
from fastkd.losses.pkt_loss import PKTLoss
from fastkd.losses.rkd_angle_loss import RKDAngleLoss
from fastkd.losses.rkd_distance_loss import RKDDistanceLoss
from fastkd.losses.rkd_loss import RKDLoss
from fastkd.losses.similarity_preserving_loss import SimilarityPreservingLoss
from fastkd.losses.topk_kd_loss import TopKKDLoss

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
]
