# SPDX-License-Identifier: Apache-2.0
"""Compiles the native modules with ninja; all else is declared in pyproject.toml.

Neither torch nor its headers are needed: the kernels get addresses. How a module is compiled stands
in build_tools.

Environment variables:
    FASTKD_NATIVE: auto (the default) installs the PyTorch reference only where nothing can be
        compiled, and says so; 1 makes that an error; 0 never compiles.
    FASTKD_CUDA: auto (the default) compiles the CUDA kernels where there is an nvcc; 1 makes its
        absence an error; 0 leaves them out. If nvcc fails, so does the build.
    FASTKD_CUDA_ARCHS: the chips, as in 80;90+PTX; the default is in build_tools/tools.py.
    CXX: the C++ compiler, with arguments if need be ("ccache g++").
    NVCC: nvcc, likewise ("nvcc -ccbin g++-12"). Else CUDA_HOME's, one on the PATH, pip's, or
        /usr/local/cuda's.
    MAX_JOBS: compilers that run at a time; ninja's own choice is one per core and two.
    FASTKD_WERROR: 1 turns warnings into errors, spilled registers among them, for our own CI.
    FASTKD_EMULATOR: 1 compiles the CUDA kernels for the emulator too, for tests in place.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
BUILD = ROOT / "build" / "native"  # for all builds, editable or not: what they share compiles once
sys.path.insert(0, str(ROOT))  # build front ends leave it out

from build_tools import modules, ninja_build, tools  # noqa: E402 - found by the line above

WAYS_OUT = (
    "CXX=... picks another compiler; FASTKD_NATIVE=0 installs the PyTorch reference only, which is "
    "always right and never fast"
)
WAYS_OUT_OF_CUDA = (
    "FASTKD_CUDA=0 leaves the CUDA kernels out; NVCC=... picks another nvcc, and "
    f"{tools.TOOLKIT} brings one that is known to work"
)


def main() -> None:
    """Tell setuptools what there is to compile."""
    setup(
        ext_modules=[Extension(f"fastkd.{name}", []) for name in module_names()],
        cmdclass={"build_ext": NinjaBuild},
    )


def module_names() -> list[str]:
    """The modules to build: as the environment says, and in doubt those that can be built."""
    if not wanted("FASTKD_NATIVE", tools.why_not_native, "installing the PyTorch reference only"):
        if tools.choice("FASTKD_CUDA") == "1":
            raise SystemExit(
                "fastkd: FASTKD_CUDA=1, but the CUDA kernels need the CPU's beside them"
            )
        return []
    names = [f"_cpu_{isa}" for isa in modules.isas()]
    if wanted("FASTKD_CUDA", tools.why_not_cuda, "building for the CPU only"):
        names.append("_cuda")
    if tools.switched_on("FASTKD_EMULATOR"):
        names.append("_cuda_emulated")
    return names


def wanted(variable: str, why_not: Callable[[], str | None], otherwise: str) -> bool:
    """Whether to compile: what a variable says, and in doubt whether it can be done."""
    choice = tools.choice(variable)
    if choice == "0":
        return False
    obstacle = why_not()
    if obstacle and choice == "1":
        raise SystemExit(f"fastkd: {variable}=1, but {obstacle}")
    if obstacle:
        print(f"fastkd: {obstacle}; {otherwise}", file=sys.stderr)
    return not obstacle


class NinjaBuild(build_ext):
    """build_ext that leaves the compiling to ninja, all modules at once."""

    extensions: list[Extension]

    def build_extensions(self) -> None:
        """Write build.ninja, run it."""
        in_place = self.editable_mode or self.inplace
        if not in_place and tools.switched_on("FASTKD_EMULATOR"):
            raise SystemExit("fastkd: FASTKD_EMULATOR=1 is for editable installs, not for wheels")
        BUILD.mkdir(parents=True, exist_ok=True)
        compiler = tools.find_compiler()
        self.extensions = list(usable(self.extensions, compiler))  # what setuptools copies
        outputs = {
            modules.module(extension.name.removeprefix("fastkd."), compiler): Path(
                self.get_ext_fullpath(extension.name)
            ).resolve()
            for extension in self.extensions
        }
        package = Path(self.build_lib).resolve() / "fastkd"
        package.mkdir(parents=True, exist_ok=True)
        for leftover in {*package.glob("_cpu_*"), *package.glob("_cuda*.so")} - {*outputs.values()}:
            leftover.unlink()  # or the wheel would have it
        (BUILD / "build.ninja").write_text(ninja_build.ninja_file(compiler, outputs, BUILD))
        if not ninja_build.run(BUILD):
            ways_out = WAYS_OUT_OF_CUDA if any(module.nvcc for module in outputs) else WAYS_OUT
            raise CompileError(f"the native modules do not compile, see above; {ways_out}")


def usable(extensions: Sequence[Extension], compiler: Sequence[str]) -> Iterator[Extension]:
    """The modules whose flags the compiler knows."""
    for extension in extensions:
        isa = extension.name.removeprefix("fastkd._cpu_")
        complaint = tools.complaint(compiler, modules.ISA_FLAGS.get(isa, ()))
        if complaint is None:
            yield extension
        elif isa == "base":
            raise CompileError(
                f"{' '.join(compiler)} cannot compile a C++17 program:\n{complaint}\n{WAYS_OUT}"
            )
        else:
            print(f"fastkd: {compiler[0]} does not know {isa}; leaving that module out")


if __name__ == "__main__":
    main()
