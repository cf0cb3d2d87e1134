# SPDX-License-Identifier: Apache-2.0
"""Similarity-preserving distillation."""

from torch import Tensor

from fastkd._feature_validation import check_features
from fastkd._relational_options import SimilarityPreservingOptions, TableReduction
from fastkd.losses._module import LossModule
from fastkd.losses._path import call, options_of
from fastkd.ops.similarity_loss import similarity_preserving as paths
from fastkd.reference.similarity_preserving_loss import evaluate


def similarity_preserving_loss(
    student_features: Tensor,
    teacher_features: Tensor,
    *,
    reduction: TableReduction = "mean",
    eps: float = 1e-12,
) -> Tensor:
    r"""Compare which examples of a batch activate the features alike.

    The features of each example are flattened to a row of X. Each row of :math:`G = X X^\top` is
    divided by its norm: :math:`P_{ij} = G_{ij} / \|G_i\|_2`. The loss is the mean over all i and j
    of

    .. math::
        \ell_{ij} = (P_{ij}^S - P_{ij}^T)^2

    Arithmetic is float32 or better. The gradient is computed together with the loss, in O(N^2)
    memory beside the features. Double backward (create_graph) uses the PyTorch reference.

    If :math:`\|G_i\|_2 \le` `eps`, as for features that are all zero, the row of P is 0 and has no
    gradient. With N = 1 the loss is 0 unless one side's features are zero. NaN or infinity in the
    features gives NaN. In the kernels, vectors longer than 1e18 can also give NaN, because their
    squares overflow float32.

    Args:
        student_features: (N, ...), float32, bfloat16, float16 (kernels), or float64 (reference).
            The only argument that gets a gradient.
        teacher_features: (N, ...), of the same examples; other dimensions and dtype may differ.
            Need not be detached; to train the teacher too, see `fastkd.reference`.
        reduction: "mean" over all N^2 entries, as in the paper, or "sum".
        eps: rows of G with a norm up to this count as zero; in [1e-18, 1e18].

    Returns:
        The loss, 0-d: float32, or float64 if one of the features is float64.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes, devices or values that do not fit.
        RuntimeError: CUDA refused a kernel, or FASTKD_REQUIRE_NATIVE=1 and there is no kernel.

    References:
        Tung, Mori: Similarity-Preserving Knowledge Distillation, ICCV 2019, arXiv:1907.09682,
        equations 1 to 4. (torchdistill 1.1 divides the rows by the sum of their magnitudes.)

    Example:
        >>> import torch, fastkd
        >>> student = torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)
        >>> teacher = torch.tensor([[1.0], [1.0]])
        >>> loss = fastkd.similarity_preserving_loss(student, teacher)
        >>> loss.backward()
        >>> round(loss.item(), 4)
        0.2929
    """
    options = options_of(SimilarityPreservingOptions, reduction, eps)
    return _call(student_features, teacher_features, options)


class SimilarityPreservingLoss(LossModule):
    """Module form of `fastkd.similarity_preserving_loss`: it stores the options."""

    def __init__(self, *, reduction: TableReduction = "mean", eps: float = 1e-12) -> None:
        """Store the options; see `fastkd.similarity_preserving_loss`."""
        super().__init__(SimilarityPreservingOptions(reduction, eps))

    def forward(self, student_features: Tensor, teacher_features: Tensor) -> Tensor:
        """Compute the loss; see `fastkd.similarity_preserving_loss`."""
        return _call(student_features, teacher_features, self.options)


def _call(student: Tensor, teacher: Tensor, options: SimilarityPreservingOptions) -> Tensor:
    check_features("similarity_preserving_loss", student, teacher, rank=2, shape="(N, ...)")
    return call(paths, evaluate, student, teacher, options)
