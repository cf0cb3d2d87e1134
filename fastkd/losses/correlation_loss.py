# SPDX-License-Identifier: Apache-2.0
"""Correlation congruence."""

import functools

from torch import Tensor

from fastkd._relational_options import CorrelationOptions, RelationReduction
from fastkd.losses._module import EmbeddingsModule
from fastkd.losses._path import call_on_embeddings, options_of
from fastkd.ops.similarity_loss import correlation as paths
from fastkd.reference.correlation_loss import evaluate

_call = functools.partial(call_on_embeddings, paths, evaluate)


def correlation_loss(
    student_embeddings: Tensor,
    teacher_embeddings: Tensor,
    *,
    gamma: float = 0.4,
    reduction: RelationReduction = "mean",
    eps: float = 1e-12,
) -> Tensor:
    r"""Compare the Gaussian kernels between the examples of a batch.

    With the unit vectors :math:`u_i = x_i / \|x_i\|_2` of each side and

    .. math::
        k_{ij} = \exp(-\gamma \|u_i - u_j\|_2^2) = \exp(2 \gamma (\cos(x_i, x_j) - 1))

    the loss is the mean over all i and j of :math:`(k_{ij}^S - k_{ij}^T)^2`.

    Arithmetic is float32 or better. The gradient is computed together with the loss, in O(N^2)
    memory. Double backward (create_graph) uses the PyTorch reference.

    An embedding no longer than `eps` has no direction: all its cosines are 0, also with itself, and
    it gets no gradient. Every other embedding has k = 1 with itself. With N = 1 the loss is 0
    unless one side's embedding is zero. NaN or infinity in the embeddings gives NaN. In the
    kernels, vectors longer than 1e18 can also give NaN, because their squares overflow float32.

    Args:
        student_embeddings: (N, D), float32, bfloat16, float16 (kernels), or float64 (reference).
            The only argument that gets a gradient.
        teacher_embeddings: (N, D'), rows of the same examples; width and dtype may differ. Need not
            be detached; to train the teacher too, see `fastkd.reference`.
        gamma: inverse squared width of the kernel, in [1e-6, 1e6]; 0.4 is the authors'.
        reduction: "mean" over all N^2 entries, as in the paper, "sum", or "mean_distinct" over the
            N (N - 1) pairs of different examples.
        eps: embeddings no longer than this have no direction; in [1e-18, 1e18].

    Returns:
        The loss, 0-d: float32, or float64 if one of the embeddings is float64.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes, devices or values that do not fit.
        RuntimeError: CUDA refused a kernel, or FASTKD_REQUIRE_NATIVE=1 and there is no kernel.

    References:
        Peng et al.: Correlation Congruence for Knowledge Distillation, ICCV 2019,
        arXiv:1904.01802. The kernel here is exact. The authors use its Taylor series of order 2 in
        the cosine, which at gamma 0.4 is 5 % low at cosine 1 and 16 % high at cosine -1.

    Example:
        >>> import torch, fastkd
        >>> student = torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)
        >>> teacher = torch.tensor([[1.0], [1.0]])
        >>> loss = fastkd.correlation_loss(student, teacher)
        >>> loss.backward()
        >>> round(loss.item(), 4)
        0.1516
    """
    options = options_of(CorrelationOptions, gamma, reduction, eps)
    return _call(student_embeddings, teacher_embeddings, options)


class CorrelationLoss(EmbeddingsModule):
    """Module form of `fastkd.correlation_loss`: it stores the options."""

    _call = staticmethod(_call)

    def __init__(
        self, *, gamma: float = 0.4, reduction: RelationReduction = "mean", eps: float = 1e-12
    ) -> None:
        """Store the options; see `fastkd.correlation_loss`."""
        super().__init__(CorrelationOptions(gamma, reduction, eps))
