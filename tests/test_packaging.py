# SPDX-License-Identifier: Apache-2.0
"""What is installed: modules that lean on the system only, and words about what runs."""

import importlib.metadata
import importlib.util
import os
import re
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest

import fastkd
from fastkd import _backends, _info
from fastkd.__main__ import in_words

PACKAGE = Path(fastkd.__file__).parent
MODULES = sorted(PACKAGE.glob("_c*.so"))
# The last three are part of libc since glibc 2.34.
SYSTEM_LIBRARIES = re.compile(
    r"(libstdc\+\+|libm|libgcc_s|libc|ld-linux[\w-]*|libdl|librt|libpthread)\.so\.\d+"
)
DYNSYM, DYNAMIC = 11, 6  # section types, System V ABI

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads ELF files")
of_a_wheel = pytest.mark.skipif(
    (PACKAGE.parent / "setup.py").exists(), reason="fastkd is the source tree's"
)


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


def run_without_reader(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run with the output into a pipe that nobody reads any more, as behind `| head -1`."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        return subprocess.run(
            [sys.executable, *arguments],
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    finally:
        os.close(writing)


def capability_in_use(wanted: str) -> subprocess.CompletedProcess[str]:
    script = "import fastkd; print(fastkd.info()['cpu'])"
    return run_python("-c", script, FASTKD_CPU_CAPABILITY=wanted)


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


@pytest.mark.parametrize("words", [[], ["info"]], ids=["no command", "info"])
def test_the_command_line_prints_every_fact(words: list[str]) -> None:
    done = run_python("-m", "fastkd", *words)
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == list(fastkd.info())


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "none"),
        ("13.0", "13.0"),
        (("avx2", "base"), "avx2; base"),
        ({}, "none"),
        ({"avx2": "not here", "cuda": "no driver"}, "avx2: not here; cuda: no driver"),
    ],
)
def test_the_command_line_prints_words(value: object, words: str) -> None:
    assert in_words(value) == words


def test_the_command_line_tells_the_version() -> None:
    done = run_python("-m", "fastkd", "--version")
    assert (done.returncode, done.stdout) == (0, f"fastkd {fastkd.__version__}\n"), done.stderr


def test_the_command_line_names_what_it_has_instead_of_an_unknown_command() -> None:
    done = run_python("-m", "fastkd", "inof")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1] == (
        "python -m fastkd: error: there is no command 'inof', did you mean info?"
    )


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGPIPE")
@pytest.mark.parametrize("word", ["info", "--help"])
def test_the_command_line_is_silent_when_its_reader_has_left(word: str) -> None:
    done = run_without_reader("-m", "fastkd", word)
    assert (done.returncode, done.stderr) == (-signal.SIGPIPE, "")


def test_version_is_the_installed_one() -> None:
    names = _info.installed_distributions()
    if not names:
        pytest.skip("fastkd is imported, not installed")
    assert [importlib.metadata.version(name) for name in names] == [fastkd.__version__]


@pytest.mark.skipif(
    importlib.util.find_spec("fastkd._cuda") is None, reason="built without the CUDA kernels"
)
def test_cuda_module_imports_without_a_driver_and_says_so() -> None:
    facts = "m.archs, m.cuda_runtime, m.cuda_driver(), m.driver_problem(), m.device_problem(0)"
    done = run_python("-c", f"import fastkd._cuda as m; print({facts}, sep='\\n')")
    assert done.returncode == 0, done.stderr
    archs, runtime, *of_the_driver = done.stdout.splitlines()
    assert re.fullmatch(r"(\d+(\+PTX)?;?)+", archs)
    assert re.fullmatch(r"1[2-9]\.\d+", runtime)
    if not Path("/proc/driver/nvidia").exists():
        assert of_the_driver == ["None", *2 * ["there is no NVIDIA driver"]]


@of_a_wheel
def test_wheel_has_no_emulator() -> None:
    assert [path.name for path in MODULES if "emulated" in path.name] == []


@of_a_wheel
def test_wheel_has_notices_of_what_is_compiled_in() -> None:
    parts = ["Apache-2.0"]
    parts += ["BSD-3-Clause"] if MODULES else []
    parts += ["LicenseRef-NVIDIA-Proprietary"] if sorted(PACKAGE.glob("_cuda.*")) else []
    distribution = importlib.metadata.distribution(*_info.installed_distributions())
    assert distribution.metadata["License-Expression"] == " AND ".join(parts)
    notices = distribution.read_text("licenses/THIRD_PARTY_NOTICES.md")
    assert notices is not None
    assert "Wenzel Jakob" in notices
    assert "docs.nvidia.com/cuda/eula" in notices
