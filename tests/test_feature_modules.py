# SPDX-License-Identifier: Apache-2.0
"""Modules and errors of the losses that run on PyTorch's own operations."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import fastkd
from fastkd import reference

Shape = tuple[int, ...]

MODULES: dict[str, tuple[type[torch.nn.Module], dict[str, Any], str]] = {
    "logit_mse_loss": (
        fastkd.LogitMSELoss,
        {"zero_mean": True, "dim": 1},
        "LogitMSELoss(dim=1, zero_mean=True, reduction='mean')",
    ),
    "dist_loss": (
        fastkd.DISTLoss,
        {"temperature": 4.0, "gamma": 2.0, "dim": 1},
        "DISTLoss(temperature=4.0, beta=1.0, gamma=2.0, dim=1, temperature_squared=True)",
    ),
    "hint_loss": (fastkd.HintLoss, {"reduction": "sum"}, "HintLoss(reduction='sum')"),
    "fsp_loss": (fastkd.FSPLoss, {"reduction": "sum"}, "FSPLoss(reduction='sum')"),
    "nst_loss": (
        fastkd.NSTLoss,
        {"interpolate": True},
        "NSTLoss(interpolate=True, reduction='mean')",
    ),
}


@pytest.mark.parametrize("loss", MODULES)
def test_the_module_is_the_function(loss: str) -> None:
    kind, options, words = MODULES[loss]
    student, teacher = torch.randn(2, 2, 3, 4, 4)
    sides: Any = (student, teacher)
    if loss == "fsp_loss":
        sides = ((student, student), (teacher, teacher))
    module = kind(**options)
    assert torch.equal(module(*sides), getattr(fastkd, loss)(*sides, **options))
    assert repr(module) == words
    assert module.state_dict() == {}


def test_the_module_takes_weights_and_a_count() -> None:
    student, teacher = torch.randn(2, 3, 4)
    more = {"sample_weight": torch.rand(3), "num_items": 5}
    assert torch.equal(
        fastkd.LogitMSELoss()(student, teacher, **more),
        fastkd.logit_mse_loss(student, teacher, **more),
    )


def test_the_module_takes_a_mask() -> None:
    student, teacher = torch.randn(2, 3, 4)
    mask = torch.tensor([True, True, False])
    loss = fastkd.DISTLoss()(student, teacher, mask=mask)
    assert torch.equal(loss, fastkd.dist_loss(student, teacher, mask=mask))


@pytest.mark.parametrize(
    ("kind", "student_shape", "teacher_shape"),
    [
        ("linear", (5, 3), (5, 7)),
        ("linear", (5, 4, 3), (5, 4, 7)),
        ("conv1x1", (5, 3, 2, 2), (5, 7, 2, 2)),
    ],
)
def test_the_regressor_learns_with_the_student(
    kind: str, student_shape: Shape, teacher_shape: Shape
) -> None:
    student, teacher = torch.randn(student_shape, requires_grad=True), torch.randn(teacher_shape)
    criterion = fastkd.HintLoss(regressor=fastkd.HintRegressor(3, 7, kind=kind))
    loss = criterion(student, teacher)
    torch.testing.assert_close(loss, functional.mse_loss(criterion.regressor(student), teacher))
    loss.backward()
    assert student.grad is not None
    assert all(parameter.grad is not None for parameter in criterion.parameters())
    assert set(criterion.state_dict()) == {
        "regressor.projection.weight",
        "regressor.projection.bias",
    }
    bare = fastkd.HintRegressor(3, 7, kind=kind, bias=False)
    assert [name for name, _ in bare.named_parameters()] == ["projection.weight"]


def test_the_regressor_may_be_any_module() -> None:
    student, teacher = torch.randn(2, 5, 3)
    criterion = fastkd.HintLoss(regressor=torch.nn.Identity(), reduction="sum")
    assert torch.equal(
        criterion(student, teacher), fastkd.hint_loss(student, teacher, reduction="sum")
    )


def test_the_regressor_compiles_under_autocast() -> None:
    torch._dynamo.reset()
    criterion = fastkd.HintLoss(regressor=fastkd.HintRegressor(3, 7, kind="linear"))
    with torch.autocast("cpu", torch.bfloat16):
        loss = torch.compile(criterion, fullgraph=True)(torch.randn(5, 3), torch.randn(5, 7))
    assert loss.dtype == torch.float32


MAPS = torch.zeros(4, 3, 8, 8)
PAIR = (MAPS, torch.zeros(4, 5, 4, 4))
LOGITS = torch.zeros(4, 6)
Bad = tuple[str, type[Exception], str, tuple[Any, ...], dict[str, Any]]
BAD: list[Bad] = [
    ("logit_mse_loss", ValueError, r"teacher_logits must have the student's shape \(4, 6\), "
     r"got \(4, 5\)$", (LOGITS, LOGITS[:, :5]), {}),
    ("logit_mse_loss", TypeError, "student_logits must be a torch.Tensor, got list",
     ([1.0], LOGITS), {}),
    ("logit_mse_loss", TypeError, "teacher_logits must have dtype .*got torch.int64",
     (LOGITS, LOGITS.long()), {}),
    ("logit_mse_loss", ValueError, "teacher_logits must be on the student's device cpu, got meta",
     (LOGITS, LOGITS.to("meta")), {}),
    ("logit_mse_loss", ValueError, "student_logits must have a class dimension, got a scalar",
     (LOGITS.sum(), LOGITS.sum()), {}),
    ("logit_mse_loss", ValueError, r"must have at least one class in dim 1, got shape \(4, 0\)",
     (LOGITS[:, :0], LOGITS[:, :0]), {}),
    ("logit_mse_loss", ValueError, r"dim must be in \[-2, 1\] .*got 2", (LOGITS, LOGITS),
     {"dim": 2}),
    ("logit_mse_loss", TypeError, "dim must be int, got float 1.0", (LOGITS, LOGITS),
     {"dim": 1.0}),
    ("logit_mse_loss", TypeError, "zero_mean must be bool, got int 1", (LOGITS, LOGITS),
     {"zero_mean": 1}),
    ("logit_mse_loss", ValueError, "reduction must be one of none, sum, mean, batchmean, got 'x'",
     (LOGITS, LOGITS), {"reduction": "x"}),
    ("logit_mse_loss", ValueError, r"sample_weight must have the logits' shape without dim 1, "
     r"\(4,\), got \(6,\)", (LOGITS, LOGITS), {"sample_weight": torch.ones(6)}),
    ("logit_mse_loss", ValueError, "num_items must be >= 0 and an int64, got -1",
     (LOGITS, LOGITS), {"num_items": -1}),
    ("logit_mse_loss", ValueError, "num_items replaces the denominator .*got reduction='none'",
     (LOGITS, LOGITS), {"num_items": 1, "reduction": "none"}),
    ("dist_loss", ValueError, r"teacher_logits must have the student's shape \(4, 6\), "
     r"got \(4, 5\)$", (LOGITS, LOGITS[:, :5]), {}),
    ("dist_loss", TypeError, "student_logits must have dtype .*got torch.int64",
     (LOGITS.long(), LOGITS), {}),
    ("dist_loss", ValueError, r"must have at least one class in dim 1, got shape \(4, 0\)",
     (LOGITS[:, :0], LOGITS[:, :0]), {}),
    ("dist_loss", ValueError, r"dim must be in \[-2, 1\] .*got -3", (LOGITS, LOGITS), {"dim": -3}),
    ("dist_loss", TypeError, "dim must be int, got NoneType None", (LOGITS, LOGITS), {"dim": None}),
    ("dist_loss", ValueError, r"temperature must be in \[1e-6, 1e6\], got 0", (LOGITS, LOGITS),
     {"temperature": 0}),
    ("dist_loss", ValueError, "beta must be >= 0 and finite, got -1.0", (LOGITS, LOGITS),
     {"beta": -1.0}),
    ("dist_loss", TypeError, "gamma must be a real number, got Tensor", (LOGITS, LOGITS),
     {"gamma": torch.tensor(1.0)}),
    ("dist_loss", TypeError, "temperature_squared must be bool, got int 1", (LOGITS, LOGITS),
     {"temperature_squared": 1}),
    ("dist_loss", TypeError, "mask must be bool, got torch.int64", (LOGITS, LOGITS),
     {"mask": torch.ones(4).long()}),
    ("dist_loss", TypeError, "mask must be a torch.Tensor, got list", (LOGITS, LOGITS),
     {"mask": [True] * 4}),
    ("dist_loss", ValueError, r"mask must have the logits' shape without dim 1, \(4,\), "
     r"got \(4, 6\)", (LOGITS, LOGITS), {"mask": LOGITS.bool()}),
    ("dist_loss", ValueError, "mask must be on the student's device cpu, got meta",
     (LOGITS, LOGITS), {"mask": torch.ones(4, dtype=torch.bool, device="meta")}),
    ("hint_loss", ValueError, r"teacher_features must have the student's shape \(4, 3, 8, 8\), "
     r'got \(4, 7, 8, 8\) \(map the student by HintRegressor\(3, 7, kind="conv1x1"\)\)',
     (MAPS, torch.zeros(4, 7, 8, 8)), {}),
    ("hint_loss", ValueError, r'got \(4, 9\) \(map .* HintRegressor\(6, 9, kind="linear"\)\)',
     (LOGITS, torch.zeros(4, 9)), {}),
    ("hint_loss", ValueError, r"shape \(4, 3, 8, 8\), got \(4, 3, 8, 4\)$",
     (MAPS, MAPS[..., :4]), {}),
    ("hint_loss", ValueError, r"shape \(4, 3, 8, 8\), got \(4, 6\)$", (MAPS, LOGITS), {}),
    ("hint_loss", ValueError, "teacher_features must have the student's batch size 4, got 3",
     (MAPS, MAPS[:3]), {}),
    ("hint_loss", ValueError, r"student_features must have shape \(N, ...\), got \(6,\)",
     (LOGITS[0], LOGITS[0]), {}),
    ("hint_loss", ValueError, r"student_features must have at least one row and one feature, "
     r"got shape \(0, 3, 8, 8\)", (MAPS[:0], MAPS[:0]), {}),
    ("hint_loss", TypeError, "teacher_features must be a torch.Tensor, got NoneType",
     (MAPS, None), {}),
    ("hint_loss", TypeError, "student_features must have dtype .*got torch.bool",
     (MAPS.bool(), MAPS), {}),
    ("hint_loss", ValueError, "reduction must be one of mean, sum, batchmean, got 'none'",
     (MAPS, MAPS), {"reduction": "none"}),
    ("fsp_loss", TypeError, "student_features must be a pair of tensors, got Tensor$",
     (MAPS, PAIR), {}),
    ("fsp_loss", TypeError, "teacher_features must be a pair of tensors, got tuple of 3",
     (PAIR, (*PAIR, MAPS)), {}),
    ("fsp_loss", TypeError, r"student_features\[1\] must be a torch.Tensor, got NoneType",
     ((MAPS, None), PAIR), {}),
    ("fsp_loss", TypeError, r"teacher_features\[0\] must have dtype .*got torch.int64",
     (PAIR, (MAPS.long(), MAPS)), {}),
    ("fsp_loss", ValueError, r"teacher_features\[1\] must be on the student's device cpu, got meta",
     (PAIR, (MAPS, MAPS.to("meta"))), {}),
    ("fsp_loss", ValueError, r"student_features\[1\] must have shape \(N, C, H, W\), got \(4, 6\)",
     ((MAPS, LOGITS), PAIR), {}),
    ("fsp_loss", ValueError, r"student_features\[0\] must have at least one row and one feature, "
     r"got shape \(0, 3, 8, 8\)", ((MAPS[:0], MAPS[:0]), PAIR), {}),
    ("fsp_loss", ValueError, r"student_features\[1\] must have the student's batch size 4, got 2",
     ((MAPS, MAPS[:2]), PAIR), {}),
    ("fsp_loss", ValueError, r"teacher_features\[0\] must have the student's batch size 4, got 2",
     (PAIR, (MAPS[:2], MAPS)), {}),
    ("fsp_loss", ValueError, r"teacher_features\[1\] must have the channels of "
     r"student_features\[1\], 5, got 3", (PAIR, (MAPS, MAPS)), {}),
    ("fsp_loss", ValueError, "reduction must be one of mean, sum, got 'none'", (PAIR, PAIR),
     {"reduction": "none"}),
    ("nst_loss", ValueError, r"teacher_features must have the student's spatial size \(8, 8\), "
     r"got \(4, 4\) \(interpolate=True", (MAPS, PAIR[1]), {}),
    ("nst_loss", ValueError, r"student_features must have shape \(N, C, ...\), got \(4, 6\)",
     (LOGITS, LOGITS), {}),
    ("nst_loss", ValueError, r"student_features must have shape \(N, C, H, W\) where "
     r"interpolate=True, got \(4, 3, 64\)", (MAPS.flatten(2), MAPS), {"interpolate": True}),
    ("nst_loss", ValueError, "teacher_features must have the student's batch size 4, got 3",
     (MAPS, MAPS[:3]), {}),
    ("nst_loss", ValueError, r"teacher_features must have at least one row and one feature, "
     r"got shape \(4, 0, 8, 8\)", (MAPS, MAPS[:, :0]), {}),
    ("nst_loss", TypeError, "student_features must have dtype .*got torch.complex64",
     (MAPS.cfloat(), MAPS), {}),
    ("nst_loss", TypeError, "interpolate must be bool, got NoneType", (MAPS, MAPS),
     {"interpolate": None}),
    ("nst_loss", ValueError, "reduction must be one of mean, sum, got 'batchmean'", (MAPS, MAPS),
     {"reduction": "batchmean"}),
]  # fmt: skip


@pytest.mark.parametrize("where", [fastkd, reference], ids=["public", "reference"])
@pytest.mark.parametrize(("loss", "error", "message", "arguments", "options"), BAD)
def test_bad_input_is_named(
    loss: str,
    error: type[Exception],
    message: str,
    arguments: tuple[Any, ...],
    options: dict[str, Any],
    where: Any,
) -> None:
    with pytest.raises(error, match=f"^{loss}: .*{message}"):
        getattr(where, loss)(*arguments, **options)


@pytest.mark.parametrize("count", [torch.tensor(-1), torch.tensor(math.inf)])
def test_the_public_function_looks_at_a_count_on_the_cpu(count: Tensor) -> None:
    with pytest.raises(ValueError, match="logit_mse_loss: num_items must be >= 0 and finite"):
        fastkd.logit_mse_loss(LOGITS, LOGITS, num_items=count)


def test_no_rows_are_no_cause_for_warnings() -> None:
    student = torch.zeros(0, 5, requires_grad=True)
    loss = fastkd.logit_mse_loss(student, student.detach(), zero_mean=True)
    loss.backward()
    assert loss.item() == 0


def test_a_regressor_takes_tensors() -> None:
    with pytest.raises(TypeError, match=r"student_features must be a torch.Tensor, got NoneType"):
        fastkd.HintRegressor(3, 4)(None)


BAD_MODULES: list[tuple[type[torch.nn.Module], type[Exception], str, Any, Any]] = [
    (fastkd.LogitMSELoss, ValueError, "logit_mse_loss: reduction must be", (), {"reduction": "x"}),
    (fastkd.DISTLoss, ValueError, "dist_loss: temperature must be", (), {"temperature": 0.0}),
    (fastkd.HintLoss, ValueError, "hint_loss: reduction must be", (), {"reduction": "x"}),
    (fastkd.HintLoss, TypeError, "hint_loss: regressor must be a torch.nn.Module or None, got str",
     (), {"regressor": "linear"}),
    (fastkd.FSPLoss, ValueError, "fsp_loss: reduction must be", (), {"reduction": "x"}),
    (fastkd.NSTLoss, TypeError, "nst_loss: interpolate must be bool", (), {"interpolate": 1}),
    (fastkd.HintRegressor, TypeError, "HintRegressor: student_channels must be int, got float 3.0",
     (3.0, 7), {}),
    (fastkd.HintRegressor, ValueError, "HintRegressor: teacher_channels must be > 0 .*got 0",
     (3, 0), {}),
    (fastkd.HintRegressor, ValueError, "HintRegressor: kind must be one of linear, conv1x1, "
     "got 'mlp'", (3, 7), {"kind": "mlp"}),
    (fastkd.HintRegressor, TypeError, "HintRegressor: bias must be bool, got NoneType", (3, 7),
     {"bias": None}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "error", "message", "arguments", "options"), BAD_MODULES)
def test_modules_check_their_options_when_made(
    kind: type[torch.nn.Module],
    error: type[Exception],
    message: str,
    arguments: tuple[Any, ...],
    options: dict[str, Any],
) -> None:
    with pytest.raises(error, match=f"^{message}"):
        kind(*arguments, **options)


@pytest.mark.parametrize(
    ("kind", "shape", "expected"),
    [
        ("conv1x1", (4, 5, 8, 8), r"\(N, 3, H, W\), got \(4, 5, 8, 8\)"),
        ("conv1x1", (4, 3), r"\(N, 3, H, W\), got \(4, 3\)"),
        ("linear", (4, 5), r"\(\.\.\., 3\), got \(4, 5\)"),
        ("linear", (), r"\(\.\.\., 3\), got \(\)"),
    ],
)
def test_the_regressor_names_the_shape_it_takes(kind: str, shape: Shape, expected: str) -> None:
    regressor = fastkd.HintRegressor(3, 7, kind=kind)
    message = f"^HintRegressor: student_features must have shape {expected}"
    with pytest.raises(ValueError, match=message):
        regressor(torch.zeros(shape))
