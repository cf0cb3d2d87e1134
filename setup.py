# SPDX-License-Identifier: Apache-2.0
"""Compiles the native modules with ninja; all else is declared in pyproject.toml.

Every instruction set is a module of its own and all its sources are compiled with its flags, so no
code built for a newer CPU can be linked into a plainer module. Neither torch nor its headers are
needed: the kernels get addresses.

Environment variables:
    FASTKD_NATIVE: auto (the default) installs the PyTorch reference only where nothing can be
        compiled, and says so; 1 makes that an error; 0 never compiles.
    CXX: the C++ compiler, with arguments if need be ("ccache g++").
    MAX_JOBS: compilers that run at a time; ninja's own choice is one per core and two.
    FASTKD_WERROR: 1 turns compiler warnings into errors, for our own CI.
"""

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent

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

HEADERS = ("include", "platinclude")  # Python's own, in sysconfig's words
WAYS_OUT = (
    "CXX=... picks another compiler; FASTKD_NATIVE=0 installs the PyTorch reference only, which is "
    "always right and never fast"
)
PROBE = "#include <cmath>\n#include <vector>\nint main() { return 0; }\n"


def main() -> None:
    """Tell setuptools what there is to compile."""
    setup(
        ext_modules=[
            Extension(f"fastkd._cpu_{isa}", source_files())
            for isa in (isas() if native_wanted() else ())
        ],
        cmdclass={"build_ext": NinjaBuild},
    )


def isas() -> tuple[str, ...]:
    """The instruction sets that this kind of machine may have."""
    return tuple(ISA_FLAGS) if platform.machine().lower() in ("x86_64", "amd64") else ("base",)


def source_files() -> list[str]:
    """The sources of a module, from the repository's root."""
    kernels = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("csrc/cpu/*.cpp"))
    return ["csrc/bindings.cpp", *kernels]


def native_wanted() -> bool:
    """Whether to compile: what FASTKD_NATIVE says, and in doubt whether it can be done."""
    choice = os.environ.get("FASTKD_NATIVE", "auto")
    if choice not in ("auto", "0", "1"):
        raise SystemExit(f"fastkd: FASTKD_NATIVE must be one of auto, 0, 1, got {choice!r}")
    if choice == "0":
        return False
    obstacle = why_not_native()
    if obstacle and choice == "1":
        raise SystemExit(f"fastkd: FASTKD_NATIVE=1, but {obstacle}")
    if obstacle:
        print(f"fastkd: {obstacle}; installing the PyTorch reference only", file=sys.stderr)
    return not obstacle


def why_not_native() -> str | None:
    """What is missing on this machine to compile, or None."""
    if sys.platform == "win32":
        return "the native modules are built on Linux and macOS only"
    if not find_compiler():
        wanted = os.environ.get("CXX")
        if wanted:
            return f"there is no C++ compiler (CXX={wanted} is not there)"
        return (
            "there is no C++ compiler (none of g++, c++, clang++ is there; Debian and Ubuntu: "
            "apt-get install g++)"
        )
    headers = {sysconfig.get_path(name) for name in HEADERS}
    if not any(Path(folder, "Python.h").exists() for folder in headers):
        return (
            f"Python.h is not in {' or '.join(sorted(headers))} (Debian and Ubuntu: apt-get "
            "install python3-dev)"
        )
    return None


def find_compiler() -> list[str]:
    """The compiler's command line, empty where there is none."""
    wanted = shlex.split(os.environ.get("CXX", ""))
    for command in [wanted] if wanted else [["g++"], ["c++"], ["clang++"]]:
        if shutil.which(command[0]):
            return command
    return []


class NinjaBuild(build_ext):
    """build_ext that leaves the compiling to ninja, all modules at once."""

    extensions: list[Extension]

    def build_extensions(self) -> None:
        """Write build.ninja, run it."""
        compiler = find_compiler()
        # Editable builds get a new temporary folder each time, and would compile everything anew.
        folder = ROOT / "build" / "editable" if self.editable_mode else Path(self.build_temp)
        folder.mkdir(parents=True, exist_ok=True)
        extensions = list(usable(compiler, self.extensions, folder))
        outputs = {
            isa_of(extension): Path(self.get_ext_fullpath(extension.name)).resolve()
            for extension in extensions
        }
        self.extensions = extensions  # what setuptools copies and records
        package = Path(self.build_lib).resolve() / "fastkd"
        package.mkdir(parents=True, exist_ok=True)
        for leftover in set(package.glob("_cpu_*")) - set(outputs.values()):
            leftover.unlink()  # or the wheel would have it
        (folder / "build.ninja").write_text(ninja_file(compiler, outputs, folder))
        run_ninja(folder)


