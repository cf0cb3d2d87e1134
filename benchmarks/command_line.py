# SPDX-License-Identifier: Apache-2.0
"""How a command of benchmarks/ or examples/ ends."""

import os
import sys
from collections.abc import Callable
from typing import NoReturn

CLOSED_PIPE = 141  # the shell's status of a process that SIGPIPE, signal 13, has ended: 128 + 13


def exit_with(main: Callable[[], int | None]) -> NoReturn:
    """Exit with the status of main, without a traceback if the pipe is closed (`... | head`)."""
    try:
        try:
            status = main()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # At exit, Python would write the rest of its buffer again, and print an error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = CLOSED_PIPE
    sys.exit(status)
