"""Which prepared graphs stay in the cache: each takes a hundred megabytes, and every new LoRA makes another."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from pathlib import Path

from sensorium.errors import SensoriumError
from sensorium.hub.paths import file_lock

# Of each backbone: enough for two compositions, each with and without its LoRA.
KEPT = 4


def mark_used(directory: Path) -> None:
    """Note that a graph is in use, so that `prune` takes others first."""
    with contextlib.suppress(OSError):  # a cache that cannot be written is no loss
        os.utime(directory)


def prune(latest: Path, kept: int = KEPT) -> list[Path]:
    """Remove graphs beside `latest` of the same backbone and quantisation; return what was removed.

    Of those by the same version of the writer, the `kept` latest used stay, `latest` among them; all others go. A graph
    that another process is preparing is left alone. One that another process has open goes on working, because open
    files outlive their names (where they do not, it cannot be removed), and one that it is about to open is prepared
    again.
    """
    mark_used(latest)
    writer, *wanted = _identity(latest)
    alike: list[Path] = []
    old: list[Path] = []
    for directory in latest.parent.iterdir():
        if directory.name.startswith(".") or directory == latest:
            continue
        by, *identity = _identity(directory)
        if wanted[0] and identity == wanted:
            (alike if by == writer else old).append(directory)
    alike.sort(key=_last_used, reverse=True)
    return [directory for directory in [*old, *alike[kept - 1 :]] if _remove(directory)]


def _identity(directory: Path) -> tuple[int, str, str]:
    """Version of the writer, fingerprint and quantisation of a graph of any version; empty where they are unknown."""
    try:
        facts = json.loads((directory / "model.json").read_bytes())
        return int(facts["writer"]), str(facts["spec"]["fingerprint"]), str(facts["quantization"])
    except (OSError, ValueError, TypeError, KeyError):
        return 0, "", ""


def _last_used(directory: Path) -> float:
    with contextlib.suppress(OSError):
        return directory.stat().st_mtime
    return 0.0


def _remove(directory: Path) -> bool:
    try:
        with file_lock(directory, timeout=0):
            # Renamed first, so that nobody finds half a graph.
            grave = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", suffix=".tmp", dir=directory.parent))
            try:
                directory.rename(grave / directory.name)
            finally:
                shutil.rmtree(grave, ignore_errors=True)
    except (SensoriumError, OSError):
        return False
    return True
