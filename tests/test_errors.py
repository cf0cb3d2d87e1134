# SPDX-License-Identifier: Apache-2.0
"""Bad input: an error that names the argument, the rule and what came, before any work."""

import math
import warnings
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor

import fastkd

S, T = torch.zeros(8, 100), torch.zeros(8, 100)
Y = torch.zeros(8, dtype=torch.int64)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # that nested tensors are a prototype
    NESTED = torch.nested.nested_tensor([S[0], S[1]])

BAD: list[tuple[type[Exception], str, tuple[Any, ...], dict[str, Any]]] = [
    (ValueError, r"teacher_logits must have the student's shape \(8, 100\), got \(8, 10\)",
     (S, torch.zeros(8, 10)), {}),
    (ValueError, r"\(8, 100\), got \(8, 10\) \(common_vocab=True", (S, torch.zeros(8, 10)), {}),
    (ValueError, r"shape \(8, 100\) outside dim 1, got \(7, 10\)", (S, torch.zeros(7, 10)),
     {"common_vocab": True}),
    (ValueError, r"target must have the logits' shape without dim 1, \(8,\), got \(7,\)",
     (S, T, Y[:7]), {}),
    (TypeError, r"target must be int64 class indices, got torch.float32", (S, T, Y.float()), {}),
    (TypeError, r"target must be int64 class indices, got torch.int32", (S, T, Y.int()), {}),
    (TypeError, r"target must be a torch.Tensor, got list", (S, T, [0] * 8), {}),
    (TypeError, r"student_logits must be a torch.Tensor, got list", ([[1.0]], T), {}),
    (TypeError, r"teacher_logits must be a torch.Tensor, got NoneType", (S, None), {}),
    (TypeError, r"student_logits must have dtype float32, .*got torch.int64", (S.long(), T), {}),
    (TypeError, r"teacher_logits must have dtype .*got torch.complex64", (S, T.cfloat()), {}),
    (TypeError, r"student_logits must be a dense tensor, got layout torch.sparse_coo",
     (S.to_sparse(), T), {}),
    (TypeError, r"student_logits must be a dense tensor, got a nested tensor",
     (NESTED, T), {}),
    (TypeError, r"num_items must be a dense tensor, got layout torch.sparse_coo", (S, T),
     {"num_items": torch.tensor(2.0).to_sparse()}),
    (ValueError, r"teacher_logits must be on the student's device cpu, got meta",
     (S, T.to("meta")), {}),
    (ValueError, r"target must be on the student's device cpu, got meta", (S, T, Y.to("meta")), {}),
    (ValueError, r"must have a class dimension, got a scalar", (S.sum(), T.sum()), {}),
    (ValueError, r"dim must be in \[-2, 1\] for logits of shape \(8, 100\), got 2", (S, T),
     {"dim": 2}),
    (TypeError, r"dim must be int, got str 'C'", (S, T), {"dim": "C"}),
    (TypeError, r"dim must be int, got bool True", (S, T), {"dim": True}),
    (ValueError, r"student_logits must have at least one class in dim 1, got shape \(8, 0\)",
     (S[:, :0], T[:, :0]), {}),
    (ValueError, r"teacher_logits must have at least one class in dim 1, got shape \(8, 0\)",
     (S, T[:, :0]), {"common_vocab": True}),
    (ValueError, r"temperature must be in .*, got 0", (S, T), {"temperature": 0}),
    (ValueError, r"temperature must be in \[1e-6, 1e6\], got -1.0", (S, T), {"temperature": -1.0}),
    (ValueError, r"temperature must be in \[1e-6, 1e6\], got nan", (S, T),
     {"temperature": math.nan}),
    (ValueError, r"temperature must be in \[1e-6, 1e6\], got inf", (S, T),
     {"temperature": math.inf}),
    (TypeError, r"temperature must be a real number, got str '4'", (S, T), {"temperature": "4"}),
    (TypeError, r"temperature must be a real number, got list \[4.0\]", (S, T),
     {"temperature": [4.0]}),
    (TypeError, r"temperature must be a real number, got bool True", (S, T),
     {"temperature": True}),
    (TypeError, r"temperature must be a real number, got Tensor", (S, T),
     {"temperature": torch.tensor(4.0)}),
    (ValueError, r"temperature must be in .*, got 1e\+200", (S, T), {"temperature": 1e200}),
    (TypeError, r"temperature must be a real number, got Fraction", (S, T),
     {"temperature": Fraction(3, 2)}),
    (ValueError, r"ignore_index must be an int64, got 9223372036854775808", (S, T),
     {"ignore_index": 2**63}),
    (ValueError, r"num_items must be >= 0 and an int64, got 10+$", (S, T),
     {"num_items": 10**400}),
    (ValueError, r"alpha must be in \[0, 1\], got 1.5", (S, T), {"alpha": 1.5}),
    (ValueError, r"alpha must be in \[0, 1\], got nan", (S, T), {"alpha": math.nan}),
    (ValueError, r"label_smoothing must be in \[0, 1\], got -0.1", (S, T),
     {"label_smoothing": -0.1}),
    (ValueError, r"reduction must be one of none, sum, mean, batchmean, got 'avg'", (S, T),
     {"reduction": "avg"}),
    (ValueError, r"divergence must be one of forward_kl, reverse_kl, js, tv, got 'kl'", (S, T),
     {"divergence": "kl"}),
    (ValueError, r"beta must be 0, 1 or in \[1e-6, 1 - 1e-6\], got 1.5", (S, T),
     {"divergence": "js", "beta": 1.5}),
    (ValueError, r"beta must be 0, 1 or in .*, got nan", (S, T), {"beta": math.nan}),
    (ValueError, r"beta must be 0, 1 or in .*, got 1e-07", (S, T), {"beta": 1e-7}),
    (TypeError, r"beta must be a real number, got str 'half'", (S, T), {"beta": "half"}),
    (TypeError, r"ignore_index must be int, got float -100.0", (S, T), {"ignore_index": -100.0}),
    (TypeError, r"temperature_squared must be bool, got int 1", (S, T),
     {"temperature_squared": 1}),
    (TypeError, r"common_vocab must be bool, got NoneType None", (S, T), {"common_vocab": None}),
    (TypeError, r"standardize_logits must be bool, got str 'no'", (S, T),
     {"standardize_logits": "no"}),
    (TypeError, r"inplace must be bool, got int 1", (S, T), {"inplace": 1}),
    (ValueError, r"sample_weight must have the logits' shape without dim 1, \(8,\), got \(8, 1\)",
     (S, T), {"sample_weight": torch.ones(8, 1)}),
    (TypeError, r"sample_weight must have dtype .*got torch.int64", (S, T), {"sample_weight": Y}),
    (ValueError, r"num_items must be >= 0 and an int64, got -3", (S, T), {"num_items": -3}),
    (TypeError, r"num_items must be an int or a 0-d tensor, got float 2.5", (S, T),
     {"num_items": 2.5}),
    (ValueError, r"num_items must be an int or a 0-d tensor .*got shape \(1,\)", (S, T),
     {"num_items": torch.ones(1)}),
    (ValueError, r"num_items must be >= 0 and finite, got -1", (S, T),
     {"num_items": torch.tensor(-1)}),
    (ValueError, r"num_items must be >= 0 and finite, got inf", (S, T),
     {"num_items": torch.tensor(math.inf)}),
    (ValueError, r"num_items must be >= 0 and finite, got -1", (S.double(), T.double()),
     {"num_items": torch.tensor(-1)}),
    (ValueError, r"num_items replaces the denominator .*got reduction='sum'", (S, T),
     {"num_items": 3, "reduction": "sum"}),
    (IndexError, r"target must be in \[0, 100\) or ignore_index, got 100 at \(0,\)",
     (S, T, Y + 100), {}),
]  # fmt: skip


