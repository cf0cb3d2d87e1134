# SPDX-License-Identifier: Apache-2.0
"""How fast, how large, how exact: every loss beside the code that people write today.

run.py (the command)
    -> measure.py   one row of the table
         -> providers.py  the same loss: fastkd, eager PyTorch, torch.compile of that
         -> timing.py, memory.py, accuracy.py
    -> mapped.py    the same rows again in a process that keeps freed memory mapped
    -> machine.py   what it ran on
    -> results.py   what is recorded
         -> report.py (words, files) -> tables.py (one for each kind of loss) -> text.py
         -> plot.py

gpu_check.py (the command on a GPU)
    -> gpu_wheel.py    a wheel of another machine, instead of a build
    -> gpu_stages.py   the stages: steps in processes of their own (gpu_run.py, commands.py)
         -> gpu_tools.py    compute-sanitizer and ncu: command lines, and what they say
         -> gpu_program.py  the program for compute-sanitizer, compiled meanwhile
    -> gpu_summary.py  what is printed of each stage
the programs of its steps
    gpu_facts.py    chip and versions
    gpu_tests.py    a pytest plugin: goes on behind a test that hangs or faults
    gpu_bench.py    the table of a GPU, row by row (gpu_rows.py: which, in which order)
         -> gpu_measure.py  one row: gpu_timing.py (events, ceilings), and the parts above
         -> peers.py        other packages' losses, where they are installed
    gpu_compile.py  fills torch.compile's cache for it
    gpu_calls.py    what compute-sanitizer and ncu look at
    gpu_report.py   the short table, and the files at the end

command_line.py    how these commands, and those of examples/, end

The rows come from the lists that drive the tests, tests/cases.py, and of losses without a kernel,
tests/torch_cases.py; README.md tells what is measured.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# The tests are not a package; this is the one place that makes `import cases` find their list.
if (_tests := str(ROOT / "tests")) not in sys.path:
    sys.path.append(_tests)
