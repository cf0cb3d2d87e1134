# SPDX-License-Identifier: Apache-2.0
"""linear_kd_loss: the eager autograd function and the registered op."""

import math
from typing import Any

import torch
from torch import Tensor

from fastkd import _front
from fastkd._linear_options import FUNCTION, LinearKDLossInputs, LinearKDLossOptions
from fastkd._linear_validation import check_linear_kd_loss
from fastkd._options import KDLossInputs
from fastkd._topk_validation import check_topk
from fastkd._validation import check_target_range
from fastkd.ops._graph import check_unchanged, graph_is_kept, versions_of
from fastkd.ops._linear_chunks import Dtypes, product_dtype, product_dtypes, run
from fastkd.ops._linear_gradients import NONE_WANTED, Gradients, Wanted
from fastkd.reference._precision import without_autocast
from fastkd.reference.linear_kd_loss import evaluate


class LinearKDLossFunction(torch.autograd.Function):
    """The eager path: gradients in forward, their factor in backward."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        rest: tuple[Any, ...],
        options: LinearKDLossOptions,
    ) -> Tensor:
        """Compute the loss, and the gradients that are wanted."""
        inputs = LinearKDLossInputs(hidden, weight, bias, *rest)
        ctx.dtypes = product_dtypes(inputs)
        wanted = NONE_WANTED if options.reduction == "none" else ctx.needs_input_grad[:3]
        with without_autocast(hidden.device):
            result = run(inputs, options, ctx.dtypes, wanted)
        ctx.save_for_backward(hidden, weight, bias, *result.grads, result.scale)
        # For double backward, and where rows are not reduced. Not saved: they may come from
        # inference_mode, or be written again.
        ctx.constants = rest, versions_of(_tensors(rest))
        ctx.options = options
        return result.loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the gradients by grad_loss."""
        *student, grad_hidden, grad_weight, grad_bias, scale = ctx.saved_tensors
        rest, versions = ctx.constants
        kept = graph_is_kept()
        if not kept:
            ctx.constants = None  # lets go of the teacher, as autograd does of saved tensors
        inputs = LinearKDLossInputs(*student, *rest)
        grads = Gradients(grad_hidden, grad_weight, grad_bias)
        by_rows = ctx.options.reduction == "none"
        differentiable = torch.is_grad_enabled()
        if differentiable or by_rows:
            names = "one of the teacher's tensors, target or sample_weight"
            reader = "backward(create_graph=True)" if differentiable else "backward"
            check_unchanged(FUNCTION, names, _tensors(rest), versions, reader)
        wanted = ctx.needs_input_grad[:3]
        # vmap, of is_grads_batched, must see every operation.
        batched = _front.in_transform() or not _front.is_plain(grad_loss)
        if differentiable or (by_rows and batched):
            found = _of_reference(inputs, ctx.options, ctx.dtypes, wanted, grad_loss)
            return *found, None, None
        if by_rows:
            with without_autocast(grad_loss.device):
                row_scale = grad_loss.reshape(-1)
                grads = run(inputs, ctx.options, ctx.dtypes, wanted, row_scale).grads
            return *_finished(grads, inputs, None, kept), None, None
        return *_finished(grads, inputs, grad_loss * scale, kept or batched), None, None


def _tensors(rest: tuple[Any, ...]) -> list[Tensor]:
    return [value for value in rest if isinstance(value, Tensor)]


def _finished(
    grads: Gradients, inputs: LinearKDLossInputs, factor: Tensor | None, kept: bool
) -> list[Tensor | None]:
    """Gradients of the loss, in the arguments' dtypes and shapes."""
    finished: list[Tensor | None] = []
    for grad, of in zip(grads, inputs.of_student(), strict=True):
        if grad is None or of is None:
            finished.append(None)
            continue
        if factor is not None:
            # A graph that is not kept frees `grad` after this call: then it may be overwritten.
            grad = grad * factor if kept else grad.mul_(factor)  # noqa: PLW2901
        finished.append(grad.to(of.dtype).view(of.shape))
    return finished


