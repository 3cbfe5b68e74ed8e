"""How many threads a model may use: the physical cores that this process is allowed to run on."""

from __future__ import annotations

import functools
import os
import platform
from pathlib import Path

_CPUS = Path("/sys/devices/system/cpu")
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


@functools.cache
def physical_cores() -> int:
    """Physical cores within this process's affinity mask and container quota, at least 1.

    Two hyper-threads of one core share its arithmetic units, so a thread for each only adds waiting. Where the topology
    is unknown, x86 machines are taken to have two hyper-threads per core.
    """
    try:
        allowed = os.sched_getaffinity(0)
    except AttributeError:  # macOS and Windows have no affinity masks
        logical = os.cpu_count() or 1
        return max(1, logical // 2 if platform.machine().lower() in ("x86_64", "amd64") else logical)
    cores = {_siblings(cpu) for cpu in allowed}
    return max(1, min(len(cores), _quota() or len(cores)))


def _siblings(cpu: int) -> str:
    try:
        return (_CPUS / f"cpu{cpu}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)


def _quota() -> int | None:
    """Whole CPUs that the container's quota grants (cgroup v2), rounded up."""
    try:
        quota, period = _QUOTA.read_text().split()
        return max(1, -(-int(quota) // int(period)))
    except (OSError, ValueError):
        return None
