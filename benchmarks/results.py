# SPDX-License-Identifier: Apache-2.0
"""What a run records, and nothing about how it was found."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from loss_case import Geometry, Kind

ON_GPU = 0  # in place of a thread count
BUSY = 0.05  # share of the CPUs used by others from which a row's times are suspect


@dataclass(frozen=True)
class Figures:
    """One provider in one row."""

    median: float  # seconds per call: forward and backward
    q25: float
    q75: float
    calls: int  # in each timed sample
    page_faults: float  # per call
    # Not measured again for further thread counts and for mapped rows: None.
    peak_bytes: int | None = None  # tensors allocated by the call and alive at once
    resident_bytes: int | None = None  # growth of the process; large rows on Linux only
    loss_error: float | None = None  # relative, against float64
    grad_error: float | None = None  # maximum, relative to the largest true gradient
    host_seconds: float | None = None  # of the CPU to queue a call; short rows on a GPU only


@dataclass(frozen=True)
class Row:
    """One line of a table."""

    loss: str
    label: str
    options: dict[str, Any]
    shape: tuple[int, ...]
    dim: int
    dtype: str
    threads: int  # or ON_GPU
    mapped: bool  # freed memory stays mapped: no page faults of fresh buffers
    rounds: int
    ideal_bytes: int
    student_bytes: int
    error_shape: tuple[int, ...] | None  # the errors' tensors, where fewer rows than timed
    others_busy: float | None  # share of the CPUs that other processes used meanwhile; Linux
    providers: dict[str, Figures]
    failures: dict[str, str] = field(default_factory=dict)  # provider -> why it has no figures
    input_sets: int = 1  # used in turn, so that a cache does not hold them
    kind: Kind = "logits"
    work_unit: str = ""  # a pair, a triplet: what the loss is done for
    work_count: int = 0  # of them, in a call
    width: int | None = None  # of the hidden states that the logits come from
    floor: Figures | None = None  # of what any implementation must do, where a case has that

    @property
    def name(self) -> str:
        """Words for the reader: what the student's tensor is."""
        text = str(Geometry(self.shape, width=self.width))
        text = f"{text} dim={self.dim}" if self.kind == "logits" and self.dim != -1 else text
        return f"{text}, mapped" if self.mapped else text

    @property
    def is_disturbed(self) -> bool:
        """Whether other processes took a share of the CPUs that can spoil the times.

        A GPU keeps its own time, but for calls so short that the CPU sets their pace.
        """
        paced_by_cpu = self.threads != ON_GPU or any(
            figures.host_seconds is not None for figures in self.providers.values()
        )
        return paced_by_cpu and self.others_busy is not None and self.others_busy > BUSY

    def ratio(self, provider: str) -> float | None:
        """Median time over that of fastkd."""
        ours, other = self.providers.get("fastkd"), self.providers.get(provider)
        return None if ours is None or other is None else other.median / ours.median

    @property
    def bandwidth(self) -> float | None:
        """Bytes per second of fastkd, counting only those that any implementation must move."""
        ours = self.providers.get("fastkd")
        return None if ours is None else self.ideal_bytes / ours.median

    @property
    def seconds_per_unit(self) -> float | None:
        """Of fastkd, where the loss is done for pairs or triplets."""
        ours = self.providers.get("fastkd")
        return None if ours is None or not self.work_count else ours.median / self.work_count

    @property
    def over_floor(self) -> float | None:
        """Median time of fastkd over that of the floor: 1 at best."""
        ours = self.providers.get("fastkd")
        return None if ours is None or self.floor is None else ours.median / self.floor.median


@dataclass(frozen=True)
class Results:
    """One run of the benchmark."""

    date: str
    commit: str
    device: dict[str, Any]
    versions: dict[str, Any]
    copy_bandwidth: dict[int, float]  # threads or ON_GPU -> bytes read and written per second
    rows: tuple[Row, ...]
    # Of a GPU: bytes per second of c = a + b, and how the other checks of that run ended.
    add_bandwidth: float | None = None
    checks: dict[str, str] = field(default_factory=dict)

    @property
    def is_gpu(self) -> bool:
        """Whether a GPU was measured."""
        return ON_GPU in self.copy_bandwidth

    @property
    def threads(self) -> tuple[int, ...]:
        """The thread counts, fewest first; only ON_GPU for a GPU."""
        return tuple(sorted(self.copy_bandwidth))


def row_from_json(values: dict[str, Any]) -> Row:
    """The inverse of dataclasses.asdict for a Row that went through JSON."""
    error_shape, floor = values["error_shape"], values.get("floor")
    return Row(
        **{
            **values,
            "shape": tuple(values["shape"]),
            "error_shape": None if error_shape is None else tuple(error_shape),
            "providers": {name: Figures(**each) for name, each in values["providers"].items()},
            "floor": None if floor is None else Figures(**floor),
        }
    )


def results_from_json(values: dict[str, Any]) -> Results:
    """The inverse of `to_json` for a recorded file."""
    return Results(
        **{
            **values,
            "copy_bandwidth": {int(n): rate for n, rate in values["copy_bandwidth"].items()},
            "rows": tuple(row_from_json(row) for row in values["rows"]),
        }
    )


def to_json(record: Row | Results) -> dict[str, Any]:
    """Plain values."""
    return dataclasses.asdict(record)
