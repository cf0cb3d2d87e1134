# SPDX-License-Identifier: Apache-2.0
"""Print the version, the native modules in use, and the reason for each that cannot be used."""

import argparse
import signal
from typing import Any

from fastkd._info import info
from fastkd._version import __version__


def in_words(value: Any) -> str:
    """A fact as it is printed."""
    if isinstance(value, dict):
        value = [f"{name}: {why}" for name, why in value.items()]
    if isinstance(value, list | tuple):
        return "; ".join(value) or "none"
    return "none" if value is None else str(value)


def main() -> None:
    """Run the command line."""
    if hasattr(signal, "SIGPIPE"):  # Windows has none
        # By default, a closed pipe (`... | head -1`) ends the process without a traceback.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    parser = argparse.ArgumentParser(prog="python -m fastkd", description=__doc__)
    parser.add_argument("--version", action="version", version=f"fastkd {__version__}")
    parser.add_argument("command", nargs="?", default="info", help="info, the default and only one")
    command = parser.parse_args().command
    if command != "info":
        parser.error(f"there is no command {command!r}, did you mean info?")
    facts = info()
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:<{width}}  {in_words(value)}")


if __name__ == "__main__":
    main()
