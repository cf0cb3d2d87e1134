# SPDX-License-Identifier: Apache-2.0
"""The relational example: its parts on toy data, and a short run of the whole."""

import dataclasses
import math
import re
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

for package in ("sklearn", "matplotlib", "tqdm"):
    pytest.importorskip(package, reason="the examples' packages are an extra, fastkd[demo]")

from examples import relational, relational_plot, training  # noqa: E402
from examples import relational_experiment as experiment  # noqa: E402
from examples.data import Split, load, split  # noqa: E402
from examples.recipes import RELATIONAL, RKD_LEARNING_RATE, Network  # noqa: E402
from examples.relational_experiment import (  # noqa: E402
    NETWORKS,
    PIXELS,
    RKD_ALL,
    RKD_FEW,
    TRIPLET_ALL,
    TRIPLET_FEW,
    RelationalResult,
)

SHORT = dataclasses.replace(RELATIONAL, epochs=1)
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def parts() -> Split:
    return split(load("digits"), SHORT, seed=0)


def result(seed: int, **recall: float) -> RelationalResult:
    figures = dict.fromkeys((PIXELS, *NETWORKS), 0.9)
    return RelationalResult(seed, figures | recall, {})


def has_line(pattern: str, text: str) -> bool:
    return re.search(pattern, text, re.MULTILINE) is not None


def test_recall_counts_rows_whose_nearest_other_row_has_their_label() -> None:
    # Nearest: 0 <-> 1, 2 -> 1 of another label, 3 <-> 4.
    embeddings = torch.tensor([[0.0, 0.0], [1.0, 0.0], [2.5, 0.0], [9.0, 9.0], [9.0, 8.0]])
    labels = torch.tensor([0, 0, 1, 1, 1])
    assert experiment.recall_at_1(embeddings, labels) == pytest.approx(4 / 5)


def test_recall_does_not_count_the_query_itself() -> None:
    embeddings = torch.tensor([[0.0], [1.0]])
    assert experiment.recall_at_1(embeddings, torch.tensor([0, 1])) == 0
    assert experiment.recall_at_1(embeddings, torch.tensor([1, 1])) == 1


def test_recall_sees_small_distances_far_from_the_origin() -> None:
    # |x|^2 - 2xy + |y|^2 in float32 would call all of these distances equal.
    embeddings = torch.tensor([[10000.0], [10000.5], [10002.0], [10002.25]])
    assert experiment.recall_at_1(embeddings, torch.tensor([0, 0, 1, 1])) == 1


def test_triplet_loss_is_the_mean_over_triplets_that_are_not_zero() -> None:
    embeddings = torch.tensor([[0.0], [1.0], [1.5]], requires_grad=True)
    loss = experiment.triplet_loss(embeddings, torch.tensor([0, 0, 1]), margin=1.0)
    # Anchor 0: 1 - 1.5 + 1; anchor 1: 1 - 0.5 + 1; anchor 2 has no positive.
    torch.testing.assert_close(loss, torch.tensor((0.5 + 1.5) / 2))
    loss.backward()
    assert embeddings.grad is not None
    assert embeddings.grad.isfinite().all()


def test_triplet_loss_of_a_batch_without_triplets_is_zero_with_zero_gradient() -> None:
    embeddings = torch.randn(3, 2, requires_grad=True)
    loss = experiment.triplet_loss(embeddings, torch.tensor([0, 1, 2]), margin=1.0)
    loss.backward()
    assert loss == 0
    assert embeddings.grad is not None
    assert not embeddings.grad.any()


def test_relational_loss_is_fastkd_s_on_the_teacher_s_embedding_of_the_batch(parts: Split) -> None:
    teacher = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 5))
    index = torch.tensor([5, 0, 7, 3])
    student = torch.randn(4, 2)
    loss = experiment.relational_loss(parts.train, teacher)(student, index)
    expected = fastkd.reference.rkd_loss(student, teacher(parts.train.pixels[index]).detach())
    torch.testing.assert_close(loss, expected)


def test_students_see_the_images_they_should_and_as_many_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[int, float, int]] = []
    train = training.train

    def spy(network: Network, images: object, loss: object, **options: object) -> object:
        seen.append((len(images), network.learning_rate, options["epochs"]))
        return train(network, images, loss, **{**options, "epochs": 1})

    monkeypatch.setattr(training, "train", spy)
    images = load("digits")
    told: list[str] = []
    one = experiment.run_seed(images, RELATIONAL, 0, lambda name, _: told.append(name))
    rates = RELATIONAL.teacher.learning_rate, RELATIONAL.student.learning_rate, RKD_LEARNING_RATE
    assert told == list(NETWORKS)
    assert seen == [
        (997, rates[0], 64), (100, rates[1], 512), (100, rates[2], 512), (997, rates[2], 64),
        (997, rates[1], 64),
    ]  # fmt: skip
    assert experiment.batches_of_network(split(images, RELATIONAL, 0), RELATIONAL) == 64 * 16
    assert {name: of.shape[1] for name, of in one.embeddings.items()} == {
        "pixels": 64, "teacher": 64, TRIPLET_FEW: 4, RKD_FEW: 4, RKD_ALL: 4, TRIPLET_ALL: 4,
    }  # fmt: skip


