# SPDX-License-Identifier: Apache-2.0
"""Rows on disk as they become known: a run that is cut off goes on where it was."""

import json
from pathlib import Path
from typing import Any

from benchmarks.results import Row, row_from_json, to_json

Record = dict[str, Any]


class Journal:
    """What is known so far, a line of JSON each."""

    def __init__(self, path: Path, resume: bool) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        if not resume:
            path.unlink(missing_ok=True)
        self.records = _whole_records(path)
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
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def _whole_records(path: Path) -> list[Record]:
    """The records that were written to their end; the file keeps no other."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):  # cut off while it was written
        del lines[-1]
        path.write_text("".join(lines), encoding="utf-8")
    return [json.loads(line) for line in lines]
