# SPDX-License-Identifier: Apache-2.0
"""Distillation losses as functions."""

from fastkd.losses.kd_loss import kd_loss

__all__ = ["kd_loss"]
