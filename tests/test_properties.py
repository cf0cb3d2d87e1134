# SPDX-License-Identifier: Apache-2.0
"""Properties over random input, and a fuzz of the public function against the reference."""

import math
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerance import relative_error
from torch import Tensor

import fastkd

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SETTINGS = settings(max_examples=150, deadline=None, derandomize=True)


@st.composite
def logits(draw: st.DrawFn) -> tuple[Tensor, Tensor, int]:
    """A student and a teacher of one shape, any dtype and strides, and the class dimension."""
    rank = draw(st.integers(1, 4))
    shape = [draw(st.integers(1, 9)) for _ in range(rank)]
    dim = draw(st.integers(0, rank - 1))
    shape[dim] = draw(st.sampled_from([1, 2, 7, 16, 19, 33, 1030]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def tensor() -> Tensor:
        steps = [draw(st.integers(1, 2)) for _ in shape]
        sizes = [
            size * step + draw(st.integers(0, 1)) for size, step in zip(shape, steps, strict=True)
        ]
        order = draw(st.permutations(range(rank)))
        spread = draw(st.sampled_from([0.1, 3.0, 30.0]))
        stored = spread * torch.randn([sizes[i] for i in order], generator=generator)
        base = stored.to(draw(st.sampled_from(DTYPES)))
        back = [order.index(i) for i in range(rank)]
        window = tuple(
            slice(size - n * step, None, step) if draw(st.booleans()) else slice(0, n * step, step)
            for size, n, step in zip(sizes, shape, steps, strict=True)
        )
        return base.permute(back)[window]

    student, teacher = tensor(), tensor()
    assert list(student.shape) == shape
    return student, teacher, draw(st.sampled_from([dim, dim - rank]))


@st.composite
def options(draw: st.DrawFn) -> dict[str, Any]:
    """Any combination of options."""
    chosen: dict[str, Any] = {
        "temperature": draw(st.sampled_from([1.0, 2.0, 4.0, 0.7, 11.0])),
        "alpha": draw(st.sampled_from([0.0, 0.3, 1.0])),
        "label_smoothing": draw(st.sampled_from([0.0, 0.1, 1.0])),
        "reduction": draw(st.sampled_from(["none", "sum", "mean", "batchmean"])),
        "temperature_squared": draw(st.booleans()),
        "ignore_index": draw(st.sampled_from([-100, 0])),
        "divergence": draw(st.sampled_from(["forward_kl", "reverse_kl", "js", "tv"])),
        "beta": draw(st.sampled_from([0.0, 1e-3, 0.5, 0.9])),
    }
    if chosen["reduction"] in ("mean", "batchmean") and draw(st.booleans()):
        chosen["num_items"] = draw(st.sampled_from([0, 1, 17, torch.tensor(5)]))
    return chosen


@SETTINGS
@given(pair=logits(), chosen=options(), hard=st.booleans(), weighted=st.booleans(), data=st.data())
def test_fuzz_against_the_reference(
    pair: tuple[Tensor, Tensor, int],
    chosen: dict[str, Any],
    hard: bool,
    weighted: bool,
    data: st.DataObject,
) -> None:
    student, teacher, dim = pair
    rows = list(student.shape)
    classes = rows.pop(dim)
    target = weight = None
    if hard:
        target = torch.randint(0, classes, rows)
        target[torch.rand(rows) < 0.2] = chosen["ignore_index"]
    if weighted:
        weight = torch.rand(rows, dtype=data.draw(st.sampled_from([*DTYPES, torch.float64])))
        weight[torch.rand(rows) < 0.2] = 0
    results = []
    for function, dtype in ((fastkd.kd_loss, None), (fastkd.reference.kd_loss, torch.float64)):
        leaf = student.detach().to(dtype or student.dtype).requires_grad_()
        loss = function(
            leaf,
            teacher.to(dtype or teacher.dtype),
            target,
            sample_weight=weight,
            dim=dim,
            **chosen,
        )
        loss.sum().backward()
        assert leaf.grad is not None
        results.append((loss, leaf.grad))
    (loss, grad), (true_loss, true_grad) = results
    # Where every class is near certain the true gradient is far below the terms it is made of.
    least = 1e-3 if chosen["divergence"] == "forward_kl" else 1e-2
    scale = float(true_grad.abs().max().clamp_min(least))
    rounding = {torch.float32: 3e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}[student.dtype]
    assert relative_error(loss, true_loss) < 3e-5 or (loss - true_loss).abs().max() < 1e-5
    assert (grad - true_grad).abs().max() <= rounding * scale


@SETTINGS
@given(
    pair=logits(),
    temperature=st.sampled_from([1.0, 2.0, 4.0, 5.0]),
    divergence=st.sampled_from(["forward_kl", "reverse_kl", "js", "tv"]),
)
def test_the_divergence_is_never_negative(
    pair: tuple[Tensor, Tensor, int], temperature: float, divergence: str
) -> None:
    student, teacher, dim = pair
    near = teacher.float() + 1e-3 * torch.randn(teacher.shape)
    for logits_of_student in (student, near):
        loss = fastkd.kd_loss(
            logits_of_student,
            teacher,
            dim=dim,
            temperature=temperature,
            divergence=divergence,
            reduction="none",
        )
        assert (loss >= 0).all()


@SETTINGS
@given(pair=logits(), divergence=st.sampled_from(["js", "tv"]))
def test_what_is_symmetric_may_be_swapped(
    pair: tuple[Tensor, Tensor, int], divergence: str
) -> None:
    student, teacher, dim = pair
    losses = [
        fastkd.kd_loss(a, b, dim=dim, divergence=divergence, reduction="none")
        for a, b in ((student, teacher), (teacher, student))
    ]
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-6)
    bound = math.log(2) if divergence == "js" else 1.0
    assert (losses[0] <= bound * (1 + 1e-6)).all()


@SETTINGS
@given(pair=logits(), shift=st.floats(-100, 100))
def test_a_constant_added_to_a_row_changes_nothing(
    pair: tuple[Tensor, Tensor, int], shift: float
) -> None:
    student, teacher, dim = pair
    student, teacher = student.float(), teacher.float()
    loss = fastkd.kd_loss(student, teacher, dim=dim, temperature=2.0, reduction="sum")
    moved = fastkd.kd_loss(
        student + shift, teacher - shift, dim=dim, temperature=2.0, reduction="sum"
    )
    torch.testing.assert_close(moved, loss, rtol=1e-3, atol=1e-3)


@SETTINGS
@given(seed=st.integers(0, 2**31), classes=st.sampled_from([2, 10, 33, 1030]))
def test_the_gradient_of_a_row_sums_to_zero(seed: int, classes: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    student = (3 * torch.randn(8, classes, generator=generator)).requires_grad_()
    teacher = 3 * torch.randn(8, classes, generator=generator)
    target = torch.randint(0, classes, (8,), generator=generator)
    fastkd.kd_loss(student, teacher, target, temperature=4.0, reduction="sum").backward()
    assert student.grad is not None
    assert student.grad.sum(-1).abs().max() < 1e-5


@SETTINGS
@given(seed=st.integers(0, 2**31))
def test_high_temperature_is_logit_matching(seed: int) -> None:
    # Hinton et al. 2015, section 2.1: the gradient tends to (s - t) / C for zero-mean logits.
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, 4, 10, generator=generator)
    student = (student - student.mean(-1, True)).requires_grad_()
    teacher = teacher - teacher.mean(-1, True)
    fastkd.kd_loss(student, teacher, temperature=200.0, reduction="sum").backward()
    assert student.grad is not None
    matching = (student.detach() - teacher) / 10
    assert (student.grad - matching).abs().max() < 0.02 * matching.abs().max()