def test_a_seed_repeats_and_another_differs() -> None:
    images = load("digits")
    first, again, other = (
        experiment.run_seed(images, SHORT, seed, lambda *_: None) for seed in (3, 3, 4)
    )
    assert first.recall == again.recall
    for name in NETWORKS:
        assert torch.equal(first.embeddings[name], again.embeddings[name])
        assert not torch.equal(first.embeddings[name], other.embeddings[name])


def test_embeddings_have_length_one(parts: Split) -> None:
    loss = experiment.metric_loss(parts.transfer)
    model = training.train(
        RELATIONAL.student, parts.transfer, loss, epochs=1, seed=0, after_epoch=lambda: None
    )
    lengths = experiment.embed(model, parts.test).norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones(500))


def test_table_has_mean_deviation_and_every_seed(parts: Split) -> None:
    results = [result(0, **{RKD_ALL: 0.94}), result(1, **{RKD_ALL: 0.96})]
    table = relational.recall_table(results, parts)
    assert has_line(r"^Recall@1 of 500 test images, % +mean +sd +seed 0 +seed 1$", table)
    assert has_line(r"^student, RKD, all 997 images +95\.0 +1\.4 +94\.0 +96\.0$", table)
    single = relational.recall_table(results[:1], parts)
    assert has_line(r"^student, RKD, all 997 images +94\.0 +- +94\.0$", single)


def test_comparisons_tell_gains_and_losses(parts: Split) -> None:
    results = [
        result(0, **{RKD_ALL: 0.95, TRIPLET_FEW: 0.85}),
        result(1, **{RKD_ALL: 0.93, TRIPLET_FEW: 0.85}),
    ]
    text = relational.comparisons(results, parts)
    assert has_line(r"^RKD, 997 images - triplet, 100 labels +\+9\.0 +1\.4 +2 of 2", text)
    assert has_line(r"^RKD - triplet, the same 997 images +\+4\.0 ", text)
    lost = relational.comparisons([result(0, **{RKD_FEW: 0.8})], parts)
    assert has_line(r"^RKD - triplet, the same 100 images +-10\.0 +- +0 of 1", lost)


def test_picture_says_when_rkd_did_not_help(parts: Split) -> None:
    better, worse = result(0, **{RKD_ALL: 0.95}), result(0, **{RKD_ALL: 0.85})
    said = relational_plot.finding([better], parts)
    assert said.startswith("90.0% recall@1 from 100 labels, 95.0% from a teacher's")
    assert "did not help" in relational_plot.finding([worse], parts)


def test_plane_has_the_first_two_principal_components() -> None:
    embeddings = torch.randn(50, 3) * torch.tensor([0.1, 5.0, 2.0]) + 7
    points, share = relational_plot.plane(embeddings)
    centred = embeddings.double() - embeddings.double().mean(dim=0)
    eigenvalues = torch.linalg.eigvalsh(centred.T @ centred).flip(0)
    torch.testing.assert_close(points.square().sum(dim=0), eigenvalues[:2])
    assert share == pytest.approx(float(eigenvalues[:2].sum() / eigenvalues.sum()))


def test_turning_undoes_a_turn_and_a_reflection() -> None:
    points = torch.randn(20, 2, dtype=torch.float64)
    angle = math.radians(40)
    mirrored_turn = torch.tensor(
        [[math.cos(angle), math.sin(angle)], [math.sin(angle), -math.cos(angle)]],
        dtype=torch.float64,
    )
    torch.testing.assert_close(relational_plot.turned(points @ mirrored_turn, points), points)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "0"], "--seeds: must be a whole number of 1 or more, got '0'"),
        (["--output", __file__], "File exists"),
    ],
)
def test_bad_options_are_named(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        relational.main(arguments)
    assert message in capsys.readouterr().err


def test_short_run_prints_the_tables_and_saves_the_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new" / "folder"
    relational.main(["--seeds", "1", "--output", str(output)], SHORT)
    picture = output / "relational.png"
    assert picture.read_bytes().startswith(PNG_SIGNATURE)
    printed = capsys.readouterr()
    assert "Teacher 64-256-256-64" in printed.out
    assert "Students 64-32-4" in printed.out
    for words in (
        "the pixels, no network",
        "teacher, triplet, 997 labels",
        "student, triplet, 100 labels",
        "student, RKD, the same 100 images",
        "student, RKD, all 997 images",
        "student, triplet, all 997 labels",
    ):
        assert has_line(rf"^{words} +[\d.]+ +- +[\d.]+$", printed.out), words
    assert str(picture) in printed.out
    assert "80/80" in printed.err  # the progress bar: five networks of sixteen batches
