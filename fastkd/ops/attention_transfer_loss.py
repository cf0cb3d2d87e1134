# SPDX-License-Identifier: Apache-2.0
"""attention_transfer_loss over its two kernels: the loss, and the gradient of the features.

The forward call gives the loss and how it changes with the student's map, [N, P]: the gradient of
the features is that times a power of the features, so backward reads them again and nothing as
large as they are is kept.
"""

import functools
import math

import torch
from torch import Tensor

from fastkd import _front, _native
from fastkd._attention_options import AttentionTransferOptions
from fastkd._feature_validation import check_maps
from fastkd.ops._module import module_of
from fastkd.ops._with_gradient import Loss, paths_of
from fastkd.reference.attention_transfer_loss import evaluate

_FUNCTION = "attention_transfer_loss"


def _forward(
    student: Tensor, teacher: Tensor, options: AttentionTransferOptions, with_grad: bool
) -> tuple[Tensor, Tensor | None]:
    """Loss and dloss/dmap, on plain tensors of a device that has a module."""
    # The device is named: torch.set_default_device must not move what the kernel writes.
    device = student.device
    loss = torch.empty((), dtype=torch.float32, device=device)
    map_grad = (
        torch.empty(_map_shape(student), dtype=torch.float32, device=device) if with_grad else None
    )
    module, mean = module_of(_FUNCTION, student), options.reduction == "mean"

    def run(student: Tensor, teacher: Tensor) -> bool:
        return _native.attention_transfer_loss(
            module, student, teacher, options.p, mean, loss, map_grad
        )

    # [N, C, P], without a copy where the strides allow one dimension for all positions.
    student, teacher = student.detach().flatten(2), teacher.detach().flatten(2)
    if not run(student, teacher) and not run(student.contiguous(), teacher.contiguous()):
        raise _refused()
    return loss, map_grad


def _scale(
    map_grad: Tensor, grad_loss: Tensor, student: Tensor, options: AttentionTransferOptions
) -> Tensor:
    """The gradient of the student's features in eager mode."""
    plain = not _front.in_transform() and _front.is_plain(grad_loss)
    gradient = _gradient if plain else _gradient_by_torch  # is_grads_batched: vmap here
    return gradient(student, map_grad, grad_loss, options.p)


def _gradient(student: Tensor, map_grad: Tensor, grad_loss: Tensor, p: float) -> Tensor:
    """The same in their strides, on plain tensors."""
    module, student = module_of(_FUNCTION, student), student.detach()
    grad = torch.empty_like(student)

    def run(features: Tensor | None, out: Tensor | None) -> bool:
        if features is None or out is None:
            return False
        return _native.attention_transfer_gradient(module, features, p, map_grad, grad_loss, out)

    if run(_one_position_dimension(student), _one_position_dimension(grad)):
        return grad
    dense = student.flatten(2).contiguous()
    dense_grad = torch.empty_like(dense)
    if not run(dense, dense_grad):
        raise _refused()
    return grad.copy_(dense_grad.view(student.shape))


def _one_position_dimension(features: Tensor) -> Tensor | None:
    """The same memory as [N, C, P], if its strides allow."""
    try:
        return features.view(*features.shape[:2], -1)
    except RuntimeError:
        return None


def _gradient_by_torch(student: Tensor, map_grad: Tensor, grad_loss: Tensor, p: float) -> Tensor:
    """The same for transforms, which must see every operation."""
    x = student.flatten(2).to(torch.float32)
    slope = (x.abs().pow(p - 1) * x.sign() * (p / x.shape[1])).masked_fill(x == 0, 0)
    grad = slope * (map_grad * grad_loss).unsqueeze(1)
    return grad.view(student.shape).to(student.dtype)


def _map_shape(features: Tensor) -> tuple[int, int]:
    return features.shape[0], math.prod(features.shape[2:])


def _refused() -> RuntimeError:
    return RuntimeError(f"{_FUNCTION}: the kernel refused contiguous features (a bug in fastkd)")


@torch.library.custom_op(
    "fastkd::attention_transfer_gradient", mutates_args=(), device_types=("cpu", "cuda")
)
def attention_transfer_gradient_op(
    student: Tensor, map_grad: Tensor, grad_loss: Tensor, p: float
) -> Tensor:
    """The gradient of the student's features."""
    check_maps(_FUNCTION, student, student, interpolate=False)
    if student.dtype == torch.float64:
        raise TypeError("fastkd::attention_transfer_gradient has no float64 kernel")
    for name, given, shape in (
        ("map_grad", map_grad, _map_shape(student)),
        ("grad_loss", grad_loss, ()),
    ):
        if given.shape != shape or given.dtype != torch.float32 or given.device != student.device:
            raise ValueError(
                f"fastkd::attention_transfer_gradient: {name} must be float32 {shape} on "
                f"{student.device}, got {given.dtype} {tuple(given.shape)} on {given.device}"
            )
    return _gradient(student, map_grad.contiguous(), grad_loss, p)


@attention_transfer_gradient_op.register_fake
def _(student: Tensor, map_grad: Tensor, grad_loss: Tensor, p: float) -> Tensor:
    return torch.empty_like(student)


def _scale_compiled(
    map_grad: Tensor, grad_loss: Tensor, student: Tensor, options: AttentionTransferOptions
) -> Tensor:
    grad: Tensor = attention_transfer_gradient_op(student, map_grad, grad_loss, options.p)
    return grad


paths = paths_of(
    Loss(
        _FUNCTION,
        "teacher_features",
        AttentionTransferOptions,
        functools.partial(check_maps, _FUNCTION, interpolate=False),
        _forward,
        evaluate,
        _map_shape,
        _scale,
        _scale_compiled,
    )
)
