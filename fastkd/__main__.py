# SPDX-License-Identifier: Apache-2.0
"""`python -m fastkd info`: what runs here, and why."""

import argparse

from fastkd._info import info


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m fastkd", description=__doc__)
    parser.add_subparsers(dest="command", required=True).add_parser(
        "info", help="print version, native modules and CPU capability"
    )
    parser.parse_args()
    facts = info()
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:<{width}}  {value}")


if __name__ == "__main__":
    main()
