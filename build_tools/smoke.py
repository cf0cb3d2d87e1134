# SPDX-License-Identifier: Apache-2.0
"""Tries an installed fastkd, away from the source tree: python -P /path/to/smoke.py native.

native      the kernels for this CPU must serve the call
reference   the PyTorch reference must serve it, and say so once
--cuda      fastkd._cuda must load too; that needs no GPU. --cuda 12: it must be of CUDA 12
"""

import argparse
import os
import warnings
from pathlib import Path

import torch

import fastkd


def main() -> None:
    """Compare a loss and its gradient with the reference, and what info() says with the choice."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", choices=["native", "reference"])
    parser.add_argument("--cuda", nargs="?", const="", metavar="FAMILY")
    given = parser.parse_args()
    native = given.path == "native"
    os.environ["FASTKD_REQUIRE_NATIVE"] = "1" if native else "0"

    sources = Path(__file__).resolve().parents[1] / "fastkd"
    assert Path(fastkd.__file__).parent != sources, f"this is not an installed fastkd: {sources}"
    facts = fastkd.info()
    expected_cpu = facts["cpu_capabilities"][0] if native else None
    assert facts["cpu"] == expected_cpu, facts
    if given.cuda is not None:
        assert facts["cuda"] is not None, facts
        assert facts["cuda_runtime"].startswith(f"{given.cuda}." if given.cuda else ""), facts
    assert "install" not in facts["failures"], facts

    student = torch.randn(8, 10, requires_grad=True)
    teacher, target = torch.randn(8, 10), torch.randint(10, (8,))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loss = fastkd.kd_loss(student, teacher, target, temperature=4.0)
    (grad,) = torch.autograd.grad(loss, student)
    expected = fastkd.reference.kd_loss(student, teacher, target, temperature=4.0)
    (expected_grad,) = torch.autograd.grad(expected, student)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(grad, expected_grad)
    words = [str(warning.message) for warning in caught]
    said = [text for text in words if "no native CPU module" in text]
    assert len(said) == (0 if native else 1), words
    kernels = f"{facts['cpu']} kernels"
    if facts["cuda"] is not None:
        kernels += f", CUDA {facts['cuda_runtime']} for {facts['cuda']}"
    print(
        f"smoke test: ok, fastkd {facts['version']}, torch {facts['torch']},",
        kernels if native else f"reference: {said[0]}",
    )


if __name__ == "__main__":
    main()
