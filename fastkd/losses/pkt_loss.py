# SPDX-License-Identifier: Apache-2.0
"""Probabilistic knowledge transfer."""

import functools

from torch import Tensor

from fastkd._relational_options import PKTOptions, TableReduction
from fastkd.losses._module import EmbeddingsModule
from fastkd.losses._path import call_on_embeddings, options_of
from fastkd.ops.similarity_loss import pkt as paths
from fastkd.reference.pkt_loss import evaluate

_call = functools.partial(call_on_embeddings, paths, evaluate)


def pkt_loss(
    student_embeddings: Tensor,
    teacher_embeddings: Tensor,
    *,
    reduction: TableReduction = "mean",
    eps: float = 1e-7,
) -> Tensor:
    r"""Compare how probable the examples of a batch are as neighbours of each other.

    With :math:`k_{ij} = (\cos(x_i, x_j) + 1) / 2` of each side, p and q are k of the teacher and of
    the student with each row divided by its sum. The loss is the mean over all i and j of

    .. math::
        \ell_{ij} = p_{ij} \log \frac{p_{ij} + \mathrm{eps}}{q_{ij} + \mathrm{eps}}

    in nats. An example is a neighbour of itself too.

    Arithmetic is float32 or better. The gradient is computed together with the loss, in O(N^2)
    memory. Double backward (create_graph) uses the PyTorch reference.

    An embedding no longer than 1e-12 has no direction: all its cosines are 0, also with itself, and
    it gets no gradient. Every other embedding has the cosine 1 with itself. With N = 1 the loss is
    0. NaN or infinity in the embeddings gives NaN. In the kernels, vectors longer than 1e18 can
    also give NaN, because their squares overflow float32.

    Args:
        student_embeddings: (N, D), float32, bfloat16, float16 (kernels), or float64 (reference).
            The only argument that gets a gradient.
        teacher_embeddings: (N, D'), rows of the same examples; width and dtype may differ. Need not
            be detached; to train the teacher too, see `fastkd.reference`.
        reduction: "mean" over all N^2 entries, as in the original code, or "sum".
        eps: added to the probabilities in the logarithm, in [1e-18, 1e18].

    Returns:
        The loss, 0-d: float32, or float64 if one of the embeddings is float64.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes, devices or values that do not fit.
        RuntimeError: CUDA refused a kernel, or FASTKD_REQUIRE_NATIVE=1 and there is no kernel.

    References:
        Passalis, Tefas: Learning Deep Representations with Probabilistic Knowledge Transfer, ECCV
        2018, arXiv:1803.10837, equations 3 to 6. The authors' code adds eps to the norms too.

    Example:
        >>> import torch, fastkd
        >>> student = torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)
        >>> teacher = torch.tensor([[1.0], [1.0]])
        >>> loss = fastkd.pkt_loss(student, teacher)
        >>> loss.backward()
        >>> round(loss.item(), 4)
        0.0294
    """
    options = options_of(PKTOptions, reduction, eps)
    return _call(student_embeddings, teacher_embeddings, options)


class PKTLoss(EmbeddingsModule):
    """Module form of `fastkd.pkt_loss`: it stores the options."""

    _call = staticmethod(_call)

    def __init__(self, *, reduction: TableReduction = "mean", eps: float = 1e-7) -> None:
        """Store the options; see `fastkd.pkt_loss`."""
        super().__init__(PKTOptions(reduction, eps))
