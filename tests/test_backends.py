# SPDX-License-Identifier: Apache-2.0
"""Which module serves which device, and what a user hears where none does."""

import contextlib
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cases import PLAIN_CASES, LossCase
from torch import Tensor

import fastkd
from fastkd import _backends, _native
from fastkd._native_module import INTERFACE

GPU = 3  # no machine that runs these tests asks for it


@pytest.fixture(autouse=True)
def current_device(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The device that is current, last in the list, in place of torch's own."""
    devices = [0]

    @contextlib.contextmanager
    def make_current(device: int) -> Iterator[None]:
        devices.append(device)
        yield
        devices.pop()

    monkeypatch.setattr(torch.cuda, "device", make_current)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: devices[-1])
    return devices


@pytest.fixture(autouse=True)
def _unknown_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(_backends, "_warned", set())
    monkeypatch.delenv("FASTKD_REQUIRE_NATIVE", raising=False)
    monkeypatch.setattr(torch.version, "hip", None)
    before = {device: _backends._modules.pop(device, None) for device in (0, GPU)}
    yield
    for device, module in before.items():
        _backends._modules.pop(device, None)
        _backends._failures.pop(device, None)
        if module is not None:
            _backends._modules[device] = module


def pretend(monkeypatch: pytest.MonkeyPatch, module: Any, why: str = "") -> None:
    monkeypatch.setattr(_backends, "_import", lambda name: (module, why))


def module_with(problem: str, driver: str | None = "13.0", driver_problem: str = "") -> Any:
    return SimpleNamespace(
        archs="80;90",
        cuda_runtime="13.1",
        cuda_driver=lambda: driver,
        driver_problem=lambda: driver_problem,
        device_problem=lambda device: driver_problem or problem,
    )


def test_the_cuda_module_serves_a_gpu_that_it_has_code_for(monkeypatch: pytest.MonkeyPatch) -> None:
    module = module_with("")
    pretend(monkeypatch, module)
    assert _backends.ready_module(GPU) is None
    assert _backends.module_for(GPU) is module
    assert _backends.ready_module(GPU) is module
    assert _backends.cuda_module() == (module, "")


def test_a_gpu_is_current_while_its_module_asks_about_it(
    monkeypatch: pytest.MonkeyPatch, current_device: list[int]
) -> None:
    asked = []
    module = SimpleNamespace(device_problem=lambda device: asked.append(current_device[-1]) or "")
    pretend(monkeypatch, module)
    assert _backends.module_for(GPU) is module
    assert asked == [GPU]
    assert current_device == [0]


@pytest.mark.parametrize(("device", "expected"), [(_backends.CPU, 0), (0, 0), (GPU, GPU)])
def test_a_tensors_gpu_is_made_the_current_one(
    current_device: list[int], device: int, expected: int
) -> None:
    tensor: Any = SimpleNamespace(get_device=lambda: device)
    with _native._device_of(tensor):
        assert current_device[-1] == expected
    assert current_device == [0]


@pytest.mark.parametrize("case", PLAIN_CASES, ids=str)
def test_kernels_are_launched_while_the_tensors_gpu_is_current(
    monkeypatch: pytest.MonkeyPatch, case: LossCase
) -> None:
    ask_queue, current, seen = _native._queue, [0], []

    @contextlib.contextmanager
    def make_current(tensor: Tensor) -> Iterator[None]:
        current.append(tensor.numel())
        yield
        current.pop()

    def ask(tensor: Tensor) -> tuple[int, int]:
        seen.append(current[-1] == tensor.numel())
        return ask_queue(tensor)

    monkeypatch.setattr(_native, "_device_of", make_current)
    monkeypatch.setattr(_native, "_queue", ask)
    inputs = case.make_inputs(case.geometry).with_gradient()
    (case.run(inputs).sum() * 3).backward()
    assert seen
    assert all(seen)


