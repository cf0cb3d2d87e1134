# SPDX-License-Identifier: Apache-2.0
"""The losses in plain PyTorch, differentiable in every tensor, to any order.

They are what the kernels are tested against and what runs where no kernel can. Use them where the
teacher should learn too; they take the options of the function of the same name.
"""

from fastkd.reference.kd_loss import kd_loss

__all__ = ["kd_loss"]
