# SPDX-License-Identifier: Apache-2.0
"""Flow of solution procedure: the products of the channels of two layers."""

from torch import Tensor

from fastkd._feature_options import ExampleReduction, FSPOptions
from fastkd._feature_validation import check_layer_pairs
from fastkd.losses._module import LossModule
from fastkd.losses._path import options_of
from fastkd.reference.fsp_loss import evaluate


def fsp_loss(
    student_features: tuple[Tensor, Tensor],
    teacher_features: tuple[Tensor, Tensor],
    *,
    reduction: ExampleReduction = "mean",
) -> Tensor:
    r"""Compare the flow between two layers, the products of their channels.

    With the features :math:`F^1` and :math:`F^2` of two layers of a network, the flow of example n

    .. math::
        G_{nab} = \frac{1}{H W} \sum_{h,w} F^1_{nahw} F^2_{nbhw}

    is one batched product. The loss is the mean of :math:`(G^S_{nab} - G^T_{nab})^2` over n, a and
    b. If the two layers of a network differ in height or width, adaptive_avg_pool2d averages the
    larger down to the smaller. Equal features give exactly 0.

    Arithmetic is float32 or better for every dtype of the features. Autocast does not change this.
    Call backward outside of autocast, as PyTorch recommends: inside, the products of backward run
    in half precision.

    Args:
        student_features: a pair, (N, C1, H, W) of the first layer and (N, C2, H', W') of the
            second; float32, bfloat16, float16 or float64. The only argument that gets a gradient.
        teacher_features: a pair with the same N, C1 and C2; heights, widths and dtypes may differ.
            Need not be detached; to train the teacher too, see `fastkd.reference`.
        reduction: "mean" over the examples, or "sum" over the examples of the mean over a and b.

    Returns:
        The loss, 0-d: float32, or float64 if one of the features is float64.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes, devices or values that do not fit.

    References:
        Yim, Joo, Bae, Kim: A Gift from Knowledge Distillation: Fast Optimization, Network
        Minimization and Transfer Learning, CVPR 2017, equations 1 and 2. (Equation 2 is a sum over
        a and b.)

    Example:
        >>> import torch, fastkd
        >>> first = torch.tensor([1.0, 2.0]).view(1, 1, 1, 2).requires_grad_()
        >>> second = torch.tensor([3.0, 1.0]).view(1, 1, 1, 2).requires_grad_()
        >>> teacher = torch.ones(1, 1, 4, 4), torch.ones(1, 1, 2, 2)
        >>> loss = fastkd.fsp_loss((first, second), teacher)
        >>> loss.backward()
        >>> loss.item()
        2.25
    """
    options = options_of(FSPOptions, reduction)
    return _call(student_features, teacher_features, options)


class FSPLoss(LossModule):
    """Module form of `fastkd.fsp_loss`: it stores the options."""

    def __init__(self, *, reduction: ExampleReduction = "mean") -> None:
        """Store the options; see `fastkd.fsp_loss`."""
        super().__init__(FSPOptions(reduction))

    def forward(
        self, student_features: tuple[Tensor, Tensor], teacher_features: tuple[Tensor, Tensor]
    ) -> Tensor:
        """Compute the loss; see `fastkd.fsp_loss`."""
        return _call(student_features, teacher_features, self.options)


def _call(
    student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], options: FSPOptions
) -> Tensor:
    check_layer_pairs("fsp_loss", student, teacher)
    first, second = teacher
    return evaluate(student, (first.detach(), second.detach()), options)
