# SPDX-License-Identifier: Apache-2.0
"""Soft targets of a teacher that is known by K classes a row."""

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
    r"""Distil a student from the K classes of each row that a teacher was cached by.

    With :math:`p_c` of the teacher for the classes c in the row's I (K of them, or fewer),
    :math:`r = \max(0, 1 - \sum_I p_c)` for all the others together, :math:`q = \mathrm{softmax}(s
    / T)` of the student and :math:`\rho` its sum over the others, the loss of a row is

    .. math::
        \ell = \alpha \, T^2 \, D + (1 - \alpha) \, \mathrm{CE}(\mathrm{softmax}(s), y)

    in nats, and :math:`\ell = T^2 \, D` without a target, where D is one of

    .. math::
        \texttt{bucket}: \; & \sum_I p_c \log (p_c / q_c) + r \log (r / \rho) \\
        \texttt{truncate}: \; & \sum_I p_c \log (p_c / q_c) \\
        \texttt{renormalize\_teacher}: \; & \sum_I \hat p_c \log (\hat p_c / q_c),
                         \quad \hat p = p / \textstyle\sum_I p \\
        \texttt{renormalize}: \; & \sum_I \hat p_c \log (\hat p_c / \hat q_c),
                         \quad \hat q = q / \textstyle\sum_I q

    "bucket" is the KL divergence of the K classes and of the bucket of all others: it is at most
    that of all classes, equal to it where K = C, and its least value is where the student says
    what the teacher said. "renormalize_teacher" teaches that the other classes have nothing, which
    is far from true for small K or a high temperature; "renormalize" says nothing about them;
    "truncate" may be negative, and pulls the others down by less than "renormalize_teacher".

    The other classes' sum is taken without the K, never by subtraction from 1, so the loss is
    finite for logits thousands apart. Student classes at -inf are masked: one that the teacher
    gives something makes the loss +inf, and where all others are masked the bucket holds nothing.
    A row whose entries are all -inf gives a soft loss of 0; NaN gives NaN.

    Arithmetic is float32 at least, whatever the logits' type. The gradient is computed together
    with the loss, in one pass over the student's logits (on CUDA they are read twice, the second
    time mostly from its cache); double backward (create_graph) runs through the PyTorch reference.

    Args:
        student_logits: (..., C, ...) with the classes in `dim`; float32, bfloat16, float16
            (kernels), or float64 (reference). The only argument that gets a gradient.
        teacher_values: (..., K, ...), the student's shape but for K in `dim`, its own dtype:
            log-probabilities at the loss's temperature, as `topk_from_logits` makes them, or
            logits. An entry of -inf names no class: it fills up rows that have fewer than K.
        teacher_indices: the shape of `teacher_values`, int64, int32, int16, int8 or uint8: which
            class each value is of, in any order, none twice in a row. int64 is not copied.
            Probabilities that sum to more than 1 by more than rounding are not looked for: they
            give what the formula gives, and float16 gradients may overflow.
        target: int64 class indices in [0, C), the logits' shape without `dim`. Rows whose target is
            `ignore_index` give loss 0 and gradient 0 in both terms, whatever they hold.
        temperature: T, in [1e-6, 1e6]. Log-probabilities are not scaled by it: they have to be of
            this temperature already.
        alpha: weight of the distillation term, in [0, 1]; the hard term weighs 1 - alpha. Has no
            effect without a target.
        teacher_is: "log_probs" or "logits". K logits do not tell what all other classes have, so
            they allow the two tails that renormalize, over p = softmax of the K logits over T.
        tail: "bucket", "renormalize", "renormalize_teacher" or "truncate", as above.
        dim: the class dimension: -1 for (N, C) and (B, T, V), 1 for (N, C, H, W), which is copied
            to rows first.
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
        The loss: float32, or float64 if the logits or the values are. Where no row counts it is 0
        with a gradient of 0.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes, devices or values that do not fit; on the CPU also a class that a row
            names twice, and a log-probability above 0.01 (what rounding to bfloat16 leaves).
        IndexError: an index outside [0, C), or a target outside it that is not `ignore_index`, on
            the CPU. On CUDA nothing waits for the device to look: such a row's loss and gradient
            are NaN, as those of what raises ValueError on the CPU. Entries of tensor subclasses,
            in transforms, and of float64 under torch.compile are not looked at either: torch's
            own error, or a number that means nothing.
        RuntimeError: CUDA refused a kernel, or has no room for it (its shared memory holds a bit a
            class and 4 bytes an entry of a row: the 64 KiB of sm_75 leave some 7,700 entries at
            262,144 classes), or FASTKD_REQUIRE_NATIVE=1 and there is none.

    References:
        Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, arXiv:1503.02531.
        What truncation and renormalization do to cached teachers: Anshumann et al.: Sparse Logit
        Sampling, arXiv:2503.16870.

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
