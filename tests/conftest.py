# SPDX-License-Identifier: Apache-2.0
"""Fixtures that serve the kernels' builds, and which tests run without --all."""

import contextlib
import gc
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # cases.py and tolerance.py, for all test files

import quick_suite

from fastkd import _backends, _native

# The CUDA kernels' own source on the CPU: a chip with clusters and one without, each in another
# order of threads. test_cuda_kernels.py runs every kernel in every order.
EMULATED = {
    "cuda_emulated-sm90": {"capability": 90, "order": "greedy", "lazy_copies": True},
    "cuda_emulated-sm75": {"capability": 75, "order": "reversed"},
}
# A wheel has no emulator, so tests of an installed one do without.
EMULATOR_RUNS_HERE = (sys.platform, platform.machine()) == ("linux", "x86_64") and (
    Path(__file__).parents[1] / "csrc"
).is_dir()
NO_EMULATOR = "the emulator is built on x86-64 Linux, in the source tree"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="run all tests, not the quick suite alone")
    parser.addoption(
        "--part",
        type=quick_suite.part_of,
        metavar="I/N",
        help="run the I-th of N parts of the tests",
    )


def pytest_report_header(config: pytest.Config) -> str:
    left_out = ", ".join(quick_suite.ONLY_WITH_ALL)
    quick = f"the quick suite; --all, or a file's name, runs every combination, and {left_out}"
    on_gpu = "" if torch.cuda.is_available() else "; no GPU, so no tests on one"
    return f"fastkd: {'all tests' if config.option.all else quick}{on_gpu}"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out whole files, unless they are named on the command line."""
    left_out = () if config.option.all else quick_suite.ONLY_WITH_ALL
    return any(collection_path.match(pattern) for pattern in left_out) or None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name != "test_values.py")  # what finds most faults first
    if not (config.option.all or any(map(quick_suite.names_a_file, config.args))):
        runs = quick_suite.runs(items)
        config.stash[quick_suite.GAPS] = quick_suite.gaps(items, runs)
        keep(config, items, runs)
    if config.option.part:
        part, parts = config.option.part
        keep(config, items, [place % parts == part - 1 for place in range(len(items))])


def keep(config: pytest.Config, items: list[pytest.Item], wanted: Sequence[bool]) -> None:
    """Deselect the other tests."""
    left_out = [item for item, run in zip(items, wanted, strict=True) if not run]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item, run in zip(items, wanted, strict=True) if run]


def pytest_collection_finish() -> None:
    """Exclude the tests from garbage collection, which tests of memory call often."""
    gc.collect()
    gc.freeze()


@contextlib.contextmanager
def emulated_cuda(**simulated: Any) -> Iterator[Any]:
    """Serve CPU tensors with the CUDA kernels on the emulator; gives its module."""
    with _backends.use_on_cpu("cuda_emulated"):
        module: Any = _backends.module_for(_backends.CPU)
        module.simulate(**simulated)
        module.launched()
        yield module


@pytest.fixture(params=[*_backends.cpu_capabilities(), *(EMULATED if EMULATOR_RUNS_HERE else ())])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Serve CPU tensors with one build. A build that is missing is an error, not a skip."""
    name = request.param
    serving = emulated_cuda(**EMULATED[name]) if name in EMULATED else _backends.use_on_cpu(name)
    with serving:
        yield name


@pytest.fixture(params=_backends.cpu_capabilities())
def cpu_backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Serve CPU tensors with one of the CPU's builds: for tests of what CUDA does differently."""
    with _backends.use_on_cpu(request.param):
        yield request.param


@pytest.fixture
def emulated() -> Iterator[Any]:
    """Serve CPU tensors with the CUDA kernels on a chip with clusters; gives the module."""
    if not EMULATOR_RUNS_HERE:
        pytest.skip(NO_EMULATOR)
    with emulated_cuda(capability=90, order="greedy") as module:
        yield module


@pytest.fixture
def kernel_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of kernels called: a test of a path must see that it was taken."""
    calls: list[str] = []

    def counted(function: Callable[..., Any], name: str | None = None) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            calls.append(name or args[1])  # run_pairs is told the kernel's name after the module
            return function(*args)

        return call

    for name in (
        "kd_loss",
        "topk_kd_loss",
        "scale_gradient",
        "attention_transfer_loss",
        "attention_transfer_gradient",
    ):
        monkeypatch.setattr(_native, name, counted(getattr(_native, name), name))
    monkeypatch.setattr(_native, "run_pairs", counted(_native.run_pairs))
    return calls


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
