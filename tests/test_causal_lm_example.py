# SPDX-License-Identifier: Apache-2.0
"""The language-model example: its parts on small vocabularies, and a short run of the whole."""

import dataclasses
import sys
from pathlib import Path

import pytest
import torch

import fastkd

ROOT = Path(__file__).parents[1]
if not (ROOT / "examples").is_dir():
    pytest.skip("the examples are not beside the tests", allow_module_level=True)
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))  # neither the examples nor the benchmarks are installed packages

for package in ("transformers", "matplotlib", "tqdm"):
    pytest.importorskip(package, reason="the example's packages are an extra, fastkd[causal-lm]")

from examples import causal_lm  # noqa: E402
from examples.causal_lm_experiment import (  # noqa: E402
    FROM_LABELS,
    FROM_TEACHER,
    IGNORED,
    TEACHER,
    Batch,
    Settings,
    Size,
    Text,
    distillation_loss,
    label_loss,
    quality,
    step_gradients,
    train,
)

SHORT = Settings(
    max_steps=6,
    per_device_train_batch_size=3,
    max_length=16,
    teacher_steps=6,
    teacher=Size(320, 32, 2),
    student=Size(300, 32, 1),
)


@pytest.fixture(scope="module")
def text() -> Text:
    return Text()


def test_batches_are_pieces_of_the_training_text(text: Text) -> None:
    batches = text.batches(SHORT, seed=0)
    training = bytes(text.bytes[: text.training].tolist())
    lengths = set()
    for _ in range(5):
        batch = next(batches)
        assert batch.input_ids.shape == (3, 16)
        for tokens, labels in zip(*batch, strict=True):
            length = int((labels != IGNORED).sum())
            lengths.add(length)
            assert labels[:length].equal(tokens[:length])
            assert bytes(tokens.tolist()) in training
    assert min(lengths) >= 8
    assert len(lengths) > 3
    again = next(text.batches(SHORT, seed=0))
    assert again.input_ids.equal(next(text.batches(SHORT, seed=0)).input_ids)


def test_the_test_pieces_are_not_of_the_training_text(text: Text) -> None:
    first = text.test_batch(SHORT).input_ids[0]
    assert first.equal(text.bytes[text.training : text.training + 16])


@pytest.mark.parametrize("distilled", [False, True], ids=["labels", "teacher"])
def test_batches_of_a_step_weigh_by_their_tokens(text: Text, distilled: bool) -> None:
    """The gradient of a step does not depend on how its sequences lie in batches."""
    student, teacher = SHORT.student.build(0), SHORT.teacher.build(1)
    loss = distillation_loss(teacher, SHORT) if distilled else label_loss
    batches = [batch for batch, _ in zip(text.batches(SHORT, 0), range(3), strict=False)]
    joined = Batch(*(torch.cat(tensors) for tensors in zip(*batches, strict=True)))
    found = []
    for of_step in (batches, [joined]):
        student.zero_grad()
        value = step_gradients(student, of_step, loss)
        found.append((value, [weight.grad.clone() for weight in student.parameters()]))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    for apart, together in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(apart, together, rtol=1e-4, atol=1e-6)


def test_the_loss_is_kd_loss_of_the_shared_columns(text: Text) -> None:
    student, teacher = SHORT.student.build(0), SHORT.teacher.build(1)
    batch = next(text.batches(SHORT, 0))
    target = fastkd.shift_labels(batch.labels)
    tokens = (target != IGNORED).sum()
    expected = fastkd.kd_loss(
        student(input_ids=batch.input_ids).logits,
        teacher(input_ids=batch.input_ids).logits[..., :300],
        target,
        alpha=1.0,
        divergence="js",
        temperature=SHORT.temperature,
        temperature_squared=False,
    )
    found = distillation_loss(teacher, SHORT)(student, batch, tokens)
    torch.testing.assert_close(found, expected)


def test_a_student_comes_nearer_to_its_teacher(text: Text) -> None:
    teacher = SHORT.teacher.build(1)
    loss = distillation_loss(teacher, SHORT)
    test = text.test_batch(SHORT)
    before = quality(SHORT.student.build(SHORT.seed), teacher, test)
    student = train(SHORT.student, text, loss, SHORT, 30, lambda _: None)
    assert quality(student, teacher, test).divergence < before.divergence / 2


def test_the_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "--output_dir",
        str(tmp_path),
        "--beta",
        "0.1",
        "--gradient_accumulation_steps",
        "1",
    ]
    causal_lm.main(arguments, dataclasses.replace(SHORT, max_length=8))
    said = capsys.readouterr().out
    for name in (TEACHER, FROM_LABELS, FROM_TEACHER):
        assert f"\n{name}  " in said
    assert "beta 0.1" in said
    assert "1 batches" in said
    assert (tmp_path / "causal_lm.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--beta", "2"], "--beta: must be a number from 0 to 1, got '2'"),
        (["--max_steps", "0"], "--max_steps: must be a whole number of 1 or more, got '0'"),
        (["--lmbda", "0.5"], "unrecognized arguments: --lmbda 0.5"),
    ],
)
def test_wrong_arguments(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        causal_lm.main(arguments, SHORT)
    assert message in capsys.readouterr().err
