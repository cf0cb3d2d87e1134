# SPDX-License-Identifier: Apache-2.0
"""Files for ninja: what to compile and to link, all of it in one build."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from build_tools import modules
from build_tools.modules import ROOT, Module

RULES = """\
ninja_required_version = 1.5
rule compile
  command = $compiler $flags -MMD -MF $out.d -c $in -o $out
  depfile = $out.d
  deps = gcc
  description = compile $out
rule link
  command = $linker $in -o $out
  description = link $out"""


class NinjaFile:
    """The text of a build, edge by edge."""

    def __init__(self) -> None:
        self._compiled: dict[str, tuple[str, list[str]]] = {}  # object -> its source and edge
        self._linked: list[str] = []

    def compile(
        self, folder: str, source: str, compiler: Sequence[str], flags: Sequence[str]
    ) -> str:
        """Add the compilation of a source once, and return its object."""
        output = f"{folder}/{source}.o"
        edge = [
            f"build {output}: compile {path(ROOT / source)}",
            f"  compiler = {shell(compiler)}",
            f"  flags = {shell(flags)}",
        ]
        assert self._compiled.setdefault(output, (source, edge)) == (source, edge)
        return output

    def kernels(self, module: Module, compiler: Sequence[str]) -> list[str]:
        """Add the kernels of a module, and return their objects."""
        objects = []
        for source in module.kernels:
            if module.nvcc and source.endswith(".cu"):
                command, flags = module.nvcc, modules.nvcc_flags(module)
            else:
                command, flags = tuple(compiler), modules.cxx_flags(*module.flags)
            objects.append(self.compile(module.name, source, command, flags))
        return objects

    def link(self, output: Path, objects: Sequence[str], linker: Sequence[str]) -> None:
        """Link objects."""
        self._linked += [
            f"build {path(output)}: link {' '.join(objects)}",
            f"  linker = {shell(linker)}",
        ]

    def __str__(self) -> str:
        """The file, the longest compilations first: ninja starts what it can in their order."""
        edges = sorted(self._compiled.values(), key=lambda edge: modules.place_in_build(edge[0]))
        return "\n".join([RULES, *(line for _, edge in edges for line in edge), *self._linked, ""])


def modules_file(compiler: Sequence[str], outputs: Mapping[Module, Path], folder: Path) -> str:
    """The build of modules: an object per module and kernel, the bindings shared by all."""
    build = NinjaFile()
    for module, output in outputs.items():
        shared = modules.cxx_flags(*modules.python_flags())
        objects = [
            build.compile("python", modules.BINDINGS, compiler, shared),
            build.compile("python", module.backend, compiler, [*shared, *module.backend_flags]),
            *build.kernels(module, compiler),
        ]
        build.link(output, objects, linker(compiler, module, folder))
    return str(build)


def linker(compiler: Sequence[str], module: Module, folder: Path) -> list[str]:
    """How to make a module that exports one symbol: no template of one may serve another."""
    symbol = f"PyInit_{module.name}"
    if sys.platform == "darwin":
        exported = f"-Wl,-exported_symbol,_{symbol}"
        return [*compiler, "-bundle", "-undefined", "dynamic_lookup", "-Wl,-x", exported]
    script = folder / f"{symbol}.map"
    script.write_text(f"{{ global: {symbol}; local: *; }};\n")
    exported = ["-Xlinker", f"--version-script={script.name}"]
    return [*(module.nvcc or compiler), "-shared", *exported, *module.link_flags]


def run(folder: Path, file: str, text: str) -> bool:
    """Build what a file says in its folder, and say whether that worked.

    The files of a folder share their objects. ninja's words go to the build's output.
    """
    import fcntl  # noqa: PLC0415 - Windows, where nothing is compiled, has none

    import ninja  # noqa: PLC0415 - a build requirement, absent when nothing is compiled

    jobs = os.environ.get("MAX_JOBS", "")
    if jobs and not (jobs.isdecimal() and int(jobs) > 0):
        raise SystemExit(f"fastkd: MAX_JOBS must be a whole number above 0, got {jobs!r}")
    command = [str(Path(ninja.BIN_DIR) / "ninja"), "-f", file, *(["-j", jobs] if jobs else [])]
    with (folder / "lock").open("w") as lock:  # a second build waits for the first
        fcntl.flock(lock, fcntl.LOCK_EX)
        (folder / file).write_text(text, encoding="utf-8")
        return _run(command, folder)


def _run(command: Sequence[str], folder: Path) -> bool:
    planned = subprocess.run(
        [*command, "-n"], cwd=folder, capture_output=True, text=True, check=False
    )
    files = len(re.findall(r"^\[\d+/\d+\] compile", planned.stdout, re.MULTILINE))
    if files:
        print(f"fastkd: {files} files to compile", flush=True)
    return subprocess.run(command, cwd=folder, check=False).returncode == 0


def path(file: Path) -> str:
    """A path as ninja reads it."""
    return str(file).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def shell(words: Sequence[str]) -> str:
    """A command line as ninja reads it."""
    return shlex.join(words).replace("$", "$$")
