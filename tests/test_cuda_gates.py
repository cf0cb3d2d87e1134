# SPDX-License-Identifier: Apache-2.0
"""The machine code of the CUDA kernels: what it may not do, and what it may cost.

Reads the installed fastkd._cuda, or the file that FASTKD_CUDA_MODULE names (python3 dev.py gates).
"""

import importlib.util
import json
import os
import re
import shutil
from pathlib import Path

import pytest
from cuda_code import (
    BUDGETS,
    Code,
    Kernels,
    find_tool,
    off_budget,
    read_instructions,
    read_module,
    read_resources,
    readable,
    spilling,
    static_shared,
)

# Loss and divergence, temperature, hard term, type, classes a thread, and which threads share a
# row: 2 a block, 3 a cluster.
IN_REGISTERS = re.compile(
    r"rows_in_registers<(KdLoss<\w+, |DecoupledKdLoss<)(\d), (\w+)>, (\w+), (\d+), \(Scope\)(\d)>"
)
CLUSTER, FIRST_WITH_CLUSTERS = 3, 90


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    given = os.environ.get("FASTKD_CUDA_MODULE")
    spec = None if given else importlib.util.find_spec("fastkd._cuda")
    module = given or (spec and spec.origin)
    if not module:
        pytest.skip("fastkd._cuda is not built: python3 dev.py gates")
    missing = [tool for tool in ("cuobjdump", "nvdisasm") if not find_tool(tool)]
    missing += [] if shutil.which("c++filt") else ["c++filt"]
    if missing:
        leave = pytest.fail if given else pytest.skip
        leave(f"there is no {', '.join(missing)} (pyproject.toml: cuda-gates)")
    return read_module(Path(module))


class Row:
    """A kernel that keeps rows in registers, by its name."""

    def __init__(self, name: re.Match[str]) -> None:
        loss, power, hard, dtype, items, scope = name.groups()
        self.loss = f"{loss}{power}, {hard}> of {dtype}"
        self.refines = "AnyRefining" in loss
        self.items, self.scope = int(items), int(scope)
        self.vectors = self.items * (4 if dtype == "float" else 2) // 16
        # A power of the student's exponential is the hard term's, if the temperature is 1, 2 or 4.
        # Else it has its own; three a class don't fit the registers, and the gradient repeats them.
        own = power == "0" and hard == "true"
        self.exps = 6 if own else 2
        if self.refines:  # they repeat them twice, the hard term's once
            self.exps = 8 if own else 6
        elif own and "ReverseKl" in loss:  # its gradient asks nothing of the teacher's
            self.exps = 5
        self.exps_aside = 16 if loss == "DecoupledKdLoss<" else 0  # a row's, of its label


def rows_in_registers(kernels: Kernels) -> list[tuple[str, Row, Code]]:
    """Those that have code on their chip."""
    found = []
    for (name, arch), code in kernels.items():
        match = IN_REGISTERS.fullmatch(name)
        if match and (Row(match).scope != CLUSTER or arch >= FIRST_WITH_CLUSTERS):
            found.append((f"{name} on {arch}", Row(match), code))
    return found


def wasting_exps(kernels: Kernels) -> list[str]:
    """Other than so many a class, and fewer than one a class more for what is done once a row."""
    return [
        f"{name}: {count} for {row.items} classes"
        for name, row, code in rows_in_registers(kernels)
        for count in [code.count(r"MUFU\.EX2")]
        if not row.exps * row.items <= count < (row.exps + 1) * row.items + row.exps_aside
    ]


def narrow(kernels: Kernels) -> list[str]:
    """Fewer 16-byte loads than student and teacher have, or stores than the gradient has."""
    return [
        name
        for name, row, code in rows_in_registers(kernels)
        if code.count(r"LDG\.E.*\.128") < 2 * row.vectors
        or code.count(r"STG\.E.*\.128") < row.vectors
    ]


def dividing(kernels: Kernels) -> list[str]:
    """A row divides so often, however many classes a thread has, 8 to 32; to refine divides."""
    counts: dict[str, list[int]] = {}
    for name, row, code in rows_in_registers(kernels):
        if row.refines:
            continue
        counts.setdefault(f"{row.loss} on {name.split()[-1]}", []).append(code.count(r"MUFU\.RCP"))
    return [f"{name}: {found}" for name, found in counts.items() if max(found) - min(found) >= 8]


def test_no_kernel_uses_local_memory(kernels: Kernels) -> None:
    assert spilling(kernels) == []


def test_shared_memory_is_asked_for_at_launch(kernels: Kernels) -> None:
    assert static_shared(kernels) == []


def test_registers_keep_to_the_budgets(kernels: Kernels) -> None:
    assert off_budget(kernels, json.loads(BUDGETS.read_text())) == []


def test_register_kernels_compute_no_exponential_twice(kernels: Kernels) -> None:
    assert rows_in_registers(kernels)
    assert wasting_exps(kernels) == []


def test_register_kernels_move_sixteen_bytes_at_a_time(kernels: Kernels) -> None:
    assert narrow(kernels) == []


def test_register_kernels_do_not_divide_per_class(kernels: Kernels) -> None:
    assert dividing(kernels) == []


# ---- the gates themselves: each must see what is wrong ----

