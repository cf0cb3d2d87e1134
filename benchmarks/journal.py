# SPDX-License-Identifier: Apache-2.0
"""Rows on disk as they become known: a run that is cut off goes on where it was."""

import json
from pathlib import Path
from typing import Any

from benchmarks.results import Row, row_from_json, to_json

Record = dict[str, Any]


class Journal:
    """What is known so far, a line of JSON each; in memory only without a path.

    Raises ValueError for a file that is no journal: it is neither read nor written over.
    """

    def __init__(self, path: Path | None, resume: bool) -> None:
        self._path = path
        self.records: list[Record] = []
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            known = _whole_records(path)
            self.records = known if resume else []
            # Without what was cut off as it was written.
            path.write_text("".join(map(_line, self.records)), encoding="utf-8")
        self.rows: dict[str, Row] = {
            each["job"]: row_from_json(each["row"]) for each in self.records if "row" in each
        }

    def keep(self, name: str, row: Row) -> None:
        """A row is known."""
        self.rows[name] = row
        self.write({"job": name, "row": to_json(row)})

    def write(self, record: Record) -> None:
        """Add a line."""
        self.records.append(record)
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(_line(record))


def _line(record: Record) -> str:
    return json.dumps(record) + "\n"


def _whole_records(path: Path) -> list[Record]:
    """The records that were written to their end."""
    if not path.exists():
        return []
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        records = [json.loads(line) for line in lines if line.endswith("\n")]
    except ValueError as error:
        raise ValueError(f"{path}: expected a journal of a benchmark, got {error}") from None
    if any(not isinstance(record, dict) for record in records) or (lines and not records):
        raise ValueError(f"{path}: expected a journal of a benchmark, got {lines[0][:40]!r}")
    return records
