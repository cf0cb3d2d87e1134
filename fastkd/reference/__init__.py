# SPDX-License-Identifier: Apache-2.0
"""The losses in plain PyTorch, differentiable in every tensor, to any order.

The tests compare the kernels with these functions, and fastkd calls them if no kernel can serve.
Call them to train the teacher too. Each takes the arguments of the function in `fastkd` with the
same name.
"""

from fastkd.reference.attention_transfer_loss import attention_transfer_loss
from fastkd.reference.correlation_loss import correlation_loss
from fastkd.reference.cosine_similarity_loss import cosine_similarity_loss
from fastkd.reference.decoupled_kd_loss import decoupled_kd_loss
from fastkd.reference.dist_loss import dist_loss
from fastkd.reference.fsp_loss import fsp_loss
from fastkd.reference.hint_loss import hint_loss
from fastkd.reference.kd_loss import kd_loss
from fastkd.reference.linear_kd_loss import linear_kd_loss
from fastkd.reference.logit_mse_loss import logit_mse_loss
from fastkd.reference.nst_loss import nst_loss
from fastkd.reference.pkt_loss import pkt_loss
from fastkd.reference.rkd_angle_loss import rkd_angle_loss
from fastkd.reference.rkd_distance_loss import rkd_distance_loss
from fastkd.reference.rkd_loss import rkd_loss
from fastkd.reference.similarity_preserving_loss import similarity_preserving_loss
from fastkd.reference.topk_kd_loss import topk_kd_loss

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
