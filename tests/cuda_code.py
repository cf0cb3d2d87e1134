# SPDX-License-Identifier: Apache-2.0
"""What NVIDIA's cuobjdump tells of the machine code in fastkd._cuda. No GPU is needed.

python tests/cuda_code.py MODULE    writes the budgets anew: python3 dev.py gates --write
"""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

BUDGETS = Path(__file__).with_name("cuda_budgets.json")
# Registers are given to warps by so many a thread: counts in between cost the same.
REGISTER_UNIT = 8

ARCH = re.compile(r"arch = sm_(\d+)")
FUNCTION = re.compile(r"\s*Function\s*:?\s*(\w+)")
RESOURCES = re.compile(r"\s*REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
# The address, a predicate where there is one, the instruction.
INSTRUCTION = re.compile(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ +)?([A-Z][A-Z0-9_.]*)")


@dataclass
class Code:
    """One kernel compiled for one chip."""

    registers: int = 0
    stack: int = 0  # bytes a thread, where spilled registers go
    shared: int = 0  # bytes a block that are not asked for at launch
    local: int = 0  # bytes a thread
    instructions: Counter[str] = field(default_factory=Counter)

    def count(self, pattern: str) -> int:
        """Instructions whose name starts like this."""
        started = re.compile(pattern)
        return sum(n for name, n in self.instructions.items() if started.match(name))


Kernels = dict[tuple[str, int], Code]  # by name and chip


def read_module(module: Path) -> Kernels:
    """All kernels of a module on all its chips."""
    kernels: Kernels = {}
    read_resources(cuobjdump(module, "-res-usage"), kernels)
    archs = sorted({arch for _, arch in kernels})
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:  # half a minute for each chip

        def read(arch: int) -> None:
            read_instructions(cuobjdump(module, "-sass", "-arch", f"sm_{arch}"), kernels)

        list(pool.map(read, archs))  # raises what a reading raised
    names = readable(mangled for mangled, _ in kernels)
    return {(names[mangled], arch): code for (mangled, arch), code in kernels.items()}


def read_resources(lines: Iterable[str], kernels: Kernels) -> None:
    """Take in `cuobjdump -res-usage`."""
    arch, name = 0, ""
    for line in lines:
        if found := ARCH.match(line):
            arch = int(found[1])
        elif found := FUNCTION.match(line):
            name = found[1]
        elif found := RESOURCES.match(line):
            registers, stack, shared, local = map(int, found.groups())
            kernels[name, arch] = Code(registers, stack, shared, local)


def read_instructions(lines: Iterable[str], kernels: Kernels) -> None:
    """Take in `cuobjdump -sass`."""
    arch, code = 0, Code()
    for line in lines:
        if found := INSTRUCTION.match(line):
            code.instructions[found[1]] += 1
        elif found := ARCH.match(line):
            arch = int(found[1])
        elif found := FUNCTION.match(line):
            code = kernels.setdefault((found[1], arch), Code())


def readable(mangled: Iterable[str]) -> dict[str, str]:
    """Names as in rows_in_registers<KdLoss<ForwardKl, 4, true>, BFloat16, 16, (Scope)2>."""
    names = sorted(set(mangled))
    plain = subprocess.run(
        ["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True
    ).stdout.splitlines()
    clutter = re.compile(r"^void |\(anonymous namespace\)::|\w+::")
    arguments = re.compile(r"\((?!\w+\)\d).*")  # (Scope)2 is an argument of a template
    return {
        name: arguments.sub("", clutter.sub("", said))
        for name, said in zip(names, plain, strict=True)
    }


def find_tool(name: str) -> str | None:
    """One of NVIDIA's tools: from PyPI, else a toolkit's."""
    bundled = Path(sysconfig.get_path("purelib")).glob(f"nvidia/cu*/bin/{name}")
    return next(map(str, bundled), None) or shutil.which(name)


def cuobjdump(module: Path, *options: str) -> Iterator[str]:
    """The lines it prints; it calls nvdisasm."""
    tool, disassembler = find_tool("cuobjdump"), find_tool("nvdisasm")
    assert tool
    assert disassembler
    path = os.pathsep.join([str(Path(disassembler).parent), os.environ["PATH"]])
    command = [tool, *options, str(module)]
    with subprocess.Popen(
        command, env={**os.environ, "PATH": path}, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        yield from process.stdout
    assert process.returncode == 0, command


# ---- what a kernel may not do, and what it may cost; each lists the offenders ----


def spilling(kernels: Kernels) -> list[str]:
    """Kernels that keep anything in local memory."""
    return [
        f"{name} on {arch}: {code.stack + code.local} bytes, {code.count('LDL|STL')} accesses"
        for (name, arch), code in kernels.items()
        if code.stack or code.local or code.count("LDL|STL")
    ]


def static_shared(kernels: Kernels) -> list[str]:
    """Kernels with shared memory that plan() doesn't know of."""
    reserved = 1024  # by the system for each block, since 9.0
    return [
        f"{name} on {arch}: {code.shared} bytes"
        for (name, arch), code in kernels.items()
        if code.shared > (reserved if arch >= 90 else 0)
    ]


def budgets_of(kernels: Kernels) -> dict[str, dict[str, int]]:
    """Registers of every kernel and chip."""
    table: dict[str, dict[str, int]] = {}
    for (name, arch), code in sorted(kernels.items()):
        units = -(-code.registers // REGISTER_UNIT)
        table.setdefault(name, {})[str(arch)] = units * REGISTER_UNIT
    return table


def off_budget(kernels: Kernels, budgets: dict[str, dict[str, int]]) -> list[str]:
    """Kernels that take more registers than agreed, or were never agreed on, or are gone."""
    found = budgets_of(kernels)
    chips = {str(arch) for _, arch in kernels}
    wrong = [f"{name} is gone" for name in budgets.keys() - found.keys()]
    for name, registers in found.items():
        agreed = budgets.get(name, {})
        wrong += [f"{name} on {arch} has no budget" for arch in chips - agreed.keys()]
        wrong += [
            f"{name} on {arch}: {count} registers, {agreed[arch]} agreed"
            for arch, count in registers.items()
            if arch in agreed and count > agreed[arch]
        ]
    return sorted(wrong)


def write_budgets(kernels: Kernels) -> None:
    """One line a kernel, for the diff."""
    lines = [
        f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in budgets_of(kernels).items()
    ]
    BUDGETS.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    write_budgets(read_module(Path(sys.argv[1])))
