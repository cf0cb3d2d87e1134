# SPDX-License-Identifier: Apache-2.0
"""The layout of the source tree: what a reader may rely on when looking for a file."""

import inspect
import pickle
import re
import tomllib
from pathlib import Path

import pytest
from cases import CASES, PLAIN_CASES

import fastkd
from fastkd import functional, nn, reference
from fastkd._native_module import INTERFACE

ROOT = Path(__file__).parents[1]
LOSSES = functional.__all__
PLACES = ("fastkd/losses/{}.py", "fastkd/reference/{}.py")
KERNEL_PLACES = ("fastkd/ops/{}.py", "csrc/cpu/{}.cpp", "csrc/cuda/{}.cu")
FORMULA = "csrc/losses/{}.h"
# Which losses a kernel serves.
KERNELS = {
    "kd_loss": ("kd_loss", "decoupled_kd_loss"),
    "topk_kd_loss": ("topk_kd_loss",),
    "rkd_loss": ("rkd_distance_loss", "rkd_angle_loss", "rkd_loss"),
    "similarity_loss": (
        "similarity_preserving_loss",
        "cosine_similarity_loss",
        "pkt_loss",
        "correlation_loss",
    ),
    "attention_transfer_loss": ("attention_transfer_loss",),
}
SUMS = {"rkd_loss": ("rkd_distance_loss", "rkd_angle_loss")}  # of losses that have their formula
# Of torch's own operations, where these are as fast: no kernel, and tests of their own.
COMPOSED = {
    "dist_loss",
    "fsp_loss",
    "hint_loss",
    "linear_kd_loss",
    "logit_mse_loss",
    "nst_loss",
}
CLOSED_FORM = {"dist_loss", "linear_kd_loss"}  # of these, with a gradient by hand in ops
OF_ANOTHER_KERNEL = {"decoupled_kd_loss"}  # with options of its own
NATIVE = {loss for served in KERNELS.values() for loss in served}
TORCH_INCLUDE = re.compile(r'#\s*include\s*[<"](torch|ATen|c10|caffe2)/')

pytestmark = pytest.mark.skipif(
    not (ROOT / "csrc").is_dir(), reason="the source tree is not beside the tests"
)


def files(*patterns: str) -> list[Path]:
    return sorted(path for pattern in patterns for path in ROOT.glob(pattern))


def test_every_loss_is_of_one_kind() -> None:
    assert not NATIVE & COMPOSED
    assert {*LOSSES} == NATIVE | COMPOSED
    assert sum(map(len, KERNELS.values())) == len(NATIVE), "two kernels serve one loss"


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("place", PLACES)
def test_loss_stands_in_all_its_places(loss: str, place: str) -> None:
    assert (ROOT / place.format(loss)).is_file()


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("place", KERNEL_PLACES)
def test_kernel_stands_in_all_its_places(kernel: str, place: str) -> None:
    assert (ROOT / place.format(kernel)).is_file()


@pytest.mark.parametrize("loss", sorted(NATIVE - {*SUMS}))
def test_loss_with_a_kernel_has_its_formula(loss: str) -> None:
    assert (ROOT / FORMULA.format(loss)).is_file()


@pytest.mark.parametrize("loss", LOSSES)
def test_loss_has_a_module(loss: str) -> None:
    assert loss.replace("_", "") in {name.lower() for name in nn.__all__}


@pytest.mark.parametrize("loss", LOSSES)
def test_module_takes_the_options_of_the_function(loss: str) -> None:
    name = next(name for name in nn.__all__ if name.lower() == loss.replace("_", ""))
    of_function, of_module = (
        {
            parameter.name: parameter.default
            for parameter in inspect.signature(form).parameters.values()
            if parameter.kind is parameter.KEYWORD_ONLY
        }
        for form in (getattr(functional, loss), getattr(nn, name))
    )
    of_a_call = {"sample_weight", "num_items", "mask"}
    of_a_call |= {"student_bias", "teacher_bias", "teacher_logits"}
    of_a_call |= {"teacher_values", "teacher_indices"}
    for name_of_tensor in of_a_call:
        of_function.pop(name_of_tensor, None)
    of_module.pop("regressor", None)
    assert list(of_module.items()) == list(of_function.items())
    module = getattr(nn, name)()
    words = ", ".join(f"{option}={default!r}" for option, default in of_function.items())
    assert repr(module) == f"{name}({words})"
    assert pickle.loads(pickle.dumps(module)).options == module.options


def test_cases_are_of_all_losses_with_a_kernel() -> None:
    assert {case.loss for case in CASES} == NATIVE
    assert {case.loss for case in PLAIN_CASES} == NATIVE
    for case in CASES:
        kernel = next(kernel for kernel, served in KERNELS.items() if case.loss in served)
        assert case.kernels.forward == kernel


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        *((place, {*LOSSES}) for place in PLACES),
        (KERNEL_PLACES[0], {*KERNELS} | CLOSED_FORM | OF_ANOTHER_KERNEL),
    ],
)
def test_folders_of_losses_hold_public_losses_only(place: str, expected: set[str]) -> None:
    assert {path.stem for path in files(place.format("*")) if path.stem[0] != "_"} == expected


def test_losses_are_in_every_public_list() -> None:
    assert {*reference.__all__} == {*LOSSES}
    assert {*LOSSES, *nn.__all__} <= {*fastkd.__all__}


def test_core_includes_no_torch_header() -> None:
    sources = files("csrc/**/*.h", "csrc/**/*.cpp", "csrc/**/*.cu", "csrc/**/*.cuh")
    assert sources
    assert [path.name for path in sources if TORCH_INCLUDE.search(path.read_text())] == []


def test_bindings_and_package_have_one_interface() -> None:
    source = (ROOT / "csrc/bindings/module.cpp").read_text()
    assert re.findall(r"kInterface = (\d+);", source) == [str(INTERFACE)]


def test_addresses_are_taken_in_one_file_only() -> None:
    takers = [path.name for path in files("fastkd/**/*.py") if "data_ptr(" in path.read_text()]
    assert takers == ["_native.py"]


def test_sources_name_their_licence() -> None:
    folders = ("fastkd", "csrc", "tests", "benchmarks", "examples", "build_tools")
    sources = files(
        "*.py",
        *(f"{folder}/**/*.{kind}" for folder in folders for kind in ("py", "h", "cpp", "cu")),
    )
    unmarked = [
        str(path.relative_to(ROOT))
        for path in sources
        if "SPDX-License-Identifier: Apache-2.0" not in path.read_text().partition("\n")[0]
    ]
    assert unmarked == []


def test_build_needs_no_torch() -> None:
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    assert {re.split(r"\W", line)[0] for line in needed} == {"setuptools", "pybind11", "ninja"}


def test_tools_are_pinned_exactly() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    tools = [line for line in project["optional-dependencies"]["dev"] if "fastkd[" not in line]
    assert tools
    assert [line for line in tools if not re.fullmatch(r"[\w-]+==[\d.]+", line)] == []
