# SPDX-License-Identifier: Apache-2.0
"""Print what runs here, and why: version, native modules, CPU capability."""

import argparse
import signal

from fastkd._info import info
from fastkd._version import __version__


def main() -> None:
    """Run the command line."""
    if hasattr(signal, "SIGPIPE"):  # Windows has none
        # The default ends the process without a word where the reader has left: `... | head -1`.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    parser = argparse.ArgumentParser(prog="python -m fastkd", description=__doc__)
    parser.add_argument("--version", action="version", version=f"fastkd {__version__}")
    parser.add_argument("command", nargs="?", default="info", help="info, which is the only one")
    command = parser.parse_args().command
    if command != "info":
        parser.error(f"there is no command {command!r}, did you mean info?")
    facts = info()
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:<{width}}  {value}")


if __name__ == "__main__":
    main()
