# SPDX-License-Identifier: Apache-2.0
"""`import fastkd` and eager calls load no compiler and write no file; a compile loads its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

# What torch.compile and torch.export are made of: a second and more to import, and torch._inductor
# makes a folder for its cache. `import torch` loads none of it.
COMPILERS = (
    "torch._dynamo",
    "torch._functorch.aot_autograd",
    "torch._inductor",
    "torch.fx.experimental.symbolic_shapes",
    "sympy",
)
EVERY_KERNEL = f"""
sys.path.insert(0, {str(Path(__file__).parent)!r})
from cases import PLAIN_CASES
for case in PLAIN_CASES:
    inputs = case.make_inputs(case.geometry)
    inputs.tensors[0].requires_grad_()
    case.run(inputs).backward()
"""
OTHERS = """
student, teacher = torch.randn(8, 5, requires_grad=True), torch.randn(8, 5)
for loss in (fastkd.dist_loss, fastkd.hint_loss, fastkd.logit_mse_loss):
    loss(student, teacher).backward()
fastkd.kd_loss(student, teacher, standardize_logits=True).backward()
features = [torch.randn(2, 3, 4, 4, requires_grad=True) for _ in range(4)]
(fastkd.nst_loss(*features[:2]) + fastkd.fsp_loss(features[:2], features[2:])).backward()
hidden, weight = torch.randn(2, 3, 4, requires_grad=True), torch.randn(5, 4)
shifted = torch.randn(2, 4, 5)[:, 1:]
fastkd.linear_kd_loss(hidden, weight, teacher_logits=shifted).backward()
"""


def run(code: str, folder: Path) -> str:
    """Run in a fresh process whose home and temporary directory are a folder; give what it says."""
    folders = dict.fromkeys(("HOME", "TMPDIR", "TEMP", "TMP"), str(folder))
    unset = {"XDG_CACHE_HOME", "TORCHINDUCTOR_CACHE_DIR"}
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | folders,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "calls",
    ["", EVERY_KERNEL, OTHERS],
    ids=["import", "every kernel", "other losses"],
)
def test_eager_code_loads_no_compiler_and_writes_nothing(tmp_path: Path, calls: str) -> None:
    loaded = f"print(*(name for name in {COMPILERS} if name in sys.modules))"
    assert run(f"import sys, torch, fastkd\n{calls}\n{loaded}", tmp_path).split() == []
    assert list(tmp_path.iterdir()) == []


def test_the_first_compile_finds_what_the_import_left_out(tmp_path: Path) -> None:
    code = """
import torch, fastkd

def backend(graph, inputs):
    print(*(node.target for node in graph.graph.nodes if node.op == "call_function"))
    return graph.forward

student, teacher = torch.randn(2, 4, 5)
loss = torch.compile(fastkd.kd_loss, fullgraph=True, backend=backend)(student, teacher)
torch.testing.assert_close(loss, fastkd.reference.kd_loss(student, teacher))
"""
    assert "fastkd.kd_loss" in run(code, tmp_path)