RESOURCES = """\
Fatbin elf code:
================
arch = sm_90
code version = [1,8]

Resource usage:
 Common:
  GLOBAL:0
 Function _ZN6fastkd4cuda4fineEv:
  REG:61 STACK:0 SHARED:1024 LOCAL:0 CONSTANT[0]:528 TEXTURE:0 SURFACE:0 SAMPLER:0
 Function _ZN6fastkd4cuda7spilledEv:
  REG:64 STACK:8 SHARED:1040 LOCAL:0 CONSTANT[0]:528 TEXTURE:0 SURFACE:0 SAMPLER:0
"""
INSTRUCTIONS = """\
arch = sm_90
\tcode for sm_90
\t\tFunction : _ZN6fastkd4cuda4fineEv
\t.headerflags\t@"EF_CUDA_SM90 EF_CUDA_VIRTUAL_SM(EF_CUDA_SM90)"
        /*0000*/                   LDC R1, c[0x0][0x28] ;           /* 0x00000a00ff017b82 */
                                                                    /* 0x000e220000000800 */
        /*0010*/              @!P0 LDG.E.128 R4, desc[UR4][R2.64] ; /* 0x0000000402048981 */
        /*0020*/                   MUFU.EX2 R9, R8 ;                /* 0x0000000800097308 */
        /*0030*/             @!UP1 MUFU.EX2 R10, R8 ;               /* 0x0000000800097308 */
\t\tFunction : _ZN6fastkd4cuda7spilledEv
        /*0000*/                   STL.64 [R1], R2 ;                /* 0x0000000201007387 */
"""
FINE, SPILLED = ("_ZN6fastkd4cuda4fineEv", 90), ("_ZN6fastkd4cuda7spilledEv", 90)


def sample() -> Kernels:
    kernels: Kernels = {}
    read_resources(RESOURCES.splitlines(), kernels)
    read_instructions(INSTRUCTIONS.splitlines(), kernels)
    return kernels


def row_kernel(items: int = 16, registers: int = 64, **instructions: int) -> Kernels:
    """A kernel with 2 exponentials a class and vectors of 8, by default as it should be."""
    counts = {"EX2": 2 * items + 6, "LDG": items // 4, "STG": items // 8, "RCP": 15, **instructions}
    names = {"EX2": "MUFU.EX2", "LDG": "LDG.E.128", "STG": "STG.E.128.SYS", "RCP": "MUFU.RCP"}
    code = Code(registers)
    code.instructions.update({names[key]: count for key, count in counts.items()})
    name = f"rows_in_registers<KdLoss<ForwardKl, 4, true>, BFloat16, {items}, (Scope)2>"
    return {(name, 80): code}


def test_reader_takes_in_resources_and_instructions() -> None:
    kernels = sample()
    assert list(kernels) == [FINE, SPILLED]
    assert (kernels[FINE].registers, kernels[SPILLED].stack) == (61, 8)
    assert kernels[FINE].instructions == {"LDC": 1, "LDG.E.128": 1, "MUFU.EX2": 2}


@pytest.mark.skipif(not shutil.which("c++filt"), reason="there is no c++filt")
def test_names_are_readable() -> None:
    mangled = (
        "_ZN6fastkd4cuda17rows_in_registersINS_6KdLossINS_9ForwardKlELi4ELb1EEENS_8BFloat16ELi16E"
        "LNS0_5ScopeE2EEEvNS0_7RowCallIT_EEii"
    )
    name = readable([mangled])[mangled]
    assert name == "rows_in_registers<KdLoss<ForwardKl, 4, true>, BFloat16, 16, (Scope)2>"
    assert IN_REGISTERS.fullmatch(name)


def test_gate_sees_local_memory() -> None:
    assert spilling(sample()) == [f"{SPILLED[0]} on 90: 8 bytes, 1 accesses"]


def test_gate_sees_static_shared_memory() -> None:
    assert static_shared(sample()) == [f"{SPILLED[0]} on 90: 1040 bytes"]


def test_gate_sees_registers_that_cost_occupancy() -> None:
    name, budgets = next(iter(row_kernel()))[0], {next(iter(row_kernel()))[0]: {"80": 64}}
    assert off_budget(row_kernel(registers=57), budgets) == []
    assert off_budget(row_kernel(registers=65), budgets) == [
        f"{name} on 80: 72 registers, 64 agreed"
    ]
    assert off_budget(row_kernel(), {}) == [f"{name} on 80 has no budget"]
    assert off_budget(row_kernel(), {**budgets, "old": {"80": 8}}) == ["old is gone"]


def test_gates_pass_a_kernel_as_it_should_be() -> None:
    good = row_kernel(16) | row_kernel(32)
    assert [wasting_exps(good), narrow(good), dividing(good)] == [[], [], []]


@pytest.mark.parametrize("count", [31, 48])
def test_gate_sees_exponentials_per_class(count: int) -> None:
    assert len(wasting_exps(row_kernel(EX2=count))) == 1


@pytest.mark.parametrize("fewer", [{"LDG": 3}, {"STG": 1}])
def test_gate_sees_narrow_loads_and_stores(fewer: dict[str, int]) -> None:
    assert len(narrow(row_kernel(**fewer))) == 1


def test_gate_sees_divisions_per_class() -> None:
    assert len(dividing(row_kernel(16) | row_kernel(32, RCP=15 + 16))) == 1