@pytest.mark.parametrize("function", [fastkd.kd_loss, fastkd.reference.kd_loss])
@pytest.mark.parametrize(("error", "message", "arguments", "options"), BAD)
def test_bad_input_is_named(
    error: type[Exception],
    message: str,
    arguments: tuple[Any, ...],
    options: dict[str, Any],
    function: Callable[..., Tensor],
) -> None:
    if error is IndexError or isinstance(options.get("num_items"), Tensor):
        function = fastkd.kd_loss  # the reference looks at no values
    with pytest.raises(error, match=f"^kd_loss: .*{message}"):
        function(*arguments, **options)


def test_a_wrong_type_is_named_after_an_equal_value_of_the_right_one() -> None:
    fastkd.kd_loss(S, T, temperature=1.0)
    with pytest.raises(TypeError, match="temperature must be a real number, got bool True"):
        fastkd.kd_loss(S, T, temperature=True)


MODULE_OPTIONS = {"temperature": 0.0, "alpha": 2.0, "reduction": "x", "divergence": "y"}


@pytest.mark.parametrize("option", MODULE_OPTIONS)
def test_the_module_checks_its_options_when_made(option: str) -> None:
    with pytest.raises(ValueError, match=f"kd_loss: {option} must be"):
        fastkd.KDLoss(**{option: MODULE_OPTIONS[option]})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["kernel", "reference"])
