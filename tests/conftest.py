# SPDX-License-Identifier: Apache-2.0
"""The backend fixture: every build of the kernels that this CPU can run."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # cases.py and tolerance.py, for all test files

from fastkd import _native


@pytest.fixture(params=_native.cpu_capabilities())
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Serve CPU tensors with one build. A build that is missing is an error, not a skip."""
    with _native.use_cpu_capability(request.param):
        yield request.param


@pytest.fixture
def kernel_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of kernels called: a test of a path must see that it was taken."""
    calls: list[str] = []

    def counted(name: str) -> Callable[..., bool]:
        function = getattr(_native, name)

        def call(*args: object) -> bool:
            calls.append(name)
            return bool(function(*args))

        return call

    for name in ("kd_loss", "scale_gradient"):
        monkeypatch.setattr(_native, name, counted(name))
    return calls


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
