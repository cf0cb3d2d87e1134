# SPDX-License-Identifier: Apache-2.0
"""Soft targets of a teacher of which only K classes of each row are known."""

from torch import Tensor

from fastkd._options import KDLossInputs, Reduction, Tail, TeacherValues, TopKKDLossOptions
from fastkd._topk_validation import check_topk_kd_loss
from fastkd.losses._module import LossModule
from fastkd.losses._path import call_on_rows, options_of
from fastkd.ops.topk_kd_loss import PATHS
from fastkd.reference.topk_kd_loss import evaluate


def topk_kd_loss(
    student_logits: Tensor,
    teacher_values: Tensor,
    teacher_indices: Tensor,
    target: Tensor | None = None,
    *,
    temperature: float = 1.0,
    alpha: float = 0.5,
    teacher_is: TeacherValues = "log_probs",
    tail: Tail = "bucket",
    dim: int = -1,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    num_items: int | Tensor | None = None,
    temperature_squared: bool = True,
    inplace: bool = False,
) -> Tensor:
    r"""Compute the distillation loss of a teacher of which K classes of each row are stored.

    For a row, I is the set of its stored classes (K or fewer), :math:`p_c` is the teacher's
    probability of class c in I, and :math:`r = \max(0, 1 - \sum_I p_c)` is that of all other
    classes together, the bucket. :math:`q = \mathrm{softmax}(s / T)` is the student's probability,
    and :math:`\rho` is its sum over the other classes. The loss of a row is

    .. math::
        \ell = \alpha \, T^2 \, D + (1 - \alpha) \, \mathrm{CE}(\mathrm{softmax}(s), y)

    in nats, and :math:`\ell = T^2 \, D` without a target. D is one of

    .. math::
        \texttt{bucket}: \; & \sum_I p_c \log (p_c / q_c) + r \log (r / \rho) \\
        \texttt{truncate}: \; & \sum_I p_c \log (p_c / q_c) \\
        \texttt{renormalize\_teacher}: \; & \sum_I \hat p_c \log (\hat p_c / q_c),
                         \quad \hat p = p / \textstyle\sum_I p \\
        \texttt{renormalize}: \; & \sum_I \hat p_c \log (\hat p_c / \hat q_c),
                         \quad \hat q = q / \textstyle\sum_I q

    "bucket" is the KL divergence over K + 1 classes, the K classes and the bucket. It is at most
    the KL divergence over all classes, and equal to it if K = C. It is smallest if the student
    gives the K classes and the bucket the probabilities of the teacher. "renormalize_teacher" sets
    the probability of all other classes to 0. This is a poor approximation for small K or a high
    temperature. "renormalize" ignores the other classes. "truncate" can be negative, and lowers the
    other classes by less than "renormalize_teacher".

    The student's sum over the other classes leaves out the K classes and is not a difference from
    1, so the loss is finite for logits thousands apart. Student classes at -inf are masked. If the
    teacher gives a masked class a probability above 0, the loss is +inf. If all other classes are
    masked, the bucket is empty. A row whose entries are all -inf gives a soft loss of 0. NaN gives
    NaN.

    Arithmetic is float32 or better for every dtype of the logits. The gradient is computed together
    with the loss, in one pass over the student's logits. (CUDA kernels read them twice, the second
    time mostly from the cache.) Double backward (create_graph) uses the PyTorch reference.

    Args:
        student_logits: (..., C, ...) with the classes in `dim`; float32, bfloat16, float16
            (kernels), or float64 (reference). The only argument that gets a gradient.
        teacher_values: (..., K, ...), the student's shape with K classes in `dim`; its dtype may
            differ. They are log-probabilities at the temperature of the loss, as
            `topk_from_logits` returns, or logits. An entry of -inf stores no class: it fills up
            rows that have fewer than K.
        teacher_indices: the class of each value: the shape of `teacher_values`, int64, int32,
            int16, int8 or uint8. Any order is allowed, but no class may occur twice in a row. int64
            is not copied. Probabilities with a sum above 1 are not checked: they give the value of
            the formula, and float16 gradients may overflow.
        target: int64 class indices in [0, C), the logits' shape without `dim`. Rows whose target is
            `ignore_index` give loss 0 and gradient 0 in both terms, whatever they hold.
        temperature: T, in [1e-6, 1e6]. It does not scale log-probabilities, which must have this
            temperature already.
        alpha: weight of the distillation term, in [0, 1]. The weight of the hard term is 1 - alpha.
            Has no effect without a target.
        teacher_is: "log_probs" or "logits". K logits do not determine the probability of the
            bucket. So they allow only the two tails that renormalize, with p = softmax of the K
            logits over T.
        tail: "bucket", "renormalize", "renormalize_teacher" or "truncate", as above.
        dim: the class dimension: -1 for (N, C) and (B, T, V), 1 for (N, C, H, W). Maps with the
            classes in dimension 1 are copied to rows first.
        ignore_index: the target value of rows that do not count.
        label_smoothing: in [0, 1], of the hard term, as in torch.nn.functional.cross_entropy.
        sample_weight: non-negative weight of each row, the logits' shape without `dim`, any
            floating dtype; values are not checked. Rows of weight 0 do not count. Gets no gradient.
        reduction: "none" (the logits' shape without `dim`), "sum", "mean" (over the rows that
            count, by weight), or "batchmean" (sum / size of the first dimension that is not `dim`).
        num_items: replaces the denominator of "mean" and "batchmean", as in `fastkd.kd_loss`.
        temperature_squared: whether T^2 multiplies the divergence.
        inplace: whether the gradient may be written over the student's logits, as in
            `fastkd.kd_loss`.

    Returns:
        The loss: float32, or float64 if the logits or the values are float64. If no row counts, the
        loss and its gradient are 0.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes, devices or values that do not fit. On the CPU also a class that occurs
            twice in a row, and a log-probability above 0.01, more than rounding to bfloat16 leaves.
        IndexError: an index outside [0, C), or a target outside [0, C) that is not `ignore_index`,
            on the CPU. On CUDA, an exception would force the CPU to wait for the GPU: the loss and
            the gradient of the row are NaN, also for entries that raise ValueError on the CPU.
            The entries are not checked in tensor subclasses, in transforms, or in float64 under
            torch.compile. A wrong entry then raises an error of PyTorch's own or gives a wrong
            loss.
        RuntimeError: CUDA refused a kernel or has no room for it, or FASTKD_REQUIRE_NATIVE=1 and
            there is no kernel. A kernel needs one bit of shared memory per class and 4 bytes per
            entry of a row. The 64 KiB of sm_75 are enough for about 7,700 entries at 262,144
            classes.

    References:
        Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, arXiv:1503.02531.
        The effects of truncation and renormalization: Anshumann et al.: Sparse Logit Sampling,
        arXiv:2503.16870.

    Example:
        >>> import torch, fastkd
        >>> student = torch.tensor([[2.0, 0.0, -1.0, 0.5]], requires_grad=True)
        >>> teacher = torch.tensor([[1.0, 1.0, -2.0, 0.0]])
        >>> values, indices = fastkd.topk_from_logits(teacher, 2)
        >>> loss = fastkd.topk_kd_loss(student, values, indices)
        >>> loss.backward()
        >>> round(loss.item(), 4)
        0.3603
    """
    return _call(
        KDLossInputs(
            student_logits, teacher_values, target, sample_weight, num_items, teacher_indices
        ),
        options_of(
            TopKKDLossOptions,
            temperature,
            alpha,
            teacher_is,
            tail,
            dim,
            ignore_index,
            label_smoothing,
            reduction,
            temperature_squared,
            inplace,
        ),
    )


