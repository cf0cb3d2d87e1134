# SPDX-License-Identifier: Apache-2.0
"""Loss and gradient of every case against float64, on every backend, shape and dtype."""

import pytest
import torch
from cases import (
    ATTENTION,
    BATCH_CASES,
    CASES,
    LOGIT_CASES,
    PLAIN_BATCH_CASES,
    PLAIN_PAIR_CASES,
    Geometry,
    Inputs,
    LossCase,
)
from linear_cases import LINEAR_CASES
from tolerance import GRAD_FLOOR, HALF_UNIT, LOSS_FLOOR, relative_error
from torch import Tensor

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16


# Powers of two scale a gradient of any dtype exactly, so that the kernel's own rounding shows.
POWERS = (0.5, 2.0, 1.0, 4.0, 0.25)
OTHERS = (0.4, 1.9, 0.7)


def value_and_grad(
    case: LossCase, inputs: Inputs, reference: bool, factors: tuple[float, ...] = POWERS
) -> tuple[Tensor, ...]:
    """The loss, and the gradients of what is learned under a grad_loss that differs by row."""
    inputs = inputs.with_gradient()  # strides stay
    loss = case.run_reference(inputs) if reference else case.run(inputs)
    repeats = -(-max(loss.numel(), 1) // len(factors))
    grad_loss = torch.tensor(factors * repeats)[: loss.numel()].reshape(loss.shape)
    loss.backward(grad_loss.to(loss))
    grads = [leaf.grad for leaf in inputs.leaves]
    assert all(grad is not None for grad in grads)
    return loss.detach(), *grads


# How an error of rounding falls is luck. In reverse KL of 7 x 100 logits plain PyTorch errs by
# 1.7e-7 of the largest gradient, and by 1.1e-6 and 1.8e-6 if all logits are 1e-6 larger or smaller.
NUDGES = (1.0, 1 + 1e-6, 1 - 1e-6)


def assert_matches_truth(
    case: LossCase,
    inputs: Inputs,
    factors: tuple[float, ...] = POWERS,
    grad_floor: float | None = None,
) -> None:
    """Loss and gradients against float64: a kernel may err twice as much as plain PyTorch."""
    if grad_floor is None:
        twice = case.sums_products and inputs.tensors[0].dtype == BF16
        grad_floor = GRAD_FLOOR + (HALF_UNIT[BF16] if twice else 0)
    loss, *grads = value_and_grad(case, inputs, False, factors)
    truth = value_and_grad(case, inputs.to(torch.float64), True, factors)
    assert loss.dtype == F32
    assert [grad.dtype for grad in grads] == [leaf.dtype for leaf in inputs.leaves]
    assert [value.shape for value in (loss, *grads)] == [true.shape for true in truth]
    errors = [relative_error(*of) for of in zip((loss, *grads), truth, strict=True)]
    floors = [LOSS_FLOOR, *(grad_floor for _ in grads)]
    plain_errors = [0.0 for _ in errors]
    for nudge in NUDGES:  # the first is enough, as a rule
        plain_errors = [*map(max, plain_errors, errors_of_plain(case, inputs, nudge, factors))]
        allowed = [2 * plain + floor for plain, floor in zip(plain_errors, floors, strict=True)]
        if all(error <= most for error, most in zip(errors, allowed, strict=True)):
            return
    raise AssertionError(f"errors of the loss and its gradients {errors} are above {allowed}")


def errors_of_plain(
    case: LossCase, inputs: Inputs, nudge: float, factors: tuple[float, ...]
) -> list[float]:
    """What plain PyTorch errs by for inputs times a number near 1."""
    nudged = inputs.map(lambda tensor: tensor * nudge if tensor.is_floating_point() else tensor)
    plain = value_and_grad(case, nudged, True, factors)
    truth = value_and_grad(case, nudged.to(torch.float64), True, factors)
    return [relative_error(*pair) for pair in zip(plain, truth, strict=True)]


# Every dtype of the student (a kernel of kd_loss reads each in its own way); the relational kernels
# read float32, to which halves are converted before: their dtypes are among the mixtures.
RUNS = [
    pytest.param(case, geometry, dtype, id=f"{case}-{geometry}-{dtype}")
    for cases, dtypes in (
        ((*LOGIT_CASES, *LINEAR_CASES), (F32, BF16, F16)),
        (BATCH_CASES, (F32,)),
    )
    for case in cases
    for geometry in case.family.geometries
    for dtype in dtypes
]


@pytest.mark.parametrize(("case", "geometry", "dtype"), RUNS)
def test_loss_and_gradient_match_float64(
    backend: str,
    kernel_calls: list[str],
    case: LossCase,
    geometry: Geometry,
    dtype: torch.dtype,
) -> None:
    assert_matches_truth(case, case.make_inputs(geometry, dtype))
    assert case.kernels.forward in kernel_calls, "the kernel was not called"


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
@pytest.mark.parametrize(
    ("case", "geometry"),
    [
        pytest.param(case, geometry, id=f"{case}-{geometry}")
        for case in (*LOGIT_CASES, *LINEAR_CASES, *PLAIN_BATCH_CASES)
        for geometry in case.family.scaled
    ],
)
def test_any_grad_loss_costs_one_more_rounding(
    backend: str, case: LossCase, geometry: Geometry, dtype: torch.dtype
) -> None:
    inputs = case.make_inputs(geometry, dtype)
    assert_matches_truth(case, inputs, OTHERS, GRAD_FLOOR + HALF_UNIT[dtype])


MIXTURES = [(a, b) for a in (F32, BF16, F16) for b in (F32, BF16, F16) if a != b]
MIXED_RUNS = [
    pytest.param(case, geometry, dtypes, id=f"{case}-{geometry}-{dtypes[0]}-{dtypes[1]}")
    for cases, mixtures in (
        ((*LOGIT_CASES, *LINEAR_CASES), MIXTURES),
        ([ATTENTION], [*MIXTURES, (BF16, BF16), (F16, F16)]),
        (PLAIN_PAIR_CASES, [(BF16, BF16), (F16, F32), (F32, BF16)]),
    )
    for case in cases
    for geometry in case.family.mixed
    for dtypes in mixtures
]


@pytest.mark.parametrize(("case", "geometry", "dtypes"), MIXED_RUNS)
def test_dtype_mixtures_match_float64(
    backend: str, case: LossCase, geometry: Geometry, dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    assert_matches_truth(case, case.make_inputs(geometry, *dtypes))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_float64_takes_the_reference(kernel_calls: list[str], case: LossCase) -> None:
    inputs = case.make_inputs(case.geometry, torch.float64)
    assert case.run(inputs).equal(case.run_reference(inputs))
    assert case.run(inputs).dtype == torch.float64
    assert not kernel_calls


@pytest.mark.parametrize(
    ("case", "geometry"),
    [
        pytest.param(case, geometry, id=f"{case}-{geometry}")
        for case in (*LOGIT_CASES, *PLAIN_BATCH_CASES)
        for geometry in case.family.threaded
    ],
)
def test_results_do_not_depend_on_the_threads(
    backend: str, case: LossCase, geometry: Geometry
) -> None:
    inputs = case.make_inputs(geometry)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(value_and_grad(case, inputs, False))
    finally:
        torch.set_num_threads(before)
    for loss, grad in results[1:]:
        assert loss.equal(results[0][0])
        assert grad.equal(results[0][1])


@pytest.mark.parametrize("width", [3, 100, 1030, 40001])
def test_a_row_does_not_depend_on_the_batch(backend: str, width: int) -> None:
    case = next(case for case in LOGIT_CASES if case.options.get("reduction") == "none")
    inputs = case.make_inputs(Geometry((40, width)))
    whole, _ = value_and_grad(case, inputs, False)
    some = Inputs(
        tuple(t[7:9] for t in inputs.tensors),
        {
            name: value[7:9] if isinstance(value, Tensor) else value
            for name, value in inputs.keywords.items()
        },
    )
    assert value_and_grad(case, some, False)[0].equal(whole[7:9])
