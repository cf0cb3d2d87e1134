# SPDX-License-Identifier: Apache-2.0
"""Bad input of relational and attention losses: an error that names what is wrong and what came."""

import dataclasses
import functools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from cases import ATTENTION, PLAIN_BATCH_CASES, PLAIN_PAIR_CASES, Inputs, LossCase
from torch import Tensor

import fastkd

S, T = torch.zeros(8, 5), torch.zeros(8, 7)
MAPS, OTHER_MAPS = torch.zeros(8, 3, 4, 4), torch.zeros(8, 5, 4, 4)
EMBEDDING_CASES = [case for case in PLAIN_PAIR_CASES if "preserving" not in case.loss]
every_case = pytest.mark.parametrize("case", PLAIN_BATCH_CASES, ids=str)

# What every loss says, of its own tensors.
Change = Callable[[Tensor, Tensor], tuple[Any, Any]]
BAD_TENSORS: list[tuple[type[Exception], str, Change]] = [
    (ValueError, r"teacher_\w+ must have the student's batch size 8, got 7",
     lambda s, t: (s, t[:7])),
    (ValueError, r"student_\w+ must have at least one row and one feature, got shape \(0, ",
     lambda s, t: (s[:0], t[:0])),
    (ValueError, r"teacher_\w+ must have at least one row and one feature, got shape \(8, 0",
     lambda s, t: (s, t[:, :0])),
    (ValueError, r"student_\w+ must have shape \(N, .*\), got \(8,\)",
     lambda s, t: (s.flatten(1).sum(1), t)),
    (ValueError, r"teacher_\w+ must have shape \(N, .*\), got \(\)", lambda s, t: (s, t.sum())),
    (ValueError, r"teacher_\w+ must be on the student's device cpu, got meta",
     lambda s, t: (s, t.to("meta"))),
    (TypeError, r"student_\w+ must be a torch.Tensor, got list", lambda s, t: (s.tolist(), t)),
    (TypeError, r"teacher_\w+ must be a torch.Tensor, got NoneType", lambda s, t: (s, None)),
    (TypeError, r"student_\w+ must have dtype float32, .*, got torch.int64",
     lambda s, t: (s.long(), t)),
    (TypeError, r"teacher_\w+ must have dtype .*, got torch.complex64",
     lambda s, t: (s, t.cfloat())),
    (TypeError, r"student_\w+ must be a dense tensor, got layout torch.sparse_coo",
     lambda s, t: (s.to_sparse(), t)),
]  # fmt: skip


def tensors_of(case: LossCase) -> tuple[Tensor, Tensor]:
    return (MAPS, OTHER_MAPS) if case.loss == "attention_transfer_loss" else (S, T)


def ways_of(case: LossCase, **options: Any) -> list[Callable[..., Tensor]]:
    """Function, reference and module."""

    def by_module(*tensors: Tensor) -> Tensor:
        loss: Tensor = type(case.module())(**options)(*tensors)
        return loss

    functions = (getattr(place, case.loss) for place in (fastkd, fastkd.reference))
    return [*(functools.partial(function, **options) for function in functions), by_module]


@pytest.mark.parametrize(("error", "message", "change"), BAD_TENSORS)
def test_bad_tensors_are_named(error: type[Exception], message: str, change: Change) -> None:
    for case in PLAIN_BATCH_CASES:
        for call in ways_of(case):
            with pytest.raises(error, match=f"^{case.loss}: {message}"):
                call(*change(*tensors_of(case)))


@pytest.mark.parametrize("case", EMBEDDING_CASES, ids=str)
def test_embeddings_have_two_dimensions(case: LossCase) -> None:
    for call in ways_of(case):
        with pytest.raises(ValueError, match=r"student_embeddings must have shape \(N, D\), got"):
            call(MAPS, T)


RELATIONS = ("rkd_distance_loss", "rkd_angle_loss", "rkd_loss", "cosine_similarity_loss")
REDUCED = (*RELATIONS, "correlation_loss")
BAD_OPTIONS: list[tuple[tuple[str, ...], type[Exception], str, dict[str, Any]]] = [
    (RELATIONS, ValueError, r"criterion must be one of smooth_l1, l1, l2, got 'huber'",
     {"criterion": "huber"}),
    (RELATIONS, ValueError, r"criterion must be one of .*, got None", {"criterion": None}),
    (RELATIONS, ValueError, r"criterion must be one of .*, got array",
     {"criterion": np.array(["l1"])}),
    (RELATIONS, ValueError, r'beta must be in \[1e-18, 1e18\] \(for 0, criterion="l1"\), got 0',
     {"beta": 0}),
    (RELATIONS, ValueError, r"beta must be in .*, got -1.0", {"beta": -1.0}),
    (RELATIONS, ValueError, r"beta must be in .*, got nan", {"beta": math.nan}),
    (RELATIONS, TypeError, r"beta must be a real number, got str '1'", {"beta": "1"}),
    (REDUCED, ValueError, r"reduction must be one of mean, sum, mean_distinct, got 'none'",
     {"reduction": "none"}),
    (("similarity_preserving_loss", "pkt_loss", "attention_transfer_loss"), ValueError,
     r"reduction must be one of mean, sum, got 'mean_distinct'", {"reduction": "mean_distinct"}),
    (("rkd_distance_loss", "rkd_loss"), TypeError, r"squared must be bool, got int 1",
     {"squared": 1}),
    (("rkd_loss",), ValueError, r"distance_weight must be >= 0 and finite, got -1",
     {"distance_weight": -1}),
    (("rkd_loss",), ValueError, r"angle_weight must be >= 0 and finite, got inf",
     {"angle_weight": math.inf}),
    (("rkd_loss",), ValueError, r"distance_weight must be >= 0 and finite, got 10000",
     {"distance_weight": 10**400}),
    (("rkd_loss",), TypeError, r"angle_weight must be a real number, got bool True",
     {"angle_weight": True}),
    (("correlation_loss",), ValueError, r"gamma must be in \[1e-6, 1e6\], got 0.0",
     {"gamma": 0.0}),
    (("attention_transfer_loss",), ValueError, r"p must be > 0 and finite, got 0", {"p": 0}),
    (("attention_transfer_loss",), ValueError, r"p must be > 0 and finite, got inf",
     {"p": math.inf}),
    (("attention_transfer_loss",), TypeError, r"interpolate must be bool, got str 'area'",
     {"interpolate": "area"}),
    *(((*REDUCED, "similarity_preserving_loss", "pkt_loss"), error,
       f"eps must be {rule}, got {came}", {"eps": eps})
      for error, rule, came, eps in (
          (ValueError, r"in \[1e-18, 1e18\]", "0.0", 0.0),
          (ValueError, r"in \[1e-18, 1e18\]", "-1e-12", -1e-12),
          (ValueError, r"in \[1e-18, 1e18\]", "nan", math.nan),
          (ValueError, r"in \[1e-18, 1e18\]", "inf", math.inf),
          (TypeError, "a real number", "Fraction", Fraction(1, 2)),
          (TypeError, "a real number", r"Tensor tensor\(1.\)", torch.tensor(1.0)),
      )),
]  # fmt: skip


