# SPDX-License-Identifier: Apache-2.0
"""The native modules: sources, and what they are compiled with.

Every instruction set is a module of its own and all its sources are compiled with its flags, so no
code built for a newer CPU can be linked into a plainer module. Only csrc/bindings and
csrc/backends see Python: the kernels' objects serve every version of it.
"""

import platform
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from build_tools import tools

ROOT = Path(__file__).resolve().parents[1]

# Products are fused into sums only where the kernels say so, and no math function sets errno or
# traps: the same bits on every instruction set, and loops that vectorise.
FLAGS = (
    *("-std=c++17", "-O3", "-g0", "-DNDEBUG", "-fPIC", "-fvisibility=hidden"),
    *("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-Wall", "-Wextra"),
)
_AVX2 = ("-mavx2", "-mfma", "-mf16c")
ISA_FLAGS = {
    "base": (),
    "avx2": _AVX2,
    "avx512": (
        *_AVX2,
        *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"),
    ),
}
# GCC 12 warns inside its own avx512fintrin.h (GCC bug 105593).
GCC_QUIET = ("-Wno-maybe-uninitialized", "-Wno-uninitialized")

# The emulator switches stacks, in x86-64 assembly. The kernels' sources are C++ to it.
EMULATOR_FLAGS = ("-x", "c++", "-std=c++20", "-O2", "-g1", "-Wno-unknown-pragmas")

# As for the CPU: no fused products but written ones. Subnormal floats are flushed, so that no
# division or exponential has a slow path.
NVCC_FLAGS = (
    *("-std=c++17", "-O3", "-DNDEBUG", "-ftz=true", "-fmad=false"),
    *("-Xcompiler", "-fPIC,-fvisibility=hidden,-Wall,-Wextra"),
    *("-Xptxas", "--warn-on-spills,--warn-on-local-memory-usage"),
)

# With its runtime inside, the module imports where there is no driver, and beside any torch.
NVCC_LINK_FLAGS = ("--cudart=static", "--no-device-link", "-Xlinker", "-s")


@dataclass(frozen=True)
class Module:
    """fastkd.<name>, its sources from the root, and flags besides those that all have."""

    name: str
    sources: tuple[str, ...]
    flags: tuple[str, ...] = ()
    nvcc: tuple[str, ...] = ()  # compiles the *.cu and links; none: the C++ compiler takes all
    nvcc_flags: tuple[str, ...] = ()
    link_flags: tuple[str, ...] = ("-s",)  # on Linux


def isas() -> tuple[str, ...]:
    """The instruction sets that this kind of machine may have."""
    return tuple(ISA_FLAGS) if platform.machine().lower() in ("x86_64", "amd64") else ("base",)


def module(name: str, compiler: Sequence[str]) -> Module:
    """The module called fastkd.<name>, as this machine compiles it."""
    if name == "_cuda":
        return cuda_module(tools.find_nvcc())
    if name == "_cuda_emulated":
        return emulated_module()
    return cpu_module(name.removeprefix("_cpu_"), compiler)


def cpu_module(isa: str, compiler: Sequence[str]) -> Module:
    """The kernels for one instruction set."""
    flags = ISA_FLAGS[isa]
    # Clang does not know them, and with -Werror it says so by failing.
    if isa == "avx512" and not tools.complaint(compiler, ["-Werror", *GCC_QUIET]):
        flags += GCC_QUIET
    return Module(f"_cpu_{isa}", (*bindings("cpu"), *sources("csrc/cpu/*.cpp")), flags)


def cuda_module(nvcc: Sequence[str]) -> Module:
    """The CUDA kernels, for all chips in one module."""
    archs = tools.cuda_archs(nvcc)
    chips = f'-DFASTKD_CUDA_ARCHS="{";".join(archs)}"'
    werror = ["-Werror", "all-warnings"] if tools.switched_on("FASTKD_WERROR") else []
    # The wheel is a seventh in size; toolkits before 12.8 don't know it.
    smallest = ["--compress-mode=size"] if "--compress-mode" in tools.ask(nvcc, "--help") else []
    return Module(
        "_cuda",
        (*bindings("cuda"), *sources("csrc/cuda/*.cpp", "csrc/cuda/*.cu")),
        flags=(chips,),
        nvcc=tuple(nvcc),
        nvcc_flags=(*NVCC_FLAGS, *smallest, *werror, *gencodes(archs), chips),
        # Where pip's toolkit has its libraries, and does not look for them.
        link_flags=(*NVCC_LINK_FLAGS, f"-L{tools.toolkit_folder(nvcc) / 'lib'}"),
    )


def gencodes(archs: Sequence[str]) -> list[str]:
    """nvcc's words for chips written as 90 or 90+PTX."""
    flags = []
    for arch in archs:
        number = arch.removesuffix("+PTX")
        codes = [f"sm_{number}"] + ([f"compute_{number}"] if arch != number else [])
        flags += [f"-gencode=arch=compute_{number},code=[{','.join(codes)}]"]
    return flags


def emulated_module() -> Module:
    """The CUDA kernels on a CPU, for tests."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise SystemExit("fastkd: FASTKD_EMULATOR=1, but the emulator runs on x86-64 Linux only")
    all_sources = (*bindings("cuda_emulated"), *emulated_sources())
    return Module("_cuda_emulated", all_sources, EMULATOR_FLAGS, link_flags=())


def emulated_sources() -> tuple[str, ...]:
    """The CUDA kernels and what they run on, without Python."""
    found = sources(
        *("csrc/backends/simulated_chip.cpp", "csrc/emulator/*.cpp"),
        *("csrc/cuda/*.cpp", "csrc/cuda/*.cu"),
    )
    return tuple(source for source in found if source != "csrc/cuda/device_problem.cu")


def bindings(backend: str) -> tuple[str, ...]:
    """What a module is to Python."""
    return *sources("csrc/bindings/*.cpp"), f"csrc/backends/{backend}.cpp"


def sources(*patterns: str) -> tuple[str, ...]:
    """Source files, from the root."""
    files = (file for pattern in patterns for file in sorted(ROOT.glob(pattern)))
    return tuple(str(file.relative_to(ROOT)) for file in files)


def cxx_flags(module: Module, source: str) -> list[str]:
    """All flags of a source that the C++ compiler compiles."""
    werror = ["-Werror"] if tools.switched_on("FASTKD_WERROR") else []
    flags = [*FLAGS, *module.flags, *werror, f"-I{ROOT / 'csrc'}"]
    if source.startswith(("csrc/bindings/", "csrc/backends/")):
        import pybind11  # noqa: PLC0415 - a build requirement, absent when nothing is compiled

        system = (*(sysconfig.get_path(name) for name in tools.HEADERS), pybind11.get_include())
        flags += [flag for folder in dict.fromkeys(system) for flag in ("-isystem", folder)]
        flags.append(f"-DFASTKD_MODULE={module.name}")
    return flags


def nvcc_flags(module: Module) -> list[str]:
    """All flags of a source that nvcc compiles."""
    return [*module.nvcc_flags, f"-I{ROOT / 'csrc'}"]
