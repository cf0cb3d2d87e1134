# SPDX-License-Identifier: Apache-2.0
"""The planted faults still fit the source, so that `dev.py mutants` can plant them."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
if not (ROOT / "csrc").is_dir():
    pytest.skip("the source tree is not beside the tests", allow_module_level=True)

from build_tools.faults import Fault, read_faults  # noqa: E402 - of the source tree
from build_tools.sanitize import cuda_jobs  # noqa: E402

FAULTS = read_faults()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: str(fault.number))
def test_a_fault_can_be_planted(fault: Fault) -> None:
    assert fault.problem() is None
    assert bool(fault.module) == fault.file.startswith("csrc/")
    assert fault.module in {"", "cpu", "cuda_emulated"}
    assert set(fault.sanitizers) <= {"cpu", *cuda_jobs()}


def test_faults_are_numbered() -> None:
    assert [fault.number for fault in FAULTS] == list(range(1, len(FAULTS) + 1))
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"code": "no such code"}, "fault 1: its code must stand in pyproject.toml once, found 0"),
        ({"code": "torch"}, "fault 1: its code must stand in pyproject.toml once, found "),
        ({"file": "no.py"}, "fault 1: its code must stand in no.py once, found 0"),
        ({"fault": "[build-system]"}, "fault 1 changes nothing"),
    ],
)
def test_a_fault_that_fits_no_more_is_named(change: dict[str, str], problem: str) -> None:
    fields = {"file": "pyproject.toml", "code": "[build-system]", "fault": "[nothing]", **change}
    said = Fault(1, "a fault", "nothing", **fields).problem()
    assert said is not None
    assert said.startswith(problem)
