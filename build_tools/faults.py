# SPDX-License-Identifier: Apache-2.0
"""The planted faults of tests/planted_faults.toml."""

import hashlib
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FAULTS = "tests/planted_faults.toml"


@dataclass(frozen=True)
class Fault:
    """`fault` in the place of `code`, which stands in `file` once."""

    number: int
    name: str
    seen: str  # what a user would see
    file: str
    code: str
    fault: str
    module: str = ""  # cpu: the best of this machine; cuda_emulated; none: the fault is in Python
    sanitizers: tuple[str, ...] = ()

    def problem(self) -> str | None:
        """Why the fault cannot be planted, or None."""
        path = ROOT / self.file
        found = path.read_text().count(self.code) if path.is_file() and self.code else 0
        if found != 1:
            return f"fault {self.number}: its code must stand in {self.file} once, found {found}"
        return None if self.code != self.fault else f"fault {self.number} changes nothing"

    @property
    def key(self) -> str:
        """A key that changes if any field changes."""
        return f"{self.number} {hashlib.sha256(repr(self).encode()).hexdigest()[:16]}"


def read_faults() -> list[Fault]:
    """All faults, in their order."""
    tables = tomllib.loads((ROOT / FAULTS).read_text())["fault"]
    return [Fault(**{**t, "sanitizers": tuple(t.get("sanitizers", ()))}) for t in tables]
