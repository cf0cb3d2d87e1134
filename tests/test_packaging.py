# SPDX-License-Identifier: Apache-2.0
"""What is installed: modules that lean on the system only, and words about what runs."""

import importlib.metadata
import importlib.util
import os
import re
import struct
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import fastkd
from fastkd import _backends

PACKAGE = Path(fastkd.__file__).parent
MODULES = sorted(PACKAGE.glob("_c*.so"))
SETUP = Path(__file__).parents[1] / "setup.py"
# The last three are part of libc since glibc 2.34.
SYSTEM_LIBRARIES = re.compile(
    r"(libstdc\+\+|libm|libgcc_s|libc|ld-linux[\w-]*|libdl|librt|libpthread)\.so\.\d+"
)
DYNSYM, DYNAMIC = 11, 6  # section types, System V ABI

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads ELF files")
in_source_tree = pytest.mark.skipif(not SETUP.exists(), reason="setup.py is not beside the tests")


class Elf:
    """The dynamic section and symbols of a 64-bit little-endian ELF file."""

    def __init__(self, path: Path) -> None:
        self.data = path.read_bytes()
        assert self.data[:6] == b"\x7fELF\x02\x01"
        (offset,) = struct.unpack_from("<Q", self.data, 0x28)
        size, count = struct.unpack_from("<HH", self.data, 0x3A)
        # name, type, flags, address, offset, size, link, info, alignment, entry size
        self.sections = [
            struct.unpack_from("<IIQQQQIIQQ", self.data, offset + i * size) for i in range(count)
        ]

    def needed(self) -> list[str]:
        """The libraries it loads: DT_NEEDED, tag 1."""
        return [
            self._string(link, value)
            for (tag, value), link in self._entries(DYNAMIC, "<qQ")
            if tag == 1
        ]

    def exported(self) -> list[str]:
        """Symbols that others could bind to: defined, and neither local nor hidden."""
        return [
            self._string(link, name)
            for (name, info, _, section, *_), link in self._entries(DYNSYM, "<IBBHQQ")
            if section != 0 and info >> 4 != 0
        ]

    def _entries(self, kind: int, layout: str) -> list[tuple[tuple[int, ...], int]]:
        entries = []
        for _, section_type, _, _, offset, size, link, *_ in self.sections:
            if section_type == kind:
                block = self.data[offset : offset + size]
                entries += [(entry, link) for entry in struct.iter_unpack(layout, block)]
        return entries

    def _string(self, section: int, offset: int) -> str:
        start = self.sections[section][4] + offset
        return self.data[start : self.data.index(b"\0", start)].decode()


def run_python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def capability_in_use(wanted: str) -> subprocess.CompletedProcess[str]:
    script = "import fastkd; print(fastkd.info()['cpu'])"
    return run_python("-c", script, FASTKD_CPU_CAPABILITY=wanted)


def load_setup() -> ModuleType:
    pytest.importorskip("setuptools")
    spec = importlib.util.spec_from_file_location("fastkd_setup", SETUP)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_build_of_this_cpu_is_installed() -> None:
    installed = {path.name.split(".")[0].removeprefix("_cpu_") for path in MODULES}
    assert set(_backends.cpu_capabilities()) <= installed


@on_linux
@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name.split(".")[0])
def test_module_needs_system_libraries_only(path: Path) -> None:
    needed = Elf(path).needed()
    assert needed
    assert [name for name in needed if not SYSTEM_LIBRARIES.fullmatch(name)] == []


@on_linux
@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name.split(".")[0])
def test_module_exports_its_init_function_only(path: Path) -> None:
    assert Elf(path).exported() == [f"PyInit_{path.name.split('.')[0]}"]


@pytest.mark.parametrize("capability", _backends.cpu_capabilities())
def test_capability_variable_picks_the_build(capability: str) -> None:
    done = capability_in_use(capability)
    assert (done.returncode, done.stdout.strip()) == (0, capability), done.stderr