class TopKKDLoss(LossModule):
    """Module form of `fastkd.topk_kd_loss`: it stores the options that are not tensors."""

    def __init__(
        self,
        *,
        temperature: float = 1.0,
        alpha: float = 0.5,
        teacher_is: TeacherValues = "log_probs",
        tail: Tail = "bucket",
        dim: int = -1,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        reduction: Reduction = "mean",
        temperature_squared: bool = True,
        inplace: bool = False,
    ) -> None:
        """Store the options; see `fastkd.topk_kd_loss`."""
        super().__init__(
            TopKKDLossOptions(
                temperature,
                alpha,
                teacher_is,
                tail,
                dim,
                ignore_index,
                label_smoothing,
                reduction,
                temperature_squared,
                inplace,
            )
        )

    def forward(
        self,
        student_logits: Tensor,
        teacher_values: Tensor,
        teacher_indices: Tensor,
        target: Tensor | None = None,
        *,
        sample_weight: Tensor | None = None,
        num_items: int | Tensor | None = None,
    ) -> Tensor:
        """Compute the loss; see `fastkd.topk_kd_loss`."""
        inputs = KDLossInputs(
            student_logits, teacher_values, target, sample_weight, num_items, teacher_indices
        )
        return _call(inputs, self.options)


def _call(inputs: KDLossInputs, options: TopKKDLossOptions) -> Tensor:
    check_topk_kd_loss(inputs, options)
    return call_on_rows(PATHS, evaluate, inputs, options)
