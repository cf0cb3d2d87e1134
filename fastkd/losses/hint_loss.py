# SPDX-License-Identifier: Apache-2.0
"""FitNets hints: the squared difference of intermediate features."""

from typing import get_args

import torch
from torch import Tensor

from fastkd._feature_options import ElementReduction, HintOptions, RegressorKind
from fastkd._feature_validation import check_same_features
from fastkd._option_checks import check_choice, check_positive, check_type
from fastkd._validation import check_tensor
from fastkd.losses._module import LossModule
from fastkd.losses._path import options_of
from fastkd.ops._constant import constant
from fastkd.reference.hint_loss import evaluate


def hint_loss(
    student_features: Tensor, teacher_features: Tensor, *, reduction: ElementReduction = "mean"
) -> Tensor:
    r"""Compute the mean squared difference of intermediate features.

    The loss is the mean over all elements

    .. math::
        \mathcal{L} = \frac{1}{N D} \sum_n \| s_n - t_n \|^2

    where D is the number of elements of one example. PyTorch's own fused operation computes it.
    FitNets takes :math:`\frac{1}{2} \| t - r(s) \|^2` of an example, which is half of
    `reduction="batchmean"`. The regressor r maps the student's features to the width of the
    teacher's. `fastkd.HintRegressor` is such a regressor, and `fastkd.HintLoss` can hold it.

    Arithmetic is float32 or better for every dtype of the features.

    Args:
        student_features: (N, ...), float32, bfloat16, float16 or float64. The only argument that
            gets a gradient.
        teacher_features: the same shape; its dtype may differ. Need not be detached; to train the
            teacher too, see `fastkd.reference`.
        reduction: "mean" over all elements, "sum", or "batchmean" (sum / N).

    Returns:
        The loss, 0-d: float32, or float64 if one of the features is float64.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes, devices or values that do not fit.

    References:
        Romero, Ballas, Kahou, Chassang, Gatta, Bengio: FitNets: Hints for Thin Deep Nets,
        arXiv:1412.6550, equation 3.

    Example:
        >>> import torch, fastkd
        >>> student = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
        >>> teacher = torch.tensor([[1.0, 0.0], [3.0, 4.0]])
        >>> loss = fastkd.hint_loss(student, teacher)
        >>> loss.backward()
        >>> loss.item()
        1.0
    """
    options = options_of(HintOptions, reduction)
    check_same_features("hint_loss", student_features, teacher_features)
    return evaluate(student_features, constant(teacher_features), options)


class HintLoss(LossModule):
    """Module form of `fastkd.hint_loss`: it stores the options, and a regressor if one is given.

    The parameters of the module are those of the regressor. Give them to the optimizer together
    with the student's parameters.
    """

    def __init__(
        self,
        *,
        regressor: torch.nn.Module | None = None,
        reduction: ElementReduction = "mean",
    ) -> None:
        """Store the options, and the regressor from the student's features to the teacher's shape.

        Args:
            regressor: a `fastkd.HintRegressor` or any other module, which is applied to the
                student's features first.
            reduction: see `fastkd.hint_loss`.
        """
        if regressor is not None and not isinstance(regressor, torch.nn.Module):
            raise TypeError(
                "hint_loss: regressor must be a torch.nn.Module or None, "
                f"got {type(regressor).__name__}"
            )
        super().__init__(HintOptions(reduction))
        self.regressor = regressor

    def forward(self, student_features: Tensor, teacher_features: Tensor) -> Tensor:
        """Compute the loss; see `fastkd.hint_loss`."""
        if self.regressor is not None:
            student_features = self.regressor(student_features)
        check_same_features("hint_loss", student_features, teacher_features)
        return evaluate(student_features, constant(teacher_features), self.options)


class HintRegressor(torch.nn.Module):
    r"""Map a student's features to the teacher's width: the regressor r of FitNets.

    It is trained together with the student and not needed afterwards.

    Args:
        student_channels: the student's width.
        teacher_channels: the teacher's width.
        kind: "conv1x1", a 1x1 convolution of (N, C, H, W), or "linear", of the last dimension of
            (..., D).
        bias: whether to add a learned bias.

    Raises:
        TypeError: an option of the wrong type.
        ValueError: a width below 1, an unknown kind, or features of another shape.

    References:
        Romero, Ballas, Kahou, Chassang, Gatta, Bengio: FitNets: Hints for Thin Deep Nets,
        arXiv:1412.6550, section 2.2. (The convolution there may be larger than 1x1, to match the
        teacher's spatial size.)

    Example:
        >>> import torch, fastkd
        >>> criterion = fastkd.HintLoss(regressor=fastkd.HintRegressor(16, 64))
        >>> student = torch.randn(2, 16, 7, 7, requires_grad=True)
        >>> loss = criterion(student, torch.randn(2, 64, 7, 7))
        >>> loss.backward()
        >>> [tuple(parameter.grad.shape) for parameter in criterion.parameters()]
        [(64, 16, 1, 1), (64,)]
    """

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        *,
        kind: RegressorKind = "conv1x1",
        bias: bool = True,
    ) -> None:
        super().__init__()
        function = type(self).__name__
        for name, channels in (
            ("student_channels", student_channels),
            ("teacher_channels", teacher_channels),
        ):
            check_type(function, name, channels, int)
            check_positive(function, name, channels)
        check_choice(function, "kind", kind, get_args(RegressorKind))
        check_type(function, "bias", bias, bool)
        self.student_channels = student_channels
        self.kind = kind
        self.projection = (
            torch.nn.Linear(student_channels, teacher_channels, bias)
            if kind == "linear"
            else torch.nn.Conv2d(student_channels, teacher_channels, kernel_size=1, bias=bias)
        )

    def forward(self, student_features: Tensor) -> Tensor:
        """Map the features: (..., D) to (..., D') or (N, C, H, W) to (N, C', H, W)."""
        check_tensor("HintRegressor", "student_features", student_features)
        shape, channels = tuple(student_features.shape), self.student_channels
        if self.kind == "linear":
            expected, fits = f"(..., {channels})", shape[-1:] == (channels,)
        else:
            expected = f"(N, {channels}, H, W)"
            fits = len(shape) == 4 and shape[1] == channels
        if not fits:
            raise ValueError(
                f"HintRegressor: student_features must have shape {expected}, got {shape}"
            )
        mapped: Tensor = self.projection(student_features)
        return mapped