def test_unknown_capability_is_an_error_that_lists_the_builds() -> None:
    done = capability_in_use("nonsense")
    choices = ", ".join(_backends.cpu_capabilities())
    assert done.returncode == 1
    assert (
        f"RuntimeError: FASTKD_CPU_CAPABILITY must be one of {choices} on this CPU, got 'nonsense'"
        in done.stderr
    )


def test_info_command_prints_every_fact() -> None:
    done = run_python("-m", "fastkd", "info")
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == list(fastkd.info())


def test_version_is_the_installed_one() -> None:
    try:
        installed = importlib.metadata.version("fastkd")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("fastkd is imported, not installed")
    assert fastkd.__version__ == installed


@pytest.mark.skipif(
    importlib.util.find_spec("fastkd._cuda") is None, reason="built without the CUDA kernels"
)
def test_cuda_module_imports_without_a_driver_and_says_so() -> None:
    script = "import fastkd._cuda as m; print(m.archs); print(m.device_problem(0))"
    done = run_python("-c", script)
    assert done.returncode == 0, done.stderr
    archs, problem = done.stdout.split("\n")[:2]
    assert re.fullmatch(r"(\d+(\+PTX)?;?)+", archs)
    if not Path("/proc/driver/nvidia").exists():
        assert problem == "there is no NVIDIA driver"


@pytest.mark.skipif((PACKAGE.parent / "setup.py").exists(), reason="fastkd is the source tree's")
def test_wheel_has_no_emulator() -> None:
    assert [path.name for path in MODULES if "emulated" in path.name] == []


@in_source_tree
@pytest.mark.parametrize("variable", ["FASTKD_NATIVE", "FASTKD_CUDA"])
def test_unknown_choice_is_an_error(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "yes")
    with pytest.raises(SystemExit, match=f"{variable} must be one of auto, 0, 1, got 'yes'"):
        load_setup().module_names()


@in_source_tree
@pytest.mark.parametrize("variable", ["FASTKD_WERROR", "FASTKD_EMULATOR"])
def test_unknown_switch_is_an_error(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "yes")
    with pytest.raises(SystemExit, match=f"{variable} must be 0 or 1, got 'yes'"):
        load_setup().tools.switched_on(variable)


@in_source_tree
def test_missing_compiler_is_an_error_only_if_native_is_required(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("FASTKD_NATIVE", "1")
    with pytest.raises(SystemExit, match=r"no C\+\+ compiler \(CXX=no-such-compiler"):
        load_setup().module_names()
    monkeypatch.setenv("FASTKD_NATIVE", "auto")
    assert load_setup().module_names() == []
    assert "installing the PyTorch reference only" in capsys.readouterr().err
    monkeypatch.setenv("FASTKD_CUDA", "1")
    with pytest.raises(SystemExit, match="FASTKD_CUDA=1, but the CUDA kernels need"):
        load_setup().module_names()


@in_source_tree
def test_no_module_is_built_where_native_is_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTKD_NATIVE", "0")
    assert load_setup().module_names() == []


@in_source_tree
@pytest.mark.parametrize("jobs", ["0", "-1", "many"])
def test_unusable_job_count_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, jobs: str
) -> None:
    pytest.importorskip("ninja")
    monkeypatch.setenv("MAX_JOBS", jobs)
    with pytest.raises(SystemExit, match=f"MAX_JOBS must be a whole number above 0, got '{jobs}'"):
        load_setup().ninja_build.run(tmp_path)