@pytest.mark.parametrize(("losses", "error", "message", "options"), BAD_OPTIONS)
def test_bad_options_are_named(
    losses: tuple[str, ...], error: type[Exception], message: str, options: dict[str, Any]
) -> None:
    cases = [case for case in PLAIN_BATCH_CASES if case.loss in losses]
    assert len(cases) == len(losses)
    for case in cases:
        for call in ways_of(case, **options):
            with pytest.raises(error, match=f"^{case.loss}: {message}"):
                call(*tensors_of(case))


@pytest.mark.parametrize("shape", [(8, 5, 2, 2), (8, 5, 4), (8, 5, 4, 5), (8, 5, 16)])
def test_other_spatial_sizes_name_the_way_out(shape: tuple[int, ...]) -> None:
    message = (
        r"^attention_transfer_loss: teacher_features must have the student's spatial size "
        r"\(4, 4\), got \(.*\) \(interpolate=True"
    )
    for call in ways_of(ATTENTION):
        with pytest.raises(ValueError, match=message):
            call(MAPS, torch.zeros(shape))


def test_interpolation_is_of_two_dimensions() -> None:
    message = (
        r"teacher_features must have shape \(N, C, H, W\) where interpolate=True, got \(8, 5, 4\)"
    )
    for call in ways_of(ATTENTION, interpolate=True):
        with pytest.raises(ValueError, match=message):
            call(MAPS, torch.zeros(8, 5, 4))


@every_case
def test_freed_storage_is_an_error_not_a_crash(backend: str, case: LossCase) -> None:
    for which in (0, 1):
        tensors = [t.clone() for t in tensors_of(case)]
        tensors[which].untyped_storage().resize_(0)
        with pytest.raises(RuntimeError, match="no storage"):
            case.run(Inputs(tuple(tensors)))


def test_features_freed_before_backward_are_an_error_not_a_crash(backend: str) -> None:
    student = torch.randn(2, 3, 4, 4, requires_grad=True)
    loss = fastkd.attention_transfer_loss(student, torch.randn(2, 3, 4, 4))
    student.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="no storage"):
        loss.backward()


@every_case
def test_the_registered_op_checks_what_it_is_given(case: LossCase) -> None:
    options = dataclasses.asdict(case.module().options)
    op = getattr(torch.ops.fastkd, case.loss)
    student, teacher = tensors_of(case)
    with pytest.raises(ValueError, match=f"{case.loss}: .*batch size 8, got 7"):
        op(student, teacher[:7], *options.values(), True)
    with pytest.raises(TypeError, match=f"fastkd::{case.loss} has no float64 kernel"):
        op(student.double(), teacher, *options.values(), True)
    with pytest.raises(ValueError, match=f"{case.loss}: reduction must be one of"):
        op(student, teacher, *{**options, "reduction": "x"}.values(), True)


def test_the_gradient_op_checks_what_it_is_given() -> None:
    op = torch.ops.fastkd.attention_transfer_gradient
    with pytest.raises(ValueError, match=r"map_grad must be float32 \(8, 16\) on cpu, got .*8"):
        op(MAPS, torch.zeros(8), torch.tensor(1.0), 2.0)
    with pytest.raises(ValueError, match=r"grad_loss must be float32 \(\) on cpu, got torch.int64"):
        op(MAPS, torch.zeros(8, 16), torch.tensor(1), 2.0)
    with pytest.raises(TypeError, match="has no float64 kernel"):
        op(MAPS.double(), torch.zeros(8, 16), torch.tensor(1.0), 2.0)


@every_case
def test_the_module_is_the_function(case: LossCase) -> None:
    inputs = case.make_inputs(case.geometry)
    module = case.module()
    assert module(*inputs.tensors).equal(case.run(inputs))
    assert f"reduction='{case.family.reductions[0]}'" in repr(module)
    total = type(module)(reduction="sum")(*inputs.tensors)
    assert total.equal(case.run(inputs, reduction="sum"))
    assert not total.equal(case.run(inputs))
