# SPDX-License-Identifier: Apache-2.0
"""Distillation from a stronger teacher: correlations between and within classes."""

from torch import Tensor

from fastkd import _front
from fastkd._feature_options import DISTOptions
from fastkd._validation import check_masked_logits
from fastkd.losses._module import LossModule
from fastkd.losses._path import options_of
from fastkd.ops import dist_loss as ops
from fastkd.ops._constant import constant
from fastkd.reference.dist_loss import evaluate


def dist_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 1.0,
    beta: float = 1.0,
    gamma: float = 1.0,
    dim: int = -1,
    mask: Tensor | None = None,
    temperature_squared: bool = True,
) -> Tensor:
    r"""Compare how the probabilities of teacher and student correlate, in rows and in classes.

    With :math:`p = \mathrm{softmax}(t / T)` of the teacher and
    :math:`q = \mathrm{softmax}(s / T)` of the student, over N rows and C classes,

    .. math::
        \ell = T^2 \Big[ \beta \Big(1 - \frac{1}{N} \sum_i \rho(q_{i:}, p_{i:}) \Big)
             + \gamma \Big(1 - \frac{1}{C} \sum_c \rho(q_{:c}, p_{:c}) \Big) \Big], \qquad
        \rho(x, y) = \frac{(x - \bar x)^\top (y - \bar y)}
                          {\|x - \bar x\| \, \|y - \bar y\| + 10^{-8}}

    The first term compares the classes of a row, the second the rows of a class. The loss is one
    number for the whole batch, not a mean of row losses. Every position that is not a class is a
    row, also in dense maps, as in the original code. The loss takes no labels. The paper's trainer
    adds the cross-entropy:

        hard = torch.nn.functional.cross_entropy(student_logits, target)
        loss = hard + fastkd.dist_loss(student_logits, teacher_logits, beta=1.0, gamma=1.0)

    The values are those of the original code, with its 1e-8. This 1e-8 reduces the correlation of a
    class whose probabilities are small in all rows, even if both sides agree. (Centred norms of
    1e-4 on both sides halve it.) Most classes are like this if there are tens of thousands, so the
    second term then stays near :math:`\gamma T^2`. Equal logits therefore do not give exactly 0.
    For few classes they give about 1e-7 T^2, up to the rounding of float32.

    A row of equal probabilities (one class, for example) has correlation 0 and gives no gradient.
    So does a class with equal probabilities in all rows (a batch of one row, or a class masked by
    -inf). Probabilities count as equal if they differ from their mean by rounding only, about 1e-6
    of the mean in float32. (At T = 1e6 all do.) There, the gradient of the original code is up to
    1e8 times the teacher's probabilities, or consists of rounding errors. So a student whose logits
    are all 0 needs the cross-entropy to start. A row that is all -inf, or holds NaN or +inf, gives
    NaN.

    Arithmetic is float32 or better for every dtype of the logits, also under autocast. At most four
    tensors of the logits' size are in memory, and one of them until backward.

    Args:
        student_logits: (..., C, ...) with the classes in `dim`; float32, bfloat16, float16 or
            float64. The only argument that gets a gradient.
        teacher_logits: the same shape; its dtype may differ. Need not be detached; to train the
            teacher too, see `fastkd.reference`.
        temperature: T, in [1e-6, 1e6]; the paper's tau.
        beta: weight of the first term, the relation between classes, >= 0.
        gamma: weight of the second term, the relation within classes, >= 0.
        dim: the class dimension: -1 for (N, C) and (B, T, V), 1 for (N, C, H, W).
        mask: bool, the logits' shape without `dim`. A row with False is left out of both terms,
            whatever its logits hold, NaN too (padded tokens, pixels without a label).
        temperature_squared: whether T^2 multiplies the loss. This keeps the gradient's scale
            independent of T.

    Returns:
        The loss, 0-d: float32, or float64 if one of the logits is float64. If no row counts, the
        loss and its gradient are 0.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes, devices or values that do not fit.

    References:
        Huang, You, Wang, Qian, Xu: Knowledge Distillation from A Stronger Teacher,
        arXiv:2205.10536, and their code.

    Example:
        >>> import torch, fastkd
        >>> student = torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 3.0]], requires_grad=True)
        >>> teacher = torch.tensor([[1.0, 1.0, -2.0], [-1.0, 2.0, 2.0]])
        >>> loss = fastkd.dist_loss(student, teacher, beta=1.0, gamma=2.0)
        >>> loss.backward()
        >>> round(loss.item(), 4)
        1.0979
    """
    options = options_of(DISTOptions, temperature, beta, gamma, dim, temperature_squared)
    return _call(student_logits, teacher_logits, mask, options)


class DISTLoss(LossModule):
    """Module form of `fastkd.dist_loss`: it stores the options that are not tensors."""

    def __init__(
        self,
        *,
        temperature: float = 1.0,
        beta: float = 1.0,
        gamma: float = 1.0,
        dim: int = -1,
        temperature_squared: bool = True,
    ) -> None:
        """Store the options; see `fastkd.dist_loss`."""
        super().__init__(DISTOptions(temperature, beta, gamma, dim, temperature_squared))

    def forward(
        self, student_logits: Tensor, teacher_logits: Tensor, *, mask: Tensor | None = None
    ) -> Tensor:
        """Compute the loss; see `fastkd.dist_loss`."""
        return _call(student_logits, teacher_logits, mask, self.options)


def _call(student: Tensor, teacher: Tensor, mask: Tensor | None, options: DISTOptions) -> Tensor:
    check_masked_logits("dist_loss", student, teacher, options.dim, mask)
    if _front.is_seen_by_autograd_alone(student, teacher, mask):
        return ops.eager(student, teacher, mask, options)
    return evaluate(student, constant(teacher), None if mask is None else constant(mask), options)
