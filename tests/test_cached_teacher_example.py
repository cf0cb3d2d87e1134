# SPDX-License-Identifier: Apache-2.0
"""The example of a cached teacher: what is in the file, and a short run of the whole."""

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

for package in ("safetensors", "matplotlib", "tqdm"):
    pytest.importorskip(package, reason="the example's are an extra, fastkd[cached-teacher]")

from examples import cached_teacher  # noqa: E402
from examples.cached_teacher import LABELS, TAILS, TEACHER, WHOLE, student_of  # noqa: E402
from examples.cached_teacher_experiment import (  # noqa: E402
    ByteModel,
    Cache,
    Settings,
    Text,
    from_cache,
    from_teacher,
    quality,
    train,
)

SHORT = Settings(
    counts=(1, 4), seeds=2, teacher_steps=4, teacher_width=16, student_steps=3, student_width=8,
    windows=32, length=12, batch_size=8,
)  # fmt: skip


@pytest.fixture(scope="module")
def text() -> Text:
    return Text(SHORT)


def test_the_test_text_is_not_trained_on() -> None:
    text = Text(Settings())
    training = {tuple(window.tolist()) for window in text.training}
    seen = sum(tuple(window.tolist()) in training for window in text.test)
    assert seen < len(text.test) / 50  # rules of dashes and the like repeat


def test_the_file_holds_what_the_teacher_says(text: Text, tmp_path: Path) -> None:
    teacher, cache = ByteModel(16, seed=0), Cache(tmp_path / "teacher.safetensors")
    windows = text.training[: SHORT.windows]
    cache.write(teacher, windows, SHORT)
    batches = cache.batches(SHORT, seed=0)
    found = [next(batches) for _ in range(4)]
    read = {tuple(window.tolist()) for batch, *_ in found for window in batch}
    assert read == {tuple(window.tolist()) for window in windows}
    for batch, values, indices in found:
        log_p = torch.log_softmax(teacher(batch[:, :-1]).detach() / SHORT.temperature, -1)
        expected = log_p.topk(4)
        assert indices.long().equal(expected.indices)
        torch.testing.assert_close(values.float(), expected.values, rtol=0, atol=4e-3)


def test_more_classes_come_nearer_to_the_loss_of_the_whole_teacher(
    text: Text, tmp_path: Path
) -> None:
    teacher, student = ByteModel(16, seed=0), ByteModel(8, seed=1)
    cache = Cache(tmp_path / "teacher.safetensors")
    cache.write(teacher, text.training[: SHORT.windows], SHORT)
    whole = from_teacher(teacher, cache.batches(SHORT, 0), SHORT.temperature)(student).item()
    told = [
        from_cache(cache.batches(SHORT, 0), count, "bucket", SHORT.temperature)(student).item()
        for count in (1, 2, 4)
    ]
    assert 0 < told[0] < told[1] < told[2] < whole * (1 + 1e-3)


def test_a_student_of_the_file_comes_nearer_to_its_teacher(text: Text, tmp_path: Path) -> None:
    teacher, cache = ByteModel(16, seed=0), Cache(tmp_path / "teacher.safetensors")
    with torch.no_grad():
        teacher.head.weight.mul_(8)
    cache.write(teacher, text.training[: SHORT.windows], SHORT)
    loss = from_cache(cache.batches(SHORT, 0), 4, "bucket", SHORT.temperature)
    before = quality(ByteModel(8, seed=1), teacher, text.test).divergence
    student = train(8, loss, 120, 1, SHORT, lambda: None)
    assert quality(student, teacher, text.test).divergence < 0.9 * before


def test_the_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cached_teacher.main(["--output_dir", str(tmp_path), "--temperature", "1.5"], SHORT)
    said = capsys.readouterr().out
    names = [student_of(tail, count) for tail in TAILS for count in SHORT.counts]
    for name in (TEACHER, LABELS, WHOLE, *names):
        assert f"\n{name}  " in said
    assert "T = 1.5" in said
    assert (tmp_path / "cached_teacher.png").read_bytes().startswith(b"\x89PNG")
    assert fastkd.info()["cpu"] in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "0"], "--seeds: must be a whole number of 1 or more, got '0'"),
        (["--temperature", "0"], "--temperature: must be a finite number greater than 0, got '0'"),
    ],
)
def test_wrong_arguments(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cached_teacher.main(arguments, SHORT)
    assert message in capsys.readouterr().err
