# SPDX-License-Identifier: Apache-2.0
"""Cache a teacher once by its K largest classes, and train students from the file.

    python -m examples.cached_teacher

The models predict the next byte of Python's own documentation, so nothing is downloaded. The
teacher runs once over a part of the text, and a safetensors file keeps the log-probabilities of its
20 most probable bytes. Students learn from the first 1, 5 or 20 of them with fastkd.topk_kd_loss,
without labels and with no teacher in memory. The other bytes are one class, the bucket, or are
dropped. For comparison, one student learns from the whole teacher and one from the labels.
"""

import argparse
import dataclasses
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from tqdm import tqdm

from benchmarks.command_line import exit_with
from examples import report
from examples.cached_teacher_experiment import (
    BYTES,
    Cache,
    Quality,
    Settings,
    StepLoss,
    Tail,
    Text,
    from_cache,
    from_labels,
    from_teacher,
    quality,
    train,
)
from examples.options import count, positive

TAILS: tuple[Tail, ...] = get_args(Tail)
TEACHER, LABELS, WHOLE = "teacher", "student, labels", "student, all of the teacher"

Results = dict[str, list[Quality]]  # a seed each


def student_of(tail: str, named: int) -> str:
    """The name of a student of the cache."""
    return f"student, K = {named}, {tail}"


def main(arguments: Sequence[str] | None = None, settings: Settings | None = None) -> None:
    """Run the command line."""
    defaults = settings or Settings()
    parser = argparse.ArgumentParser(prog="python -m examples.cached_teacher", description=__doc__)
    for name, kind in (
        ("temperature", positive),
        ("seeds", count),
        ("teacher_steps", count),
        ("student_steps", count),
    ):
        parser.add_argument(
            f"--{name}", type=kind, default=getattr(defaults, name), help="default: %(default)s"
        )
    parser.add_argument(
        "--output_dir", type=Path, default=Path("demo-output"), help="default: %(default)s"
    )
    given = vars(parser.parse_args(arguments))
    output: Path = given.pop("output_dir")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(str(error))
    settings = dataclasses.replace(defaults, **given)

    start = time.perf_counter()
    print(f"{report.describe_machine()}\n", flush=True)
    cache = Cache(output / "teacher.safetensors")
    results = run(settings, cache)
    print(f"{describe(settings, cache)}\n\n{table(results)}")

    from examples import cached_teacher_plot  # noqa: PLC0415 - matplotlib takes a second to import

    picture = output / "cached_teacher.png"
    cached_teacher_plot.draw(results, settings, picture)
    seconds = time.perf_counter() - start
    print(f"\nCache: {cache.path}\nPicture: {picture}\n{seconds:.0f} seconds")


def describe(settings: Settings, cache: Cache) -> str:
    """Who learns from what, and how large the file is."""
    tokens = settings.windows * settings.length
    whole = tokens * BYTES * 2
    size = cache.path.stat().st_size
    return (
        f"Teacher: a GRU of {settings.teacher_width}, {settings.teacher_steps} steps. Students: of "
        f"{settings.student_width}, {settings.student_steps} steps, T = {settings.temperature:g}.\n"
        f"Cache of {tokens:,} bytes of text: {size / 2**20:.1f} MiB for "
        f"{max(settings.counts)} classes each; all {BYTES} logits in float16 would be "
        f"{whole / 2**20:.0f} MiB."
    )


def run(settings: Settings, cache: Cache) -> Results:
    """Train the teacher, write the cache, and train the students of every seed."""
    text = Text(settings)
    students = 2 + len(TAILS) * len(settings.counts)
    steps = settings.teacher_steps + settings.seeds * students * settings.student_steps
    with tqdm(total=steps, unit="step", leave=False) as progress:
        progress.set_description(TEACHER)
        labels = from_labels(text.batches(settings, seed=0))
        teacher = train(
            settings.teacher_width, labels, settings.teacher_steps, 0, settings, progress.update
        )
        results: Results = {TEACHER: [quality(teacher, teacher, text.test)]}
        progress.set_description("cache")
        cache.write(teacher, text.training[: settings.windows], settings)
        for seed in range(settings.seeds):
            losses: dict[str, StepLoss] = {
                LABELS: from_labels(window for window, *_ in cache.batches(settings, seed)),
                WHOLE: from_teacher(teacher, cache.batches(settings, seed), settings.temperature),
            }
            for tail in TAILS:
                for named in settings.counts:
                    batches = cache.batches(settings, seed)
                    losses[student_of(tail, named)] = from_cache(
                        batches, named, tail, settings.temperature
                    )
            for name, loss in losses.items():
                progress.set_description(name)
                student = train(
                    settings.student_width, loss, settings.student_steps, 1 + seed, settings,
                    progress.update,
                )  # fmt: skip
                results.setdefault(name, []).append(quality(student, teacher, text.test))
    return results


def table(results: Results) -> str:
    """Means over the seeds, and the spread of the accuracy."""
    rows = [["", "next byte right", "sd", "nats a byte", "KL(teacher, it)"]]
    for name, found in results.items():
        accuracies = [each.accuracy for each in found]
        spread = f"{100 * statistics.stdev(accuracies):.2f}" if len(found) > 1 else "-"
        divergence = statistics.mean(each.divergence for each in found)
        rows.append(
            [
                name,
                f"{statistics.mean(accuracies):.2%}",
                spread,
                f"{statistics.mean(each.cross_entropy for each in found):.3f}",
                "-" if name == TEACHER else f"{divergence:.3f}",
            ]
        )
    return f"{report.format_table(rows)}\nText that no model has seen. Only labels saw the labels."


if __name__ == "__main__":
    exit_with(main)