def _of_reference(
    inputs: LinearKDLossInputs,
    options: LinearKDLossOptions,
    dtypes: Dtypes,
    wanted: Wanted,
    grad_loss: Tensor,
) -> list[Tensor | None]:
    """The gradients through plain PyTorch, differentiable themselves where asked."""
    constants: list[Any] = [x.detach() if isinstance(x, Tensor) else x for x in inputs[6:]]
    of: Any = [tensor for tensor, want in zip(inputs.of_student(), wanted, strict=True) if want]
    with without_autocast(inputs.student_hidden.device):  # the products of backward, too
        with torch.enable_grad():
            student: list[Any] = [
                None if x is None else x.to(dtypes[0]) for x in inputs.of_student()
            ]
            teacher = [None if x is None else x.detach().to(dtypes[1]) for x in inputs[3:6]]
            loss = evaluate(LinearKDLossInputs(*student, *teacher, *constants), options)
        grad_loss, differentiable = grad_loss.to(loss.dtype), torch.is_grad_enabled()
        grads = torch.autograd.grad(loss, of, grad_loss, create_graph=differentiable)
    left = iter(grads)
    return [next(left) if want else None for want in wanted]


_apply: Any = LinearKDLossFunction.apply


def eager(inputs: LinearKDLossInputs, options: LinearKDLossOptions) -> Tensor:
    """The loss of plain tensors outside of transforms and traces."""
    if isinstance(inputs.num_items, Tensor):  # read now: it may change before backward
        inputs = inputs._replace(num_items=inputs.num_items.detach().clone())
    wanted = any(tensor is not None and tensor.requires_grad for tensor in inputs.of_student())
    if wanted and torch.is_grad_enabled():
        loss: Tensor = _apply(*inputs.of_student(), tuple(inputs[3:]), options)
        return loss
    with torch.no_grad(), without_autocast(inputs.student_hidden.device):
        return run(inputs, options, product_dtypes(inputs), NONE_WANTED).loss


# ---- torch.compile and torch.export ----

