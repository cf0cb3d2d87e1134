# SPDX-License-Identifier: Apache-2.0
"""Knowledge distillation with soft targets at a temperature."""

from dataclasses import replace

from torch import Tensor

from fastkd import _front
from fastkd._options import Divergence, KDLossInputs, KDLossOptions, Reduction
from fastkd._validation import check_kd_loss
from fastkd.losses._module import LossModule
from fastkd.losses._path import call_on_rows, options_of
from fastkd.ops.kd_loss import PATHS
from fastkd.reference.kd_loss import evaluate


def kd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor | None = None,
    *,
    temperature: float = 1.0,
    alpha: float = 0.5,
    divergence: Divergence = "forward_kl",
    beta: float = 0.5,
    dim: int = -1,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
    num_items: int | Tensor | None = None,
    temperature_squared: bool = True,
    common_vocab: bool = False,
    standardize_logits: bool = False,
    inplace: bool = False,
) -> Tensor:
    r"""Compute the distillation loss of a teacher's soft targets, and of labels if given.

    With :math:`p = \mathrm{softmax}(t / T)` of the teacher and
    :math:`q = \mathrm{softmax}(s / T)` of the student, the loss of a row is

    .. math::
        \ell = \alpha \, T^2 \, D(p, q) + (1 - \alpha) \, \mathrm{CE}(\mathrm{softmax}(s), y)

    in nats, and :math:`\ell = T^2 \, D(p, q)` without a target. The cross-entropy is taken at
    temperature 1. The divergence is one of

    .. math::
        \texttt{forward\_kl}: \; & \mathrm{KL}(p \,\|\, q) = \sum_c p_c \log (p_c / q_c) \\
        \texttt{reverse\_kl}: \; & \mathrm{KL}(q \,\|\, p) \\
        \texttt{js}: \; & \beta \, \mathrm{KL}(p \,\|\, m) + (1 - \beta) \, \mathrm{KL}(q \,\|\, m),
                         \quad m = \beta p + (1 - \beta) q \\
        \texttt{tv}: \; & \tfrac{1}{2} \sum_c |p_c - q_c|

    A class that both sides mask, with logits of -inf, adds 0. Forward KL is +inf if only the
    student masks a class. Reverse KL is +inf if only the teacher masks it, and its gradient is then
    NaN or infinite. "js" and "tv" are finite. A row that is all -inf, or holds NaN or +inf, gives
    NaN. Equal logits give a divergence and a gradient of exactly 0 in the kernels. (The exception
    is "js" with subnormal probabilities: their gradient is about T * 1e-37.)

    Arithmetic is float32 or better for every dtype of the logits. The gradient is computed together
    with the loss. Double backward (create_graph) uses the PyTorch reference. The student's logits
    must not change in place before backward, as for every operation that keeps its input.

    Args:
        student_logits: (..., C, ...) with the classes in `dim`; float32, bfloat16, float16
            (kernels), or float64 (reference). The only argument that gets a gradient.
        teacher_logits: the same shape; its dtype may differ. Need not be detached; to train the
            teacher too, see `fastkd.reference`.
        target: int64 class indices in [0, C), the logits' shape without `dim`. Rows whose target is
            `ignore_index` give loss 0 and gradient 0 in both terms, whatever their logits hold.
        temperature: T, in [1e-6, 1e6].
        alpha: weight of the distillation term, in [0, 1]. The weight of the hard term is 1 - alpha.
            (torchdistill's alpha is the weight of the hard term.) Has no effect without a target.
        divergence: "forward_kl", "reverse_kl", "js" (generalised Jensen-Shannon) or "tv" (total
            variation).
        beta: weight of the teacher in the mixture of "js": 0, 1, or in [1e-6, 1 - 1e-6]. 0 means
            forward KL and 1 means reverse KL, as in GKD. They are not the limits of the formula: it
            tends to 0 at both ends, as beta times forward KL and as 1 - beta times reverse KL. The
            error of "js" in float32 is about 1e-8 nats, so a smaller "js" (beta near an end, or
            student and teacher nearly equal) is mostly error. beta has no effect on the other
            divergences.
        dim: the class dimension: -1 for (N, C) and (B, T, V), 1 for (N, C, H, W).
        ignore_index: the target value of rows that do not count.
        label_smoothing: in [0, 1], of the hard term, as in torch.nn.functional.cross_entropy.
        sample_weight: non-negative weight of each row, the logits' shape without `dim`, any
            floating dtype; values are not checked. Rows of weight 0 do not count. Gets no gradient.
        reduction: "none" (the logits' shape without `dim`), "sum", "mean" (over the rows that
            count, by weight), or "batchmean" (sum / size of the first dimension that is not `dim`).
        num_items: replaces the denominator of "mean" and "batchmean". Gradient accumulation and
            data parallel training need one count for all parts. 0 gives loss 0. A count on the GPU
            stays there; a negative one gives NaN.
        temperature_squared: whether T^2 multiplies the divergence. This keeps the gradient's scale
            independent of T.
        common_vocab: whether the class counts may differ, as in padded vocabularies. The soft term
            then takes the first min(C_s, C_t) classes, renormalised. The hard term takes all
            classes of the student.
        standardize_logits: whether the divergence compares the z-scores of the rows,
            z = (x - mean) / (deviation + 1e-7). Mean and sample deviation are taken over the
            classes of a row, for each side on its own, so the scale and the shift of the logits do
            not change the divergence. The hard term takes the logits as they are. Classes at -inf,
            or at float32's lowest number, stay masked and do not count. A row of equal logits has
            z = 0 and gets no gradient. PyTorch operations around the kernels compute the z-scores,
            for a part of the rows at a time. This is slower than without, and needs little more
            memory. The gradient of bfloat16 and float16 logits is float32 until it is scaled.
        inplace: whether the gradient may be written over the student's logits. This saves memory of
            their size and loses their values: compute other losses and metrics before, because
            later reads of the logits read the gradient. Autograd raises its usual error in backward
            of an earlier operation that kept the logits, and with create_graph=True. If the logits
            are a view, ask for the gradient of the tensor that they are a view of. The logits must
            be an output of the model, not a leaf. The gradient that backward passes on is in their
            memory. The logits are overwritten only if a kernel computes their gradient in an eager
            call. They keep their values under torch.compile, in transforms, in float64, if no
            gradient is needed, and in bfloat16 or float16 with standardize_logits.
            backward(retain_graph=True) takes memory for the gradient all the same, and so do
            strides that the kernels do not read (every second class, for example).

    Returns:
        The loss: float32, or float64 if one of the logits is float64. If no row counts, the loss
        and its gradient are 0.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes, devices or values that do not fit.
        IndexError: a target outside [0, C) that is not `ignore_index`, on the CPU. On CUDA, the
            loss and the gradient of its row are NaN, because an exception would force the CPU to
            wait for the GPU.
        RuntimeError: CUDA refused a kernel, or FASTKD_REQUIRE_NATIVE=1 and there is no kernel.

    References:
        Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, arXiv:1503.02531,
        section 2. Reverse KL: Gu, Dong, Wei, Huang: MiniLLM, arXiv:2306.08543. "js": Agarwal et
        al.: On-Policy Distillation of Language Models, arXiv:2306.13649, section 2. "tv": Wen, Li,
        Du, Mou: f-Divergence Minimization for Sequence-Level Knowledge Distillation,
        arXiv:2307.15190. z-scores: Sun, Ren, Li, Wang, Cao: Logit Standardization in Knowledge
        Distillation, arXiv:2403.01427.

    Example:
        >>> import torch, fastkd
        >>> student = torch.tensor([[2.0, 0.0, -1.0]], requires_grad=True)
        >>> teacher = torch.tensor([[1.0, 1.0, -2.0]])
        >>> loss = fastkd.kd_loss(student, teacher, torch.tensor([0]), temperature=4.0, alpha=0.9)
        >>> loss.backward()
        >>> round(loss.item(), 4)
        0.4331
    """
    return _call(
        KDLossInputs(student_logits, teacher_logits, target, sample_weight, num_items),
        options_of(
            KDLossOptions,
            temperature,
            alpha,
            divergence,
            beta,
            dim,
            ignore_index,
            label_smoothing,
            reduction,
            temperature_squared,
            common_vocab,
            standardize_logits,
            inplace,
        ),
    )


