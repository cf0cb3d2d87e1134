# SPDX-License-Identifier: Apache-2.0
"""How a command of benchmarks/ or examples/ ends."""

import os
import sys
from collections.abc import Callable
from typing import NoReturn

CLOSED_PIPE = 141  # what a shell tells of a process that SIGPIPE, signal 13, has ended: 128 + 13


def exit_with(main: Callable[[], int | None]) -> NoReturn:
    """Exit with the status of main, without a traceback where the reader has left: `... | head`."""
    try:
        try:
            status = main()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # Python would try again to write what is left, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = CLOSED_PIPE
    sys.exit(status)