_SCHEMA = (
    "(Tensor student_hidden, Tensor student_weight, Tensor? student_bias, Tensor? teacher_hidden, "
    "Tensor? teacher_weight, Tensor? teacher_bias, Tensor? teacher_logits, "
    "Tensor? teacher_values, Tensor? teacher_indices, Tensor? target, Tensor? sample_weight, "
    "Tensor? num_items, float? logit_softcap, int chunk_rows, float temperature, float alpha, "
    "str divergence, float beta, int ignore_index, float label_smoothing, str reduction, "
    "bool temperature_squared, bool common_vocab, bool standardize_logits, str teacher_is, "
    "str tail, bool[] wanted) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)
_CONSTANTS = _SCHEMA.partition("->")[0].count(",") + 1 - 3  # arguments that get no gradient
_AUTO = 0  # chunk_rows="auto"


def check_topk_values(inputs: LinearKDLossInputs, options: LinearKDLossOptions) -> None:
    """Check a top-k teacher's entries: kernels see chunks alone, and CUDA's look for themselves."""
    values, indices = inputs.teacher_values, inputs.teacher_indices
    if values is None or indices is None or not _front.is_plain(indices):
        return
    if values.is_cuda and torch.float64 not in (values.dtype, inputs.student_hidden.dtype):
        return
    rows = inputs.student_hidden, values, inputs.target, inputs.sample_weight, None, indices
    check_topk(KDLossInputs(*rows), options.topk, len(inputs.student_weight))


def op_serves(options: LinearKDLossOptions) -> bool:
    """Whether the op has what is asked for: gradients in forward, from a kernel."""
    return options.reduction != "none"


def _unpack(arguments: tuple[Any, ...]) -> tuple[LinearKDLossInputs, LinearKDLossOptions, Wanted]:
    *values, wanted = arguments
    softcap, chunk_rows, *rest = values[12:]
    options = LinearKDLossOptions(softcap, "auto" if chunk_rows == _AUTO else chunk_rows, *rest)
    if len(wanted) != len(NONE_WANTED):
        raise ValueError(
            f"fastkd::{FUNCTION}: wanted must say of hidden states, weight and bias whether they "
            f"get a gradient, got {wanted}"
        )
    return LinearKDLossInputs(*values[:12]), options, (wanted[0], wanted[1], wanted[2])


@torch.library.custom_op(
    f"fastkd::{FUNCTION}", mutates_args=(), device_types=("cpu", "cuda"), schema=_SCHEMA
)
def linear_kd_loss_op(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Loss, gradients of the sum of the row losses (empty if not wanted), and its factor."""
    inputs, options, wanted = _unpack(arguments)
    check_linear_kd_loss(inputs, options)  # an op may be called by anyone
    dtypes = product_dtypes(inputs)
    if not op_serves(options) or torch.float64 in dtypes:
        raise ValueError(
            f"fastkd::{FUNCTION} serves neither float64 nor reduction='none': "
            f"call fastkd.{FUNCTION}"
        )
    if inputs.target is not None and not inputs.target.is_cuda:
        classes = len(inputs.student_weight)  # here the row is known, in the kernel only the chunk
        check_target_range(FUNCTION, inputs.target, options.ignore_index, classes)
    check_topk_values(inputs, options)
    with without_autocast(inputs.student_hidden.device):
        loss, grads, scale = run(inputs, options, dtypes, wanted)
    hidden, weight, bias = (loss.new_empty(0) if grad is None else grad for grad in grads)
    return loss, hidden, weight, bias, scale


@linear_kd_loss_op.register_fake
def _(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    inputs, _, wanted = _unpack(arguments)
    hidden, weight, _bias = inputs.of_student()
    told = (inputs.teacher_hidden, inputs.teacher_logits, inputs.teacher_values)
    (teacher,) = (tensor for tensor in told if tensor is not None)
    wide = torch.promote_types(hidden.dtype, torch.float32)
    loss = hidden.new_empty((), dtype=torch.promote_types(wide, teacher.dtype))
    rows = math.prod(hidden.shape[:-1])
    return (
        loss,
        loss.new_empty(rows, hidden.shape[-1], dtype=wide) if wanted[0] else loss.new_empty(0),
        loss.new_empty(weight.shape, dtype=wide) if wanted[1] else loss.new_empty(0),
        loss.new_empty(len(weight), dtype=wide) if wanted[2] else loss.new_empty(0),
        loss.new_empty(()),
    )


def _save_for_op_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    fields, ctx.options, ctx.wanted = _unpack(inputs)
    _, *others = output
    ctx.mark_non_differentiable(*others)
    ctx.save_for_backward(*others, *fields)


def _op_backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    grad_hidden, grad_weight, grad_bias, scale, *fields = ctx.saved_tensors
    inputs = LinearKDLossInputs(*fields)
    wanted = ctx.needs_input_grad[:3]
    if torch.is_grad_enabled() or wanted != ctx.wanted:  # exported without gradients, then trained
        teacher = inputs.teacher_hidden  # both sides have the dtype of their products here
        dtypes = inputs.student_hidden.dtype, None if teacher is None else teacher.dtype
        grads = _of_reference(inputs, ctx.options, dtypes, wanted, grad_loss)
    else:
        kept = (grad_hidden, grad_weight, grad_bias)
        of = Gradients(*(g if want else None for g, want in zip(kept, wanted, strict=True)))
        grads = _finished(of, inputs, grad_loss * scale, kept=True)
    return *grads, *(None,) * _CONSTANTS


linear_kd_loss_op.register_autograd(_op_backward, setup_context=_save_for_op_backward)


def compiled(inputs: LinearKDLossInputs, options: LinearKDLossOptions) -> Tensor:
    """The path of torch.compile and torch.export: the registered op."""
    hidden = inputs.student_hidden
    student = [None if x is None else x.to(product_dtype(hidden)) for x in inputs.of_student()]
    teacher: tuple[Tensor | None, ...] = inputs[3:6]
    if inputs.teacher_hidden is not None:
        dtype = product_dtype(inputs.teacher_hidden)
        teacher = tuple(None if x is None else x.to(dtype) for x in teacher)
    num_items = inputs.num_items
    if num_items is not None:
        if isinstance(num_items, Tensor):
            num_items = num_items.to(hidden.device, torch.float64)
        else:  # torch.full keeps a symbol, as_tensor would compile anew for every value
            num_items = torch.full((), num_items, dtype=torch.float64, device=hidden.device)
    wanted = [
        x is not None and x.requires_grad and torch.is_grad_enabled() for x in inputs.of_student()
    ]
    loss: Tensor
    loss, *_ = linear_kd_loss_op(
        *student,
        *teacher,
        *inputs[6:11],
        num_items,
        options.logit_softcap,
        _AUTO if isinstance(options.chunk_rows, str) else int(options.chunk_rows),
        options.temperature,
        options.alpha,
        options.divergence,
        options.beta,
        int(options.ignore_index),
        options.label_smoothing,
        options.reduction,
        options.temperature_squared,
        options.common_vocab,
        options.standardize_logits,
        options.teacher_is,
        options.tail,
        wanted,
    )
    return loss
