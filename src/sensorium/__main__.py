"""`sensorium` and `python -m sensorium`."""

from __future__ import annotations

import contextlib
import sys  # what takes time to import is imported where an interrupt is caught


def main() -> None:
    """Run the command line and exit with 0 (done), 1 (the work failed), 2 (the call is wrong) or 130 (interrupted)."""
    import os
    import signal

    active = 1
    try:
        import threading

        from sensorium.cli import run

        code = run(sys.argv[1:])
        active = threading.active_count()
    except KeyboardInterrupt:  # while still importing
        code = 130
    with contextlib.suppress(KeyboardInterrupt):  # all is done, and Python would die of a signal on its way out
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    if active > 1:
        # A part is still loading in a thread: tearing the interpreter down under native code can abort, so leave at
        # once.
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    main()
