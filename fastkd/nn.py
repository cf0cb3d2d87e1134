# SPDX-License-Identifier: Apache-2.0
"""Distillation losses as modules: they store options and call the function."""

from fastkd.losses.kd_loss import KDLoss

__all__ = ["KDLoss"]