class KDLoss(LossModule):
    """Module form of `fastkd.kd_loss`: it stores the options that are not tensors."""

    def __init__(
        self,
        *,
        temperature: float = 1.0,
        alpha: float = 0.5,
        divergence: Divergence = "forward_kl",
        beta: float = 0.5,
        dim: int = -1,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        reduction: Reduction = "mean",
        temperature_squared: bool = True,
        common_vocab: bool = False,
        standardize_logits: bool = False,
        inplace: bool = False,
    ) -> None:
        """Store the options; see `fastkd.kd_loss`."""
        super().__init__(
            KDLossOptions(
                temperature,
                alpha,
                divergence,
                beta,
                dim,
                ignore_index,
                label_smoothing,
                reduction,
                temperature_squared,
                common_vocab,
                standardize_logits,
                inplace,
            )
        )

    def forward(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        target: Tensor | None = None,
        *,
        sample_weight: Tensor | None = None,
        num_items: int | Tensor | None = None,
    ) -> Tensor:
        """Compute the loss; see `fastkd.kd_loss`."""
        inputs = KDLossInputs(student_logits, teacher_logits, target, sample_weight, num_items)
        return _call(inputs, self.options)


def _call(inputs: KDLossInputs, options: KDLossOptions) -> Tensor:
    if options.standardize_logits and inputs.target is not None and options.alpha == 0:
        options = replace(options, standardize_logits=False)  # there is no soft term
    plain = not options.standardize_logits and not options.inplace
    if plain and _front.is_ordinary_call(inputs, options.dim):
        return PATHS.eager(inputs, options)
    check_kd_loss(inputs, options)
    if options.standardize_logits and options.inplace and inputs.student.dtype.itemsize < 4:
        options = replace(options, inplace=False)  # the gradient is wider than the logits
    return call_on_rows(PATHS, evaluate, inputs, options)
