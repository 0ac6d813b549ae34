"""`python -m ksearch`: the same as the console script `ksearch`."""

from __future__ import annotations

import sys


def run() -> None:
    """Never returns: exits with the status of the command."""
    try:
        from ksearch import cli
    except KeyboardInterrupt:  # Ctrl-C before there is anything to stop
        sys.exit(130)
    sys.exit(cli.main(sys.argv[1:]))


if __name__ == "__main__":
    run()
