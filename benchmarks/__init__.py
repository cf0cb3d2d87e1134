# SPDX-License-Identifier: Apache-2.0
"""How fast, how large, how exact: every loss beside the code that people write today.

run.py (the command)
    -> measure.py   one row of the table
         -> providers.py  the same loss: fastkd, eager PyTorch, torch.compile of that
         -> timing.py, memory.py, accuracy.py
    -> mapped.py    the same rows again in a process that keeps freed memory mapped
    -> machine.py   what it ran on
    -> results.py   what is recorded  -> report.py (tables, files), plot.py

The rows come from the list that drives the tests, tests/cases.py; README.md tells what is measured.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# The tests are not a package; this is the one place that makes `import cases` find their list.
if (_tests := str(ROOT / "tests")) not in sys.path:
    sys.path.append(_tests)
