# SPDX-License-Identifier: Apache-2.0
"""Every CUDA kernel on the emulator: every order of threads, every alignment, every plan."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cases import KD_LOSS, LOGIT_CASES, Geometry, Inputs, LossCase
from conftest import EMULATOR_RUNS_HERE, emulated_cuda
from test_values import BF16, F16, F32, assert_matches_truth, value_and_grad
from tolerance import LOSS_FLOOR
from torch import Tensor

import fastkd

pytestmark = pytest.mark.skipif(
    not EMULATOR_RUNS_HERE, reason="the emulator is built on x86-64 Linux, in the source tree"
)

ORDERS: dict[str, dict[str, Any]] = {
    "round-robin": {"order": "round_robin"},
    "greedy": {"order": "greedy", "lazy_copies": True},
    "reversed": {"order": "reversed"},
    "random-1": {"order": "random", "seed": 1, "lazy_copies": True},
    "random-2": {"order": "random", "seed": 2},
}

# Kernel, chip, logits: the ends of what plan() gives it, odd and whole class counts.
KERNELS = [
    ("lanes8", 90, Geometry((70, 2))),
    ("lanes8", 75, Geometry((37, 10))),
    ("lanes8", 90, Geometry((9, 100))),
    ("lanes8", 90, Geometry((5, 256))),
    ("warp16", 75, Geometry((6, 257))),
    ("warp16", 90, Geometry((5, 512))),
    ("warp32", 90, Geometry((5, 1000))),
    ("warp32", 75, Geometry((3, 1023))),
    ("block", 90, Geometry((2, 1025))),
    ("block", 75, Geometry((2, 8192))),
    ("cluster", 90, Geometry((2, 8193))),
    ("cluster", 120, Geometry((2, 50257))),
    ("cluster", 100, Geometry((1, 131072))),
    ("shared", 90, Geometry((1, 131073))),
    ("shared", 90, Geometry((1, 262144))),
    ("shared", 120, Geometry((1, 65600))),
    ("streamed_block", 80, Geometry((2, 8193))),
    ("streamed_block", 86, Geometry((1, 100003))),
    ("columns", 90, Geometry((3, 10, 4, 4), 1)),
    ("columns", 75, Geometry((2, 19, 5, 7), 1)),
    ("columns", 90, Geometry((1, 150, 9, 15), 1)),
    ("columns_streamed", 90, Geometry((1, 200, 7, 9), 1)),
]
MIXED_KERNELS = [
    ("streamed_lanes", Geometry((37, 10))),
    ("streamed_lanes", Geometry((5, 1000))),
    ("streamed_block", Geometry((2, 2501))),
    ("columns_streamed", Geometry((2, 19, 5, 7), 1)),
]
SMOOTHED = next(case for case in LOGIT_CASES if case.label == "t3.5-smoothed")
WEIGHTED = next(case for case in LOGIT_CASES if case.label == "t4-smoothed-rows")


def kernel_ids(value: object) -> str:
    return str(value).removeprefix("torch.")


@pytest.fixture(params=ORDERS)
def order(request: pytest.FixtureRequest) -> dict[str, Any]:
    return ORDERS[request.param]


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=kernel_ids)
@pytest.mark.parametrize("case", [KD_LOSS, SMOOTHED, WEIGHTED], ids=str)
@pytest.mark.parametrize(("kernel", "capability", "geometry"), KERNELS, ids=kernel_ids)
def test_every_kernel_in_every_order(
    order: dict[str, Any],
    kernel: str,
    capability: int,
    geometry: Geometry,
    case: LossCase,
    dtype: torch.dtype,
) -> None:
    inputs = case.make_inputs(geometry, dtype)
    with emulated_cuda(capability=capability, **order) as module:
        assert_matches_truth(case, inputs)
        assert kernel in module.launched()


@pytest.mark.parametrize("dtypes", [(BF16, F32), (F32, F16), (F16, BF16)], ids=kernel_ids)
@pytest.mark.parametrize(("kernel", "geometry"), MIXED_KERNELS, ids=kernel_ids)
def test_every_kernel_of_mixed_types_in_every_order(
    order: dict[str, Any], kernel: str, geometry: Geometry, dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    with emulated_cuda(capability=90, **order) as module:
        for case in (KD_LOSS, SMOOTHED, WEIGHTED):
            assert_matches_truth(case, case.make_inputs(geometry, *dtypes))
        assert kernel in module.launched()


@pytest.mark.parametrize("case", [KD_LOSS, WEIGHTED], ids=str)
@pytest.mark.parametrize(("kernel", "capability", "geometry"), KERNELS, ids=kernel_ids)
def test_the_order_of_threads_changes_no_bit(
    kernel: str, capability: int, geometry: Geometry, case: LossCase
) -> None:
    inputs = case.make_inputs(geometry, BF16)
    results = []
    for simulated in ORDERS.values():
        with emulated_cuda(capability=capability, **simulated):
            results.append(value_and_grad(case, inputs, False))
    for loss, grad in results[1:]:
        assert loss.equal(results[0][0])
        assert grad.equal(results[0][1])


@pytest.mark.parametrize("loss", ["rkd_loss", "pkt_loss", "cosine_similarity_loss"])
@pytest.mark.parametrize("apart", [1.0, 1e-6])
def test_the_order_of_threads_changes_no_bit_of_a_batch(loss: str, apart: float) -> None:
    """Two rows, apart or near: then angles are computed in double."""
    student, teacher = torch.randn(40, 10), torch.randn(40, 7)
    student[33] = student[2] + apart * torch.randn(10)
    results = []
    for simulated in ORDERS.values():
        with emulated_cuda(capability=90, **simulated):
            x = student.clone().requires_grad_()
            value: Tensor = getattr(fastkd, loss)(x, teacher)
            value.backward()  # type: ignore[no-untyped-call]
            results.append((value.detach(), x.grad))
    for value, grad in results[1:]:
        assert value.equal(results[0][0])
        assert grad is not None
        assert results[0][1] is not None
        assert grad.equal(results[0][1])


ROW_KERNELS = [
    ("lanes8", 21),
    ("lanes8", 96),
    ("warp16", 301),
    ("warp32", 1000),
    ("block", 1500),
    ("cluster", 8205),
    ("shared", 131100),
]


@pytest.mark.parametrize("dtype", [F32, BF16], ids=kernel_ids)
@pytest.mark.parametrize("left_out", range(9))
@pytest.mark.parametrize(("kernel", "classes"), ROW_KERNELS, ids=kernel_ids)
def test_rows_at_any_address_give_the_same_bits(
    kernel: str, classes: int, left_out: int, dtype: torch.dtype
) -> None:
    """Nine offsets are more than 16 bytes in either type; student, teacher, gradient differ."""
    inputs = SMOOTHED.make_inputs(Geometry((2, classes)), dtype)
    student, teacher = inputs.tensors

    def moved(logits: Tensor, by: int) -> Tensor:
        return torch.nn.functional.pad(logits, (by, 9 - by))[:, by : by + classes]

    with emulated_cuda(capability=90, order="greedy") as module:
        expected = value_and_grad(SMOOTHED, inputs, False)
        both = moved(student, left_out), moved(teacher, 8 - left_out)
        found = value_and_grad(SMOOTHED, Inputs(both, inputs.keywords), False)
        assert module.launched().count(kernel) == 2
    assert found[0].equal(expected[0])
    assert found[1].equal(expected[1])


@pytest.mark.parametrize(("kernel", "classes"), ROW_KERNELS, ids=kernel_ids)
def test_a_row_does_not_depend_on_its_place(kernel: str, classes: int) -> None:
    case = WEIGHTED
    inputs = case.make_inputs(Geometry((5, classes)), BF16)
    with emulated_cuda(capability=90, order="greedy"):
        loss, grad = value_and_grad(case, inputs, False, (1.0,))
        for row in range(5):
            alone = Inputs(
                tuple(t[row : row + 1].clone() for t in inputs.tensors),
                {k: v[row : row + 1] if isinstance(v, Tensor) else v
                 for k, v in inputs.keywords.items()},
            )  # fmt: skip
            row_loss, row_grad = value_and_grad(case, alone, False, (1.0,))
            assert row_loss.equal(loss[row : row + 1])
            assert row_grad.equal(grad[row : row + 1])


@pytest.fixture
def emulated() -> Iterator[Any]:
    with emulated_cuda(capability=90, order="greedy") as module:
        yield module


@pytest.mark.parametrize("bad", [37, -1, 2**40, -(2**62)])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("as_map", [False, True], ids=["rows", "maps"])
def test_a_target_out_of_range_poisons_its_row(
    emulated: Any, as_map: bool, alpha: float, bad: int
) -> None:
    shape = (2, 37, 10) if as_map else (20, 37)
    student = torch.randn(shape, requires_grad=True)
    teacher = torch.randn(shape)
    target = torch.randint(37, (2, 10) if as_map else (20,))
    target.flatten()[13] = bad
    loss = fastkd.kd_loss(student, teacher, target, alpha=alpha, dim=1, reduction="none")
    loss.sum().backward()
    assert student.grad is not None
    bad_row = torch.arange(20).reshape(target.shape) == 13
    assert loss.isnan().equal(bad_row)
    assert student.grad.isnan().any(1).equal(bad_row)


def test_a_bad_target_leaves_the_gradient_of_other_rows(emulated: Any) -> None:
    student = torch.randn(3, 5, requires_grad=True)
    fastkd.kd_loss(student, torch.randn(3, 5), torch.tensor([1, 5, 2])).backward()
    assert student.grad is not None
    assert student.grad.isnan().any(1).tolist() == [False, True, False]


@pytest.mark.parametrize("dtype", [torch.int64, F32, torch.float64], ids=kernel_ids)
def test_num_items_may_stay_on_the_device(emulated: Any, dtype: torch.dtype) -> None:
    inputs = KD_LOSS.make_inputs(Geometry((6, 10)), F16)
    student, teacher = inputs.tensors
    count = torch.tensor(9, dtype=dtype)
    results = []
    for num_items in (9, count):
        leaf = student.clone().requires_grad_()
        loss = fastkd.kd_loss(leaf, teacher, inputs.keywords["target"], num_items=num_items)
        count.zero_()  # read when the loss was computed, not when its gradient is
        loss.backward()
        count.fill_(9)
        results.append((loss.detach(), leaf.grad))
    assert results[0][0].equal(results[1][0])
    assert results[0][1].equal(results[1][1])


@pytest.mark.parametrize("dtype", [torch.int64, torch.float64], ids=kernel_ids)
def test_double_backward_divides_by_the_count_that_the_loss_had(
    emulated: Any, dtype: torch.dtype
) -> None:
    inputs = KD_LOSS.make_inputs(Geometry((6, 10)))
    grads = []
    for changed in (False, True):
        count = torch.tensor(9, dtype=dtype)
        leaf = inputs.tensors[0].clone().requires_grad_()
        loss = fastkd.kd_loss(leaf, inputs.tensors[1], inputs.keywords["target"], num_items=count)
        if changed:
            count.fill_(1)
        grads += torch.autograd.grad(loss, leaf, create_graph=True)
    assert grads[0].equal(grads[1])


@pytest.mark.parametrize("shape", [(300, 3), (40, 37), (7, 2100), (2, 3, 50)], ids=str)
@pytest.mark.parametrize("dtype", [F32, F16], ids=kernel_ids)
def test_a_factor_for_each_row(emulated: Any, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    inputs = WEIGHTED.make_inputs(Geometry(shape), dtype)
    assert_matches_truth(WEIGHTED, inputs)


@pytest.mark.parametrize(
    ("num_items", "expected"), [(0, 0.0), (-1, float("nan")), (float("inf"), float("nan"))]
)
def test_a_denominator_on_the_device_that_is_no_count(
    emulated: Any, num_items: float, expected: float
) -> None:
    student = torch.randn(4, 10, requires_grad=True)
    loss = fastkd.kd_loss(student, torch.randn(4, 10), num_items=torch.tensor(num_items))
    loss.backward()
    torch.testing.assert_close(
        loss.detach(), torch.tensor(expected), equal_nan=True, rtol=0, atol=0
    )
    torch.testing.assert_close(
        student.grad, torch.full((4, 10), expected), equal_nan=True, rtol=0, atol=0
    )


@pytest.mark.parametrize("rows", [1, 16384, 16385, 40000])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_sums_over_many_rows(emulated: Any, rows: int, reduction: str) -> None:
    student, teacher = torch.randn(2, rows, 3)
    target = torch.randint(3, (rows,))
    weight = torch.rand(rows)
    arguments = {"sample_weight": weight, "reduction": reduction}
    loss = fastkd.kd_loss(student, teacher, target, **arguments)
    truth = fastkd.reference.kd_loss(student.double(), teacher.double(), target, **arguments)
    torch.testing.assert_close(loss.double(), truth, rtol=LOSS_FLOOR, atol=0)
    launched = emulated.launched()
    assert ("combine_losses" in launched) == (rows > 16384)
    assert ("combine_census" in launched) == (rows > 16384 and reduction == "mean")


def test_launches_are_few(emulated: Any) -> None:
    """What a call costs the host: the sums are launched only where they are needed."""
    student, teacher = torch.randn(2, 8, 10)
    target = torch.randint(10, (8,))

    def launches(**options: Any) -> list[str]:
        emulated.launched()
        fastkd.kd_loss(student, teacher, **options)
        launched: list[str] = emulated.launched()
        return launched

    assert launches(reduction="none") == ["lanes8"]
    assert launches() == ["lanes8", "sum_losses"]
    assert launches(target=target, reduction="batchmean") == ["lanes8", "sum_losses"]
    assert launches(target=target) == ["take_census", "lanes8", "sum_losses"]


# ---- plan(): what fits which chip ----

CHIPS = {
    75: (1, 64 << 10),
    80: (1, 163 << 10),
    86: (1, 99 << 10),
    90: (16, 227 << 10),
    100: (16, 227 << 10),
    120: (8, 99 << 10),
}
CODES = {F32: 0, BF16: 1, F16: 2}


def plan_for(
    emulated: Any,
    classes: int,
    capability: int,
    student: torch.dtype = BF16,
    teacher: torch.dtype = BF16,
    teacher_classes: int | None = None,
    contiguous_classes: bool = True,
) -> dict[str, Any]:
    max_cluster, shared_bytes = CHIPS[capability]
    plan: dict[str, Any] = emulated.plan(
        classes=classes,
        teacher_classes=teacher_classes or classes,
        student_dtype=CODES[student],
        teacher_dtype=CODES[teacher],
        contiguous_classes=contiguous_classes,
        capability=capability,
        max_cluster=max_cluster,
        shared_bytes=shared_bytes,
    )
    return plan


@pytest.mark.parametrize("capability", CHIPS)
@pytest.mark.parametrize("dtype", [F32, BF16], ids=kernel_ids)
def test_plans_fit_their_chip(emulated: Any, capability: int, dtype: torch.dtype) -> None:
    max_cluster, shared_bytes = CHIPS[capability]
    sizes = [*range(1, 1100), *(2**i + d for i in range(10, 20) for d in (-1, 0, 1))]
    for classes in sizes:
        plan = plan_for(emulated, classes, capability, dtype, dtype)
        assert plan["threads"] % 32 == 0
        most = {"block": 256, "cluster": 256, "shared": 512, "streamed_block": 512}
        assert plan["threads"] <= most.get(plan["kernel"], 128)
        assert plan["cluster"] <= max_cluster
        held = {"lanes8": 8 * plan["lanes"], "warp16": 512, "warp32": 1024}
        held |= {"block": 32 * plan["threads"], "streamed_block": classes}
        held |= {
            "cluster": plan["cluster"] * plan["slice"],
            "shared": plan["cluster"] * plan["slice"],
        }
        assert held[plan["kernel"]] >= classes
        if plan["kernel"] == "cluster":
            assert 32 * plan["threads"] >= plan["slice"]
        if plan["kernel"] == "shared":
            assert 2 * plan["slice"] * dtype.itemsize < shared_bytes
        if plan["cluster"] > 1:
            assert plan["slice"] % 8 == 0


@pytest.mark.parametrize(
    ("classes", "capability", "kernel", "cluster"),
    [
        (10, 75, "lanes8", 1),
        (1000, 86, "warp32", 1),
        (8192, 80, "block", 1),
        (32000, 90, "cluster", 4),
        (50257, 100, "cluster", 8),
        (128256, 90, "cluster", 16),
        (262144, 90, "shared", 16),
        (128256, 120, "shared", 8),
        (262144, 120, "streamed_block", 1),
        (32000, 80, "streamed_block", 1),
        (32000, 75, "streamed_block", 1),
    ],
)
def test_plans_of_known_vocabularies(
    emulated: Any, classes: int, capability: int, kernel: str, cluster: int
) -> None:
    plan = plan_for(emulated, classes, capability)
    assert (plan["kernel"], plan["cluster"]) == (kernel, cluster)


def test_plans_of_columns(emulated: Any) -> None:
    for classes in range(1, 400):
        plan = plan_for(emulated, classes, 90, contiguous_classes=False)
        assert plan["slice"] * plan["slices"] >= classes
        assert plan["threads"] == plan["rows"] * plan["slices"] <= 512
        assert plan["rows"] % 32 == 0
        assert plan["kernel"] == ("columns" if classes <= 192 else "columns_streamed")
        assert plan["slice"] <= 12 or plan["kernel"] == "columns_streamed"


def test_what_differs_is_streamed(emulated: Any) -> None:
    def kernel(**options: Any) -> str:
        return str(plan_for(emulated, capability=90, **options)["kernel"])

    assert kernel(classes=100, teacher=F32) == "streamed_lanes"
    assert kernel(classes=5000, teacher=F32) == "streamed_block"
    assert kernel(classes=152064, teacher_classes=151936) == "streamed_block"
    assert kernel(classes=151936, teacher_classes=152064) == "shared"
    assert kernel(classes=19, teacher=F32, contiguous_classes=False) == "columns_streamed"
