"""A process from its start to its end, measured: what benchmarks of whole commands share."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Run:
    """What a process took: seconds by the clock and of all its threads, peak memory in MB; and what it printed."""

    wall_s: float
    cpu_s: float
    peak_mb: float
    printed: str


def run(command: list[str], environment: Mapping[str, str] | None = None) -> Run:
    """Run a command to its end, with ``environment`` over this process's; ends with its complaint when it fails."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        began = time.perf_counter()
        child = subprocess.Popen(command, stdout=out, stderr=err, env={**os.environ, **(environment or {})})
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - began
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            err.seek(0)
            raise SystemExit(f"{' '.join(command)} failed:\n{err.read().decode(errors='replace')[-2000:]}")
        out.seek(0)
        unit = 1e6 if sys.platform == "darwin" else 1e3  # bytes there, kilobytes elsewhere
        used = usage.ru_utime + usage.ru_stime
        return Run(seconds, used, usage.ru_maxrss / unit, out.read().decode(errors="replace"))