@pytest.mark.parametrize("bad", [5, -1, -101, 2**40, -(2**62)])
def test_a_target_out_of_range_is_named_with_its_place(
    cpu_backend: str, dtype: torch.dtype, bad: int
) -> None:
    student = torch.randn(2, 3, 5, dtype=dtype, requires_grad=True)
    target = torch.tensor([[0, 4, -100], [1, bad, 3]])
    message = rf"target must be in \[0, 5\) or ignore_index, got {bad} at \(1, 1\)"
    with pytest.raises(IndexError, match=message):
        fastkd.kd_loss(student, student.detach(), target)
    maps = student.detach().transpose(1, 2).contiguous()
    with pytest.raises(IndexError, match=message):
        fastkd.kd_loss(maps, maps, target, dim=1)


def test_a_default_device_changes_no_error() -> None:
    target = torch.tensor([1, 107])
    with torch.device("meta"), pytest.raises(IndexError, match=r"got 107 at \(1,\)"):
        fastkd.kd_loss(S[:2], T[:2], target)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_the_target_is_checked_whatever_alpha(cpu_backend: str, alpha: float) -> None:
    with pytest.raises(IndexError, match="got 9"):
        fastkd.kd_loss(S[:, :5], T[:, :5], torch.full((8,), 9), alpha=alpha)


@pytest.mark.parametrize("which", ["student", "target", "sample_weight"])
def test_freed_storage_is_an_error_not_a_crash(backend: str, which: str) -> None:
    tensors = {
        "student": torch.randn(8, 100),
        "target": torch.zeros(8, dtype=torch.int64),
        "sample_weight": torch.ones(8),
    }
    tensors[which].untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="no storage"):
        fastkd.kd_loss(
            tensors["student"], T, tensors["target"], sample_weight=tensors["sample_weight"]
        )


def test_the_registered_op_checks_what_it_is_given() -> None:
    options = (4.0, 0.5, "forward_kl", 0.5, -1, -100, 0.0, "mean", True, False, False, True)
    op = torch.ops.fastkd.kd_loss
    with pytest.raises(ValueError, match="target must have the logits' shape"):
        op(S, T, Y[:1], None, None, None, *options)
    with pytest.raises(TypeError, match="no float64 kernel"):
        op(S.double(), T, Y, None, None, None, *options)


def test_without_a_kernel_the_reference_serves_after_one_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from fastkd import _backends

    monkeypatch.delenv("FASTKD_REQUIRE_NATIVE", raising=False)
    student = torch.randn(4, 9)
    expected = fastkd.kd_loss(student, student.roll(1))
    with _backends.use_on_cpu(None):
        assert fastkd.info()["cpu"] is None
        with pytest.warns(RuntimeWarning, match="no native CPU module .*reference serves"):
            loss = fastkd.kd_loss(student, student.roll(1))
        torch.testing.assert_close(loss, expected)
        fastkd.kd_loss(student, student)  # warnings are errors: a second one would fail
        monkeypatch.setenv("FASTKD_REQUIRE_NATIVE", "1")
        with pytest.raises(RuntimeError, match="FASTKD_REQUIRE_NATIVE=1 forbids the reference"):
            fastkd.kd_loss(student, student)


def test_a_build_that_is_not_there_is_an_error() -> None:
    from fastkd import _backends

    before = fastkd.info()
    with (
        pytest.raises(RuntimeError, match="the sse9 build does not load"),
        _backends.use_on_cpu("sse9"),
    ):
        pass
    assert fastkd.info() == before


def test_the_module_is_the_function() -> None:
    student, teacher = torch.randn(2, 8, 100)
    module = fastkd.KDLoss(temperature=4.0, alpha=0.9, reduction="sum")
    assert "temperature=4.0, alpha=0.9" in repr(module)
    value: Tensor = module(student, teacher, Y)
    assert value.equal(
        fastkd.kd_loss(student, teacher, Y, temperature=4.0, alpha=0.9, reduction="sum")
    )
    weight = torch.rand(8)
    mean = fastkd.KDLoss()(student, teacher, sample_weight=weight, num_items=5)
    assert mean.equal(fastkd.kd_loss(student, teacher, sample_weight=weight, num_items=5))
