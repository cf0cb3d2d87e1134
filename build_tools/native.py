# SPDX-License-Identifier: Apache-2.0
"""Compiles the native modules that the environment variables select.

`python -m build_tools.native` compiles them in place, setup.py for wheels and for
`pip install -e .`. setup.py lists the variables.
"""

import sys
import sysconfig
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

from build_tools import modules, ninja_build, tools

FOLDER = modules.ROOT / "build" / "native"  # of all builds: what they share compiles once

WAYS_OUT = (
    "CXX=... picks another compiler; FASTKD_NATIVE=0 installs the PyTorch reference only, which is "
    "slower and needs more memory"
)
WAYS_OUT_OF_CUDA = (
    "FASTKD_CUDA=0 leaves the CUDA kernels out; NVCC=... picks another nvcc, and "
    f"{tools.TOOLKIT} brings one that is known to work"
)


class BuildError(Exception):
    """The compiler refused."""


def wished_for() -> list[str]:
    """The modules to build: as the environment says, and in doubt those that can be built."""
    if not _wanted("FASTKD_NATIVE", tools.why_not_native, "installing the PyTorch reference only"):
        if tools.choice("FASTKD_CUDA") == "1":
            raise SystemExit(
                "fastkd: FASTKD_CUDA=1, but the CUDA kernels need the CPU's beside them"
            )
        return []
    names = [f"_cpu_{isa}" for isa in modules.wished_isas(tools.find_compiler())]
    if _wanted("FASTKD_CUDA", tools.why_not_cuda, "building for the CPU only"):
        names.append("_cuda")
    if tools.switched_on("FASTKD_EMULATOR"):
        if not modules.emulator_runs():
            raise SystemExit(
                "fastkd: FASTKD_EMULATOR=1, but the emulator runs on x86-64 Linux only"
            )
        names.append("_cuda_emulated")
    return names


def usable(names: Sequence[str]) -> Iterator[str]:
    """The modules whose flags the compiler knows."""
    compiler = tools.find_compiler()
    for name in names:
        isa = name.removeprefix("_cpu_")
        complaint = tools.complaint(compiler, modules.ISA_FLAGS.get(isa, ()))
        if complaint is None:
            yield name
        elif isa == "base":
            raise BuildError(
                f"{' '.join(compiler)} cannot compile a C++17 program:\n{complaint}\n{WAYS_OUT}"
            )
        elif modules.named_isas():
            raise BuildError(f"FASTKD_CPU_ISAS names {isa}, {compiler[0]} does not know it")
        else:
            print(f"fastkd: {compiler[0]} does not know {isa}; leaving that module out")


def compile_modules(outputs: Mapping[str, Path]) -> None:
    """Compile modules, each into its file; no older module stays beside them."""
    for folder, suffix in {(file.parent, file.name.partition(".")[2]) for file in outputs.values()}:
        _clear(folder, suffix, outputs.values())
    FOLDER.mkdir(parents=True, exist_ok=True)
    compiler = tools.find_compiler()
    built = {modules.module(name, compiler): output for name, output in outputs.items()}
    build = ninja_build.modules_file(compiler, built, FOLDER)
    if not ninja_build.run(FOLDER, "build.ninja", build):
        ways_out = WAYS_OUT_OF_CUDA if any(module.nvcc for module in built) else WAYS_OUT
        raise BuildError(f"the native modules do not compile, see above; {ways_out}")


def _wanted(variable: str, why_not: Callable[[], str | None], otherwise: str) -> bool:
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


def _clear(folder: Path, suffix: str, but: Collection[Path]) -> None:
    """Delete the modules in a folder for one Python, but some."""
    for left_over in {*folder.glob(f"_c*.{suffix}")} - {*but}:
        left_over.unlink()


def main() -> None:
    """Build in place."""
    suffix = sysconfig.get_config_var("EXT_SUFFIX").removeprefix(".")
    package = modules.ROOT / "fastkd"
    try:
        outputs = {name: package / f"{name}.{suffix}" for name in usable(wished_for())}
        if outputs:
            compile_modules(outputs)
        else:
            _clear(package, suffix, ())
    except BuildError as error:
        sys.exit(f"fastkd: {error}")


if __name__ == "__main__":
    main()
