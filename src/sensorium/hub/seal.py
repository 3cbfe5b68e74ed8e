"""Sealed directories: derived files whose damage is noticed at the cost of a few system calls.

`seal` writes down the size, time and sha256 of every file of a finished directory. `is_sealed` compares sizes and
times, and reads the files only where those changed: a cache that was copied still serves, one that was damaged does
not.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from sensorium.errors import SensoriumError
from sensorium.hub.paths import atomic_write

RECORD = "seal.json"


def seal(directory: Path) -> None:
    """Record the files of a finished directory, which holds no further directories."""
    from sensorium.hub.obtain import sha256_of

    files = {path.name: {**_facts(path), "sha256": sha256_of(path)} for path in sorted(directory.iterdir())}
    (directory / RECORD).write_text(json.dumps(files), encoding="utf-8")


def is_sealed(directory: Path, *, thorough: bool = False) -> bool:
    """Whether every file stands as it was sealed; `thorough` reads them all, whatever their sizes and times say."""
    from sensorium.hub.obtain import sha256_of

    try:
        files: dict[str, dict[str, Any]] = json.loads((directory / RECORD).read_bytes())
        found = {name: _facts(directory / name) for name in files}
        if any(found[name]["size"] != files[name]["size"] for name in files):
            return False
        moved = [name for name in files if thorough or found[name]["mtime_ns"] != files[name]["mtime_ns"]]
        if any(sha256_of(directory / name) != files[name]["sha256"] for name in moved):
            return False
        if not files:
            return False
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    if any(found[name]["mtime_ns"] != files[name]["mtime_ns"] for name in files):
        with contextlib.suppress(SensoriumError), atomic_write(directory / RECORD, "w") as out:
            json.dump({name: {**files[name], **found[name]} for name in files}, out)
    return True


def _facts(path: Path) -> dict[str, int]:
    facts = path.stat()
    return {"size": facts.st_size, "mtime_ns": facts.st_mtime_ns}