def isa_of(extension: Extension) -> str:
    """The instruction set of fastkd._cpu_<isa>."""
    name: str = extension.name
    return name.removeprefix("fastkd._cpu_")


def usable(
    compiler: Sequence[str], extensions: Sequence[Extension], folder: Path
) -> Iterator[Extension]:
    """The modules whose flags the compiler knows."""
    for extension in extensions:
        isa = isa_of(extension)
        complaint = try_to_compile(compiler, ISA_FLAGS[isa], folder)
        if complaint is None:
            yield extension
        elif isa == "base":
            raise CompileError(
                f"{shlex.join(compiler)} cannot compile a C++17 program:\n{complaint}\n{WAYS_OUT}"
            )
        else:
            print(f"fastkd: {compiler[0]} does not know {isa}; leaving that module out")


def try_to_compile(compiler: Sequence[str], flags: Sequence[str], folder: Path) -> str | None:
    """What the compiler has against a tiny program, or None."""
    command = [*compiler, "-std=c++17", *flags, "-x", "c++", "-c", "-", "-o", "probe.o"]
    probe = subprocess.run(
        command, cwd=folder, input=PROBE, capture_output=True, text=True, check=False
    )
    return None if probe.returncode == 0 else probe.stderr or f"exit status {probe.returncode}"


def ninja_file(compiler: Sequence[str], outputs: dict[str, Path], folder: Path) -> str:
    """The whole build: one object per source and instruction set, one module per set."""
    lines = [
        "ninja_required_version = 1.5",
        "rule cxx",
        f"  command = {shell([*compiler, *common_flags()])} $isa -MMD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "  description = compile $out",
        "rule link",
        f"  command = {shell(compiler)} $in -o $out $link",
        "  description = link $out",
    ]
    for isa, output in outputs.items():
        flags = [f"-DFASTKD_MODULE=_cpu_{isa}", *ISA_FLAGS[isa]]
        # Clang does not know them, and with -Werror it says so by failing.
        if isa == "avx512" and not try_to_compile(compiler, ["-Werror", *GCC_QUIET], folder):
            flags += GCC_QUIET
        objects = []
        for source in source_files():
            objects.append(f"{isa}/{Path(source).stem}.o")
            lines += [f"build {objects[-1]}: cxx {path(ROOT / source)}", f"  isa = {shell(flags)}"]
        lines += [
            f"build {path(output)}: link {' '.join(objects)}",
            f"  link = {shell(link_flags(f'PyInit__cpu_{isa}', folder))}",
        ]
    return "\n".join([*lines, ""])


def common_flags() -> list[str]:
    """What every source is compiled with."""
    import pybind11  # noqa: PLC0415 - a build requirement, absent when nothing is compiled

    system = (*(sysconfig.get_path(name) for name in HEADERS), pybind11.get_include())
    includes = [flag for folder in dict.fromkeys(system) for flag in ("-isystem", folder)]
    werror = ["-Werror"] if os.environ.get("FASTKD_WERROR") == "1" else []
    return [*FLAGS, *werror, f"-I{ROOT / 'csrc'}", *includes]


def link_flags(symbol: str, folder: Path) -> list[str]:
    """How to make a module that exports one symbol: no template of one set may serve another."""
    if sys.platform == "darwin":
        exported = f"-Wl,-exported_symbol,_{symbol}"
        return ["-bundle", "-undefined", "dynamic_lookup", "-Wl,-x", exported]
    script = folder / f"{symbol}.map"
    script.write_text(f"{{ global: {symbol}; local: *; }};\n")
    return ["-shared", "-s", f"-Wl,--version-script={script.name}"]


def run_ninja(folder: Path) -> None:
    """Compile; the compiler's words go to the build's output."""
    import ninja  # noqa: PLC0415 - a build requirement, absent when nothing is compiled

    jobs = os.environ.get("MAX_JOBS", "")
    if jobs and not (jobs.isdecimal() and int(jobs) > 0):
        raise SystemExit(f"fastkd: MAX_JOBS must be a whole number above 0, got {jobs!r}")
    command = [str(Path(ninja.BIN_DIR) / "ninja"), *(["-j", jobs] if jobs else [])]
    sys.stdout.flush()
    if subprocess.run(command, cwd=folder, check=False).returncode != 0:
        raise CompileError(f"the native modules do not compile, see above; {WAYS_OUT}")


def path(file: Path) -> str:
    """A path as build.ninja writes it."""
    return str(file).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def shell(words: Sequence[str]) -> str:
    """A command line as build.ninja writes it."""
    return shlex.join(words).replace("$", "$$")


if __name__ == "__main__":  # dev.py reads the flags from here
    main()
