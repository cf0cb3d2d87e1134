# SPDX-License-Identifier: Apache-2.0
"""Distillation losses as functions."""

from fastkd.losses.attention_transfer_loss import attention_transfer_loss
from fastkd.losses.correlation_loss import correlation_loss
from fastkd.losses.cosine_similarity_loss import cosine_similarity_loss
from fastkd.losses.decoupled_kd_loss import decoupled_kd_loss
from fastkd.losses.dist_loss import dist_loss
from fastkd.losses.fsp_loss import fsp_loss
from fastkd.losses.hint_loss import hint_loss
from fastkd.losses.kd_loss import kd_loss
from fastkd.losses.linear_kd_loss import linear_kd_loss
from fastkd.losses.logit_mse_loss import logit_mse_loss
from fastkd.losses.nst_loss import nst_loss
from fastkd.losses.pkt_loss import pkt_loss
from fastkd.losses.rkd_angle_loss import rkd_angle_loss
from fastkd.losses.rkd_distance_loss import rkd_distance_loss
from fastkd.losses.rkd_loss import rkd_loss
from fastkd.losses.similarity_preserving_loss import similarity_preserving_loss
from fastkd.losses.topk_kd_loss import topk_kd_loss

__all__ = [
    "attention_transfer_loss",
    "correlation_loss",
    "cosine_similarity_loss",
    "decoupled_kd_loss",
    "dist_loss",
    "fsp_loss",
    "hint_loss",
    "kd_loss",
    "linear_kd_loss",
    "logit_mse_loss",
    "nst_loss",
    "pkt_loss",
    "rkd_angle_loss",
    "rkd_distance_loss",
    "rkd_loss",
    "similarity_preserving_loss",
    "topk_kd_loss",
]
