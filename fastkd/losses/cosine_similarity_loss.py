# SPDX-License-Identifier: Apache-2.0
"""Relational distillation by the cosines of pairs."""

import functools

from torch import Tensor

from fastkd._relational_options import CosineSimilarityOptions, Criterion, RelationReduction
from fastkd.losses._module import CosinesModule
from fastkd.losses._path import call_on_embeddings, options_of
from fastkd.ops.similarity_loss import cosine as paths
from fastkd.reference.cosine_similarity_loss import evaluate

_call = functools.partial(call_on_embeddings, paths, evaluate)


def cosine_similarity_loss(
    student_embeddings: Tensor,
    teacher_embeddings: Tensor,
    *,
    criterion: Criterion = "smooth_l1",
    beta: float = 1.0,
    reduction: RelationReduction = "mean",
    eps: float = 1e-12,
) -> Tensor:
    r"""Compare the cosines between the examples of a batch.

    With :math:`c_{ij} = \langle x_i, x_j \rangle / (\|x_i\|_2 \|x_j\|_2)` of each side, the loss is
    the mean over all i and j of

    .. math::
        \ell_{ij} = \mathrm{criterion}(c_{ij}^S - c_{ij}^T)

    The loss compares the student's cosines with the teacher's cosines. It never compares an
    embedding of the student with one of the teacher, so their widths may differ.

    Arithmetic is float32 or better. The gradient is computed together with the loss, in O(N^2)
    memory. Double backward (create_graph) uses the PyTorch reference.

    An embedding no longer than `eps` has no direction: all its cosines are 0, also with itself, and
    it gets no gradient. Every other embedding has the cosine 1 with itself. With N = 1 the loss is
    0 unless one side's embedding is zero. NaN or infinity in the embeddings gives NaN. In the
    kernels, vectors longer than 1e18 can also give NaN, because their squares overflow float32.

    Args:
        student_embeddings: (N, D), float32, bfloat16, float16 (kernels), or float64 (reference).
            The only argument that gets a gradient.
        teacher_embeddings: (N, D'), rows of the same examples; width and dtype may differ. Need not
            be detached; to train the teacher too, see `fastkd.reference`.
        criterion: "smooth_l1" (Huber's function over `beta`) or "l1", as in torch.nn.functional, or
            "l2" (the square, without 1/2).
        beta: the difference at which "smooth_l1" changes from the square to the absolute value, in
            [1e-18, 1e18].
        reduction: "mean" over all N^2 entries, "sum", or "mean_distinct" over the N (N - 1) pairs
            of different examples.
        eps: embeddings no longer than this have no direction; in [1e-18, 1e18].

    Returns:
        The loss, 0-d: float32, or float64 if one of the embeddings is float64.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes, devices or values that do not fit.
        RuntimeError: CUDA refused a kernel, or FASTKD_REQUIRE_NATIVE=1 and there is no kernel.

    References:
        Park, Kim, Lu, Cho: Relational Knowledge Distillation, CVPR 2019, arXiv:1904.05068,
        equation 3, with the cosine as the potential of a pair.

    Example:
        >>> import torch, fastkd
        >>> student = torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)
        >>> teacher = torch.tensor([[1.0], [1.0]])
        >>> loss = fastkd.cosine_similarity_loss(student, teacher)
        >>> loss.backward()
        >>> loss.item()
        0.25
    """
    options = options_of(CosineSimilarityOptions, criterion, beta, reduction, eps)
    return _call(student_embeddings, teacher_embeddings, options)


class CosineSimilarityLoss(CosinesModule):
    """Module form of `fastkd.cosine_similarity_loss`: it stores the options."""

    _call = staticmethod(_call)
    _options = CosineSimilarityOptions
