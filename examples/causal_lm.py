# SPDX-License-Identifier: Apache-2.0
"""Distil a causal language model from one with another vocabulary, with fastkd.linear_kd_loss.

    python -m examples.causal_lm

Teacher and student are tiny Qwen2 models of transformers with random weights. They have the
vocabulary sizes of the real models, 152,064 and 151,936 columns, which share their tokens and
differ in their padding. The models learn the bytes of Python's own documentation, so nothing is
downloaded. The arguments have the names of TRL's trainers.
"""

import argparse
import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.command_line import exit_with
from examples import report
from examples.causal_lm_experiment import (
    FROM_LABELS,
    FROM_TEACHER,
    TEACHER,
    Quality,
    Settings,
    Text,
    distillation_loss,
    label_loss,
    quality,
    train,
)
from examples.options import count, fraction, positive

EVALUATIONS = 10  # of a student while it learns

Curves = dict[str, list[tuple[int, Quality]]]


def main(arguments: Sequence[str] | None = None, settings: Settings | None = None) -> None:
    """Run the command line."""
    parser = _parser(settings or Settings())
    given = vars(parser.parse_args(arguments))
    output: Path = given.pop("output_dir")
    settings = dataclasses.replace(settings or Settings(), **given)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(str(error))

    start = time.perf_counter()
    print(f"{report.describe_machine()}\n\n{describe(settings)}\n", flush=True)
    curves = run(settings)
    print(f"\n{table(curves)}")

    from examples import causal_lm_plot  # noqa: PLC0415 - matplotlib takes a second to import

    picture = output / "causal_lm.png"
    causal_lm_plot.draw(curves, picture)
    print(f"\nPicture: {picture}\n{time.perf_counter() - start:.0f} seconds")


def describe(settings: Settings) -> str:
    """Who learns from what."""
    teacher, student = settings.teacher, settings.student
    sequences = settings.per_device_train_batch_size * settings.gradient_accumulation_steps
    return (
        f"Teacher: {teacher.num_hidden_layers} layers of {teacher.hidden_size}, "
        f"{teacher.vocab_size:,} columns, {settings.teacher_steps} steps. Students: "
        f"{student.num_hidden_layers} layers of {student.hidden_size}, {student.vocab_size:,} "
        f"columns, {settings.max_steps} steps.\nA step: {settings.gradient_accumulation_steps} "
        f"batches, {sequences} sequences of up to {settings.max_length} bytes; one mean over all "
        f"their tokens.\nDivergence: generalised Jensen-Shannon, beta {settings.beta:g}, "
        f"temperature {settings.temperature:g}."
    )


def run(settings: Settings) -> Curves:
    """Train teacher and students; what they reach, by step."""
    text = Text()
    test = text.test_batch(settings)
    steps = settings.teacher_steps + 2 * settings.max_steps
    with tqdm(total=steps, unit="step", leave=False) as progress:
        progress.set_description(TEACHER)
        teacher = train(
            settings.teacher, text, label_loss, settings, settings.teacher_steps,
            lambda _: progress.update(),
        )  # fmt: skip
        curves: Curves = {TEACHER: [(settings.teacher_steps, quality(teacher, teacher, test))]}
        every = max(1, settings.max_steps // EVALUATIONS)
        for name, loss in (
            (FROM_LABELS, label_loss),
            (FROM_TEACHER, distillation_loss(teacher, settings)),
        ):
            progress.set_description(name)
            curve = curves[name] = []
            taken = 0

            def after_step(model: object, curve: list[tuple[int, Quality]] = curve) -> None:
                nonlocal taken
                taken += 1
                progress.update()
                if taken % every == 0 or taken == settings.max_steps:
                    curve.append((taken, quality(model, teacher, test)))

            train(settings.student, text, loss, settings, settings.max_steps, after_step)
    return curves


def table(curves: Curves) -> str:
    """What each reaches in the end."""
    rows = [["", "nats a byte", "next byte right", "KL(teacher, it)"]]
    for name, curve in curves.items():
        last = curve[-1][1]
        of_teacher = "-" if name == TEACHER else f"{last.divergence:.3f}"
        rows.append([name, f"{last.cross_entropy:.3f}", f"{last.accuracy:.1%}", of_teacher])
    return f"{report.format_table(rows)}\n16 pieces of text that no model has seen."


def _parser(defaults: Settings) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m examples.causal_lm", description=__doc__)
    kinds: dict[str, Callable[[str], Any]] = {
        "temperature": positive,
        "beta": fraction,
        "learning_rate": positive,
        "max_steps": count,
        "per_device_train_batch_size": count,
        "gradient_accumulation_steps": count,
        "max_length": count,
        "seed": int,
        "teacher_steps": count,
    }
    for name, kind in kinds.items():
        parser.add_argument(
            f"--{name}", type=kind, default=getattr(defaults, name), help="default: %(default)s"
        )
    parser.add_argument(
        "--output_dir", type=Path, default=Path("demo-output"), help="default: %(default)s"
    )
    return parser


if __name__ == "__main__":
    exit_with(main)
