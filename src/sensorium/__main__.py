"""`sensorium` and `python -m sensorium`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line and exit with 0 (done), 1 (the work failed), 2 (the call is wrong) or 130 (interrupted)."""
    from sensorium.cli import run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
