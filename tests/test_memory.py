# SPDX-License-Identifier: Apache-2.0
"""Extra memory: a gradient and a little per row, tables of N x N for relations, nothing else.

On the build that serves by default: all builds allocate by the same lines.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import ATTENTION, KD_LOSS, PLAIN_PAIR_CASES, Geometry, LossCase
from resident_memory import RUNS, gradient_of

import fastkd
from benchmarks.memory import peak_tensor_bytes


@pytest.mark.parametrize("factor", [1.0, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "geometry", [Geometry((512, 4000)), Geometry((4, 21, 200, 200), 1)], ids=str
)
@pytest.mark.parametrize("case", [KD_LOSS], ids=str)
def test_forward_and_backward_hold_one_gradient(
    case: LossCase, geometry: Geometry, dtype: torch.dtype, factor: float
) -> None:
    inputs = case.make_inputs(geometry, dtype)
    gradient = inputs.tensors[0].nbytes
    rows = inputs.keywords["target"].numel()
    peak = peak_tensor_bytes(lambda: gradient_of(case, inputs, factor))
    assert gradient <= peak <= gradient + 16 * rows + 4096


@pytest.fixture(scope="module")
def held() -> dict[str, tuple[int, int | None]]:
    """What the runs of resident_memory.py hold."""
    script = Path(__file__).with_name("resident_memory.py")
    path = os.pathsep.join([str(script.parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, script],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, tuple[int, int | None]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("case", [str(case) for case, _ in RUNS])
def test_kernels_hold_no_buffers_of_their_own(
    held: dict[str, tuple[int, int | None]], case: str
) -> None:
    seen, peak = held[case]
    if peak is None:
        pytest.skip("the kernel of this system does not tell the peak resident set")
    assert seen <= peak + 2**22
    assert peak <= 1.05 * seen + 2**22


# Most tables of rows x rows floats that a relational kernel holds: of distances and angles, with
# room for the doubles of near pairs.
MOST_TABLES = 14


def tables_of(case: LossCase, rows: int, width: int) -> float:
    """Peak of forward and backward in tables of rows x rows floats, beside the gradient."""
    inputs = case.make_inputs(Geometry((rows, width)))
    peak = peak_tensor_bytes(lambda: gradient_of(case, inputs, 0.3))
    return (peak - 2 * inputs.tensors[0].nbytes) / (4 * rows * rows)  # and its product with 0.3


@pytest.mark.parametrize("case", PLAIN_PAIR_CASES, ids=str)
def test_relations_hold_tables_of_pairs_only(case: LossCase) -> None:
    small, wide, large = (tables_of(case, *of) for of in ((128, 64), (128, 512), (256, 64)))
    # Copies of the embeddings in a kernel's order come on top, one a side.
    assert wide <= small + 2 * (512 - 64) / 128
    assert large <= small <= MOST_TABLES


def test_rkd_is_far_from_what_the_original_holds() -> None:
    rows, width = 256, 512
    case = next(case for case in PLAIN_PAIR_CASES if case.loss == "rkd_loss")
    inputs = case.make_inputs(Geometry((rows, width)))
    peak = peak_tensor_bytes(lambda: gradient_of(case, inputs, 1.0))
    assert peak < 4 * rows * rows * width / 10
    assert peak < 4 * rows**3 / 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_attention_holds_one_gradient_and_maps(dtype: torch.dtype) -> None:
    inputs = ATTENTION.make_inputs(Geometry((16, 64, 40, 40), 1), dtype)
    gradient, maps = inputs.tensors[0].nbytes, 4 * 16 * 40 * 40
    peak = peak_tensor_bytes(lambda: gradient_of(ATTENTION, inputs, 0.3))
    assert gradient <= peak <= gradient + 6 * maps + 4096


def test_attention_holds_no_second_map_for_the_student() -> None:
    student, teacher = ATTENTION.make_inputs(Geometry((16, 8, 40, 40), 1)).tensors
    student.requires_grad_()
    maps = 4 * 16 * 40 * 40
    peak = peak_tensor_bytes(lambda: fastkd.attention_transfer_loss(student, teacher))
    assert (
        2 * maps <= peak <= 2 * maps + 4096
    )  # dloss/dmap, which the map lies in, and the teacher's
