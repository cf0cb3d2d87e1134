# SPDX-License-Identifier: Apache-2.0
"""The native modules: sources, and what they are compiled with.

Every instruction set is a module of its own and all its kernels are compiled with its flags, so no
code built for a newer CPU can be linked into a plainer module. Only csrc/bindings and
csrc/backends see Python: the kernels' objects serve every version of it, and csrc/bindings is
compiled once for all modules.
"""

import os
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
ISA_FLAGS = {  # from the plainest to the best
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

# The first chips that get PTX of their own: the kernels' sources tell chips apart at 8.0 and 9.0,
# and CUDA's headers at 10.0. From the PTX of 8.0 or 10.0, ptxas makes the machine code for 8.6, 8.9
# and 12.0 that it makes from theirs, byte for byte.
NEW_PTX = (80, 90, 100)

BINDINGS = "csrc/bindings/module.cpp"

# Files that take long to compile, longest first. They start first, so that no core compiles one
# alone at the end.
LONGEST = (
    *("forward_kl", "module", "decoupled", "refining", "reverse_kl", "kd_loss_"),
    *("attention", "similarity", "topk_kd_loss", "triplets", "rkd_loss"),
)

# With its runtime inside, the module imports where there is no driver, and beside any torch.
NVCC_LINK_FLAGS = ("--cudart=static", "--no-device-link", "-Xlinker", "-s")


@dataclass(frozen=True)
class Module:
    """fastkd.<name>, its sources from the root, and flags besides those that all have."""

    name: str
    backend: str  # the source of what only this module has for Python
    kernels: tuple[str, ...]
    flags: tuple[str, ...] = ()
    backend_flags: tuple[str, ...] = ()
    nvcc: tuple[str, ...] = ()  # compiles the *.cu and links; none: the C++ compiler takes all
    nvcc_flags: tuple[str, ...] = ()
    link_flags: tuple[str, ...] = ("-s",)  # on Linux


def wished_isas(compiler: Sequence[str]) -> tuple[str, ...]:
    """The instruction sets to build for: FASTKD_CPU_ISAS, or all that this kind of CPU may have."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    known = tuple(ISA_FLAGS) if x86 else ("base",)
    wanted = os.environ.get("FASTKD_CPU_ISAS") or "all"
    if wanted == "all":
        return known
    if wanted in ("native", "runnable"):
        runnable = known[: known.index(best_isa(compiler)) + 1] if x86 else known
        return runnable if wanted == "runnable" else runnable[-1:]
    if not {*named_isas()} <= {*known}:
        raise SystemExit(
            f"fastkd: FASTKD_CPU_ISAS must be all, native, runnable or some of {';'.join(known)}, "
            f"got {wanted!r}"
        )
    return named_isas()


def named_isas() -> tuple[str, ...]:
    """The instruction sets that FASTKD_CPU_ISAS names one by one; none if it has another word."""
    wanted = os.environ.get("FASTKD_CPU_ISAS") or "all"
    words = ("all", "native", "runnable")
    return () if wanted in words else tuple(dict.fromkeys(wanted.split(";")))


def best_isa(compiler: Sequence[str]) -> str:
    """The best instruction set of this machine, as the compiler sees it."""
    seen = tools.macros(compiler, ["-march=native"])

    def there(isa: str) -> bool:
        options = [flag.removeprefix("-m") for flag in ISA_FLAGS[isa] if "=" not in flag]
        return all(f"__{option.upper()}__" in seen for option in options)

    return [isa for isa in ISA_FLAGS if there(isa)][-1]


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
    return Module(f"_cpu_{isa}", "csrc/backends/cpu.cpp", sources("csrc/cpu/*.cpp"), flags)


def cuda_module(nvcc: Sequence[str]) -> Module:
    """The CUDA kernels, for all chips in one module."""
    archs = tools.cuda_archs(nvcc)
    chips = f'-DFASTKD_CUDA_ARCHS="{";".join(archs)}"'
    werror = ["-Werror", "all-warnings"] if tools.switched_on("FASTKD_WERROR") else []
    # The wheel is a seventh in size; toolkits before 12.8 don't know it.
    smallest = ["--compress-mode=size"] if "--compress-mode" in tools.ask(nvcc, "--help") else []
    return Module(
        "_cuda",
        "csrc/backends/cuda.cpp",
        sources("csrc/cuda/*.cpp", "csrc/cuda/**/*.cu"),
        backend_flags=(chips,),
        nvcc=tuple(nvcc),
        nvcc_flags=(*NVCC_FLAGS, *smallest, *werror, *gencodes(archs), chips),
        # Where pip's toolkit has its libraries, and does not look for them.
        link_flags=(*NVCC_LINK_FLAGS, f"-L{tools.toolkit_folder(nvcc) / 'lib'}"),
    )


def gencodes(archs: Sequence[str]) -> list[str]:
    """nvcc's words for chips written as 90 or 90+PTX.

    Half of a chip's time goes into its PTX, so the chips of a family share the PTX of the first.
    """
    families: dict[int | str, list[str]] = {}
    for arch in archs:
        families.setdefault(family(arch.removesuffix("+PTX")), []).append(arch)
    flags = []
    for chips in families.values():
        numbers = [chip.removesuffix("+PTX") for chip in chips]
        first = min(numbers, key=lambda number: int(number.rstrip("af")))
        codes = [f"sm_{number}" for number in numbers]
        codes += [f"compute_{first}"] if numbers != chips else []
        flags += [f"-gencode=arch=compute_{first},code=[{','.join(codes)}]"]
    return flags


def family(arch: str) -> int | str:
    """The chips that share PTX; 90a, 100f and their like share none: no other chip runs it."""
    return sum(int(arch) >= first for first in NEW_PTX) if arch.isdecimal() else arch


def emulated_module() -> Module:
    """The CUDA kernels on a CPU, for tests."""
    return Module(
        "_cuda_emulated",
        "csrc/backends/cuda_emulated.cpp",
        emulated_sources(),
        EMULATOR_FLAGS,
        EMULATOR_FLAGS,
        link_flags=(),
    )


def emulator_runs() -> bool:
    """Whether this machine can run it."""
    return (sys.platform, platform.machine()) == ("linux", "x86_64")


def emulated_sources() -> tuple[str, ...]:
    """The CUDA kernels and what they run on, without Python."""
    found = sources(
        *("csrc/backends/simulated_chip.cpp", "csrc/emulator/*.cpp"),
        *("csrc/cuda/*.cpp", "csrc/cuda/**/*.cu"),
    )
    return tuple(source for source in found if source != "csrc/cuda/device_problem.cu")


def sources(*patterns: str) -> tuple[str, ...]:
    """Source files, from the root."""
    files = (file for pattern in patterns for file in sorted(ROOT.glob(pattern)))
    return tuple(str(file.relative_to(ROOT)) for file in files)


def place_in_build(source: str) -> int:
    """Where a source stands among those to compile."""
    name = Path(source).name
    places = (place for place, start in enumerate(LONGEST) if name.startswith(start))
    return next(places, len(LONGEST))


def cxx_flags(*more: str) -> list[str]:
    """All flags of a source that the C++ compiler compiles: some and those that all have."""
    werror = ["-Werror"] if tools.switched_on("FASTKD_WERROR") else []
    return [*FLAGS, *more, *werror, f"-I{ROOT / 'csrc'}"]


def python_flags() -> list[str]:
    """Flags of a source that sees Python."""
    import pybind11  # noqa: PLC0415 - a build requirement, absent when nothing is compiled

    system = (*(sysconfig.get_path(name) for name in tools.HEADERS), pybind11.get_include())
    return [flag for folder in dict.fromkeys(system) for flag in ("-isystem", folder)]


def nvcc_flags(module: Module) -> list[str]:
    """All flags of a source that nvcc compiles."""
    return [*module.nvcc_flags, f"-I{ROOT / 'csrc'}"]
