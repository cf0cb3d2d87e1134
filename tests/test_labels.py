# SPDX-License-Identifier: Apache-2.0
"""shift_labels: targets of next-token prediction, for logits that stay whole."""

import pytest
import torch

import fastkd


@pytest.mark.parametrize("shape", [(5,), (2, 6), (2, 3, 4), (2, 1), (3, 0), (0, 4)])
def test_every_position_gets_the_next_label(shape: tuple[int, ...]) -> None:
    labels = torch.randint(0, 50, shape)
    target = fastkd.shift_labels(labels, ignore_index=-7)
    assert target.shape == labels.shape
    assert target[..., :-1].equal(labels[..., 1:])
    assert (target[..., -1:] == -7).all()


def test_the_loss_is_that_of_sliced_logits() -> None:
    student, teacher = torch.randn(2, 3, 6, 20)
    labels = torch.randint(0, 20, (3, 6))
    labels[1, 4:] = -100
    student.requires_grad_()
    whole = fastkd.kd_loss(student, teacher, fastkd.shift_labels(labels))
    sliced = fastkd.kd_loss(student[:, :-1], teacher[:, :-1], labels[:, 1:])
    torch.testing.assert_close(whole, sliced)
    of_whole, of_sliced = (torch.autograd.grad(loss, student)[0] for loss in (whole, sliced))
    torch.testing.assert_close(of_whole, of_sliced)


def test_the_labels_stay() -> None:
    labels = torch.arange(4)
    fastkd.shift_labels(labels)[0] = 9
    assert labels.equal(torch.arange(4))


def test_compiled() -> None:
    labels = torch.randint(0, 50, (2, 6))
    compiled = torch.compile(fastkd.shift_labels, fullgraph=True, backend="eager")
    assert compiled(labels).equal(fastkd.shift_labels(labels))


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        ([1, 2], TypeError, "labels must be a torch.Tensor, got list"),
        (torch.ones(3), TypeError, "labels must be int64, got torch.float32"),
        (torch.tensor(3), ValueError, r"labels must have shape \(..., L\), got a 0-d tensor"),
    ],
)
def test_errors(labels: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"shift_labels: {message}"):
        fastkd.shift_labels(labels)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ignore_index", "error", "message"),
    [
        (0.5, TypeError, "ignore_index must be int, got float 0.5"),
        (True, TypeError, "ignore_index must be int, got bool True"),
        (None, TypeError, "ignore_index must be int, got NoneType None"),
        (2**63, ValueError, f"ignore_index must be an int64, got {2**63}"),
    ],
)
def test_an_ignore_index_is_not_made_into_another(
    ignore_index: object, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"shift_labels: {message}"):
        fastkd.shift_labels(torch.arange(3), ignore_index=ignore_index)  # type: ignore[arg-type]