@pytest.fixture
def fake_nvcc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An nvcc that knows three chips and compiles nothing."""
    script = tmp_path / "nvcc"
    script.write_text(
        '#!/bin/sh\ncase "$1" in\n--list-gpu-code) printf "sm_80\\nsm_87\\nsm_90\\n" ;;\n'
        '--help | --dryrun) ;;\n*) echo "nvcc: out of order" >&2; exit 3 ;;\nesac\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("NVCC", str(script))
    for variable in ("FASTKD_NATIVE", "FASTKD_CUDA", "FASTKD_CUDA_ARCHS"):
        monkeypatch.delenv(variable, raising=False)
    return str(script)


@in_source_tree
@on_linux
def test_missing_nvcc_is_an_error_only_if_cuda_is_required(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    setup = load_setup()
    monkeypatch.setattr(setup.tools, "find_nvcc", list)
    monkeypatch.setenv("FASTKD_CUDA", "1")
    with pytest.raises(SystemExit, match=r'FASTKD_CUDA=1, but .*pip install "cuda-toolkit\['):
        setup.module_names()
    monkeypatch.setenv("FASTKD_CUDA", "auto")
    assert "_cuda" not in setup.module_names()
    assert "building for the CPU only" in capsys.readouterr().err


@in_source_tree
@on_linux
def test_nvcc_that_is_named_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVCC", "no-such-nvcc")
    with pytest.raises(SystemExit, match="NVCC=no-such-nvcc is not there"):
        load_setup().module_names()


@in_source_tree
@on_linux
def test_cuda_is_built_where_there_is_an_nvcc(
    monkeypatch: pytest.MonkeyPatch, fake_nvcc: str
) -> None:
    assert "_cuda" in load_setup().module_names()
    monkeypatch.setenv("FASTKD_CUDA", "0")
    assert "_cuda" not in load_setup().module_names()


@in_source_tree
def test_default_chips_are_those_that_nvcc_knows(fake_nvcc: str) -> None:
    assert load_setup().tools.cuda_archs([fake_nvcc]) == ["80", "90+PTX"]


@in_source_tree
@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("9.0", "FASTKD_CUDA_ARCHS must look like 80;90+PTX, got '9.0'"),
        ("80,90", "FASTKD_CUDA_ARCHS must look like 80;90+PTX, got '80,90'"),
        ("80;", "FASTKD_CUDA_ARCHS must look like 80;90+PTX, got '80;'"),
        ("80;70+PTX", "FASTKD_CUDA_ARCHS has 70+PTX, {} knows 80, 87, 90"),
    ],
)
def test_chips_that_nvcc_does_not_know_are_an_error(
    monkeypatch: pytest.MonkeyPatch, fake_nvcc: str, wanted: str, message: str
) -> None:
    monkeypatch.setenv("FASTKD_CUDA_ARCHS", wanted)
    with pytest.raises(SystemExit, match=re.escape(message.format(fake_nvcc))):
        load_setup().tools.cuda_archs([fake_nvcc])


@in_source_tree
def test_code_and_ptx_are_asked_for() -> None:
    assert load_setup().modules.gencodes(["80", "90+PTX"]) == [
        "-gencode=arch=compute_80,code=[sm_80]",
        "-gencode=arch=compute_90,code=[sm_90,compute_90]",
    ]


@in_source_tree
@on_linux
def test_nvcc_that_fails_fails_the_build(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    fake_nvcc: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("ninja")
    setuptools = pytest.importorskip("setuptools")
    setup = load_setup()
    monkeypatch.setattr(setup, "BUILD", tmp_path / "build")
    one_file = {("csrc/cuda/*.cpp", "csrc/cuda/*.cu"): ("csrc/cuda/launch.cu",)}
    monkeypatch.setattr(setup.modules, "sources", lambda *patterns: one_file.get(patterns, ()))
    command = setup.NinjaBuild(setuptools.Distribution())
    command.build_lib = str(tmp_path / "lib")
    command.extensions = [setup.Extension("fastkd._cuda", [])]
    with pytest.raises(setup.CompileError, match="FASTKD_CUDA=0 leaves the CUDA kernels out"):
        command.build_extensions()
    assert "nvcc: out of order" in capfd.readouterr().out


@in_source_tree
@on_linux
def test_emulator_never_gets_into_a_wheel(tmp_path: Path) -> None:
    pytest.importorskip("setuptools")
    arguments = ("build_ext", "--build-lib", str(tmp_path), "--build-temp", str(tmp_path))
    done = run_python(str(SETUP), *arguments, FASTKD_EMULATOR="1")
    assert done.returncode == 1
    assert "FASTKD_EMULATOR=1 is for editable installs, not for wheels" in done.stderr
    assert list(tmp_path.iterdir()) == []
