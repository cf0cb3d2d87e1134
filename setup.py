# SPDX-License-Identifier: Apache-2.0
"""Compiles the native modules with ninja, and sets a distribution's name, licence and README.

pyproject.toml declares the rest.

Neither torch nor its headers are needed: the kernels get addresses. How a module is compiled stands
in build_tools.

Environment variables:
    FASTKD_NATIVE: auto (the default) installs the PyTorch reference only where nothing can be
        compiled, and says so; 1 makes that an error; 0 never compiles.
    FASTKD_CPU_ISAS: the CPU's instruction sets to compile for: all (the default; Python picks the
        best at import), native (this machine's best, in a third of the time), runnable (all that
        this machine has), or some, as in base;avx2.
    FASTKD_CUDA: auto (the default) compiles the CUDA kernels where there is an nvcc; 1 makes its
        absence an error; 0 leaves them out. If nvcc fails, so does the build.
    FASTKD_CUDA_ARCHS: the chips, as in 80;90+PTX; the default is in build_tools/tools.py.
    FASTKD_CUDA_FAMILY: 12 or 13, for wheels of a release: nvcc must be of this major version, and
        the wheel gets the family's name of build_tools/metadata.py. Unset: fastkd, and any nvcc.
    CXX: the C++ compiler, with arguments if need be ("ccache g++").
    NVCC: nvcc, likewise ("nvcc -ccbin g++-12"). Else CUDA_HOME's, one on the PATH, pip's, or
        /usr/local/cuda's.
    MAX_JOBS: compilers that run at a time; ninja's own choice is one per core and two.
    FASTKD_WERROR: 1 turns warnings into errors, spilled registers among them, for our own CI.
    FASTKD_EMULATOR: 1 compiles the CUDA kernels for the emulator too, for tests in place.
"""

import re
import sys
from pathlib import Path
from typing import Any

from setuptools import Distribution, Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))  # build front ends leave it out

from build_tools import metadata, native, tools  # noqa: E402 - found by the line above


class NinjaBuild(build_ext):
    """build_ext that leaves the compiling to ninja, all modules at once."""

    extensions: list[Extension]

    def build_extensions(self) -> None:
        """Compile what the compiler knows."""
        in_place = self.editable_mode or self.inplace
        if not in_place and tools.switched_on("FASTKD_EMULATOR"):
            raise SystemExit("fastkd: FASTKD_EMULATOR=1 is for editable installs, not for wheels")
        try:
            named = {
                extension.name.removeprefix("fastkd."): extension for extension in self.extensions
            }
            outputs = {
                name: Path(self.get_ext_fullpath(named[name].name)).resolve()
                for name in native.usable([*named])
            }
            self.extensions = [named[name] for name in outputs]  # what setuptools copies
            native.compile_modules(outputs)
        except native.BuildError as error:
            raise CompileError(str(error)) from error


class NamedDistribution(Distribution):
    """What pyproject.toml describes, under the name of its CUDA family."""

    def parse_config_files(self, *arguments: Any, **options: Any) -> None:
        """Read pyproject.toml, whose name must not be dynamic, and set the name."""
        super().parse_config_files(*arguments, **options)
        names = [extension.name.removeprefix("fastkd.") for extension in self.ext_modules or ()]
        self.metadata.name = metadata.distribution_name(names)
        for wanted in self.extras_require.values():  # some extras name the distribution itself
            wanted[:] = [re.sub(r"^fastkd(?=\[)", self.metadata.name, line) for line in wanted]


if __name__ == "__main__":
    names = native.wished_for()
    setup(
        ext_modules=[Extension(f"fastkd.{name}", []) for name in names],
        distclass=NamedDistribution,
        cmdclass={"build_ext": NinjaBuild},
        license_expression=metadata.license_expression(names),
        long_description=metadata.long_description(),
        long_description_content_type="text/markdown",
    )
