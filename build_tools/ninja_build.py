# SPDX-License-Identifier: Apache-2.0
"""build.ninja: all modules in one build."""

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from build_tools.modules import ROOT, Module, cxx_flags, nvcc_flags

RULES = """\
ninja_required_version = 1.5
rule cxx
  command = {cxx} $flags -MMD -MF $out.d -c $in -o $out
  depfile = $out.d
  deps = gcc
  description = compile $out
rule nvcc
  command = $nvcc $flags -MMD -MF $out.d -c $in -o $out
  depfile = $out.d
  deps = gcc
  description = compile $out
rule link
  command = $linker $in -o $out
  description = link $out"""


def ninja_file(compiler: Sequence[str], outputs: Mapping[Module, Path], folder: Path) -> str:
    """The whole build: an object per module and source, linked into the outputs."""
    lines = RULES.format(cxx=shell(compiler)).splitlines()
    for module, output in outputs.items():
        objects = []
        for source in module.sources:
            objects.append(f"{module.name}/{source}.o")
            by_nvcc = bool(module.nvcc) and source.endswith(".cu")
            flags = nvcc_flags(module) if by_nvcc else cxx_flags(module, source)
            lines += [
                f"build {objects[-1]}: {'nvcc' if by_nvcc else 'cxx'} {path(ROOT / source)}",
                f"  flags = {shell(flags)}",
            ]
            if by_nvcc:
                lines.append(f"  nvcc = {shell(module.nvcc)}")
        lines += [
            f"build {path(output)}: link {' '.join(objects)}",
            f"  linker = {shell(linker(compiler, module, folder))}",
        ]
    return "\n".join([*lines, ""])


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


def run(folder: Path) -> bool:
    """Compile, and say whether that worked; the compilers' words go to the build's output."""
    import ninja  # noqa: PLC0415 - a build requirement, absent when nothing is compiled

    jobs = os.environ.get("MAX_JOBS", "")
    if jobs and not (jobs.isdecimal() and int(jobs) > 0):
        raise SystemExit(f"fastkd: MAX_JOBS must be a whole number above 0, got {jobs!r}")
    command = [str(Path(ninja.BIN_DIR) / "ninja"), *(["-j", jobs] if jobs else [])]
    sys.stdout.flush()
    return subprocess.run(command, cwd=folder, check=False).returncode == 0


def path(file: Path) -> str:
    """A path as build.ninja writes it."""
    return str(file).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def shell(words: Sequence[str]) -> str:
    """A command line as build.ninja writes it."""
    return shlex.join(words).replace("$", "$$")