@pytest.mark.parametrize(
    ("module", "why"),
    [
        (None, "it is not in this build"),
        (module_with("this build has no code for compute capability 7.0"), ""),
        (module_with("the NVIDIA driver supports CUDA 12.4, fastkd was built with CUDA 13.0"), ""),
    ],
)
def test_a_gpu_without_a_module_is_told_once(
    monkeypatch: pytest.MonkeyPatch, module: Any, why: str
) -> None:
    pretend(monkeypatch, module, why)
    reason = why or module.device_problem(GPU)
    with pytest.warns(RuntimeWarning, match=r"no native CUDA module \(.*reference serves") as said:
        assert _backends.module_for(GPU) is None
    assert reason in str(said[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _backends.module_for(GPU) is None
    assert _backends.failure(GPU) == reason


def test_a_gpu_without_a_module_is_an_error_where_kernels_are_required(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pretend(monkeypatch, None, "it is not in this build")
    monkeypatch.setenv("FASTKD_REQUIRE_NATIVE", "1")
    with pytest.raises(RuntimeError, match=r"no native CUDA module.*forbids the reference"):
        _backends.module_for(GPU)


@pytest.fixture(params=["none", INTERFACE - 1, INTERFACE + 1])
def other_interface(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """All compiled modules are of other sources; gives the message."""
    found = request.param
    module = SimpleNamespace(device_type="cpu", device_problem=lambda device: "")
    if found != "none":
        module.interface = found
    monkeypatch.setattr(_backends.importlib, "import_module", lambda name: module)
    return f"interface {INTERFACE} expected, {found} found; rebuild it with `pip install -e .`"


@pytest.fixture
def _cpu_modules_of_now() -> Iterator[None]:
    before = _backends.cpu_backend()
    _backends._serve_cpu(_backends._choose_cpu())
    yield
    _backends._serve_cpu(before)


@pytest.mark.usefixtures("other_interface", "_cpu_modules_of_now")
def test_a_module_of_other_sources_is_not_used(
    other_interface: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, teacher = torch.randn(2, 4, 5)
    expected = fastkd.reference.kd_loss(student, teacher)
    with pytest.warns(RuntimeWarning, match=re.escape(other_interface)):
        assert torch.equal(fastkd.kd_loss(student, teacher), expected)
    fastkd.kd_loss(student, teacher)  # without another word: warnings are errors here
    assert other_interface in fastkd.info()["failures"]["base"]
    monkeypatch.setenv("FASTKD_REQUIRE_NATIVE", "1")
    with pytest.raises(RuntimeError, match=re.escape(other_interface)):
        fastkd.kd_loss(student, teacher)


def test_a_cuda_module_of_other_sources_is_not_used(other_interface: str) -> None:
    with pytest.warns(RuntimeWarning, match=re.escape(other_interface)):
        assert _backends.module_for(GPU) is None


@pytest.mark.parametrize(
    "mode",
    ["torch.inference_mode()", "torch.no_grad()", "FakeTensorMode()", "torch.device('meta')"],
)
def test_an_import_within_a_mode_changes_no_path(mode: str) -> None:
    code = f"""
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
with {mode}:
    import fastkd
from fastkd import _front
student = torch.randn(3, 4)
with torch.inference_mode():
    teacher = torch.randn(3, 4)
print(_front.choose_path(student, teacher))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "eager", done.stderr


def assert_warns_of_this_file(call: Callable[[], object], line: int) -> None:
    with _backends.use_on_cpu(None), pytest.warns(RuntimeWarning, match="no native CPU") as said:
        call()
    assert [(warning.filename, warning.lineno) for warning in said] == [(__file__, line)]


@pytest.mark.parametrize("case", PLAIN_CASES, ids=str)
def test_the_warning_names_the_line_of_the_call(case: LossCase) -> None:
    function, module = getattr(fastkd, case.loss), case.module()
    inputs = case.make_inputs(case.geometry)
    target = {name: value for name, value in inputs.keywords.items() if name == "target"}

    def call_function() -> None:
        function(*inputs.tensors, **target, **case.options)

    def call_module() -> None:
        module(*inputs.tensors, **target)

    for call in (call_function, call_module):
        assert_warns_of_this_file(call, call.__code__.co_firstlineno + 1)


@pytest.mark.parametrize("loss", [fastkd.kd_loss, fastkd.RKDLoss()], ids=["function", "module"])
def test_the_warning_names_the_line_of_a_compiled_call(loss: Any) -> None:
    torch._dynamo.reset()
    student, teacher = torch.randn(2, 4, 5)
    compiled = torch.compile(loss, fullgraph=True, backend="eager")

    def call() -> None:
        compiled(student, teacher)

    assert_warns_of_this_file(call, call.__code__.co_firstlineno + 1)


def test_rocm_is_not_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, module_with(""))
    monkeypatch.setattr(torch.version, "hip", "6.2")
    with pytest.warns(RuntimeWarning, match="torch is built for ROCm"):
        assert _backends.module_for(GPU) is None


def test_info_says_why_a_gpu_is_not_served(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, module_with("no code for this chip"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert fastkd.info()["cuda"] == "80;90"
    assert fastkd.info()["failures"]["cuda:0"] == "no code for this chip"
    pretend(monkeypatch, None, "it is not in this build")
    assert fastkd.info()["cuda"] is None
    assert fastkd.info()["failures"]["cuda"] == "it is not in this build"


def cuda_facts() -> list[str | None]:
    return [value for name, value in fastkd.info().items() if name.startswith("cuda")]


@pytest.mark.parametrize(
    ("driver", "problem"),
    [
        ("13.2", ""),
        ("12.4", "the NVIDIA driver supports CUDA 12.4, fastkd was built with CUDA 13.1"),
        (None, "there is no NVIDIA driver"),
    ],
)
def test_info_tells_the_runtime_from_the_driver(
    monkeypatch: pytest.MonkeyPatch, driver: str | None, problem: str
) -> None:
    pretend(monkeypatch, module_with("", driver, problem))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cuda_facts() == ["80;90", "13.1", "13.0", driver]
    assert fastkd.info()["failures"].get("cuda", "") == problem
    pretend(monkeypatch, None, "it is not in this build")
    assert cuda_facts() == [None, None, None, None]


def test_info_asks_no_gpu_where_the_driver_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, module_with("", "12.4", "the driver is too old"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: pytest.fail("a GPU was asked"))
    failures = fastkd.info()["failures"]
    assert {name: why for name, why in failures.items() if name.startswith("cuda")} == {
        "cuda": "the driver is too old"
    }


@pytest.mark.parametrize(
    ("installed", "left_in_the_tree", "warned"),
    [
        (["fastkd"], ["fastkd"], False),
        (["fastkd-cu12"], [], False),
        (["fastkd"], ["fastkd-cu12"], False),
        (["fastkd", "fastkd-cu12"], [], True),
    ],
)
def test_info_tells_of_two_distributions_in_one_place(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    installed: list[str],
    left_in_the_tree: list[str],
    warned: bool,
) -> None:
    folders = [(name, "dist-info", "METADATA", "RECORD") for name in installed]
    folders += [(name, "egg-info", "PKG-INFO", "SOURCES.txt") for name in left_in_the_tree]
    for name, kind, metadata, files in folders:
        folder = tmp_path / f"{name.replace('-', '_')}-0.1.0.{kind}"
        folder.mkdir()
        (folder / metadata).write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1.0\n")
        (folder / files).write_text("fastkd/__init__.py,,\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    said = fastkd.info()["failures"].get("install", "")
    assert said.startswith("fastkd and fastkd-cu12 are both installed") == warned


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU would do what it is asked")
def test_what_cuda_refuses_is_an_error_with_the_way_out() -> None:
    cuda: Any = pytest.importorskip("fastkd._cuda", reason="built without CUDA")
    assert "driver" in cuda.device_problem(0)
    assert cuda.driver_problem() == cuda.device_problem(0)
    logits, memory = torch.zeros(4, 10), torch.zeros(1024)
    described = (logits.data_ptr(), 0, (4, 10), (10, 1))
    with pytest.raises(RuntimeError, match=r"fastkd: CUDA refused \w+: .+fastkd\.reference has"):
        cuda.kd_loss(
            *(cuda.KdLossOptions(1.0, 1.0, 0.0, 0.0, 0, 0.5, 0.0), cuda.RowOptions(2, -100)),
            *(1, 4, -1.0, 0, described, described, 0, 0, memory.data_ptr(), 0, None),
            *(memory.data_ptr(), 0, 0),
        )
