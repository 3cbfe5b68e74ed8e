"""A part whose digest nobody has written down yet: what the registry delivers first is what it is pinned to."""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
from pathlib import Path

from sensorium.errors import SensoriumError
from sensorium.hub.cache import fetch
from sensorium.hub.network import Unreachable, download
from sensorium.hub.obtain import REGISTRIES, sha256_of
from sensorium.hub.parts import Part
from sensorium.hub.paths import atomic_write, cache_dir, file_lock, offline
from sensorium.hub.progress import reporting

_UNKNOWN = "0" * 64


def pin(source: str, file: str, *, progress: bool = True) -> Part:
    """The part ``file`` of ``source`` with the digest and size of its archive, fetched.

    The first answer is trusted and remembered; whoever gets another one later is refused, as with any pinned part.
    With a published digest at hand, write a `Part` with it instead.

    Raises:
        SensoriumError: the source or the path is malformed, or the part cannot be fetched.
    """
    unknown = Part(source, file, _UNKNOWN)
    name = hashlib.sha256(f"{source}|{file}".encode()).hexdigest()[:32]
    record = cache_dir("records") / f"pin-{name}.json"
    with file_lock(record):
        try:
            known = json.loads(record.read_bytes())
            part = Part(source, file, known["sha256"], known["size"])
        except (OSError, ValueError, TypeError, KeyError):
            part = _first(unknown, progress)
            with atomic_write(record, "w") as out:
                json.dump({"source": source, "file": file, "sha256": part.sha256, "size": part.size}, out)
    fetch(part, progress=progress)
    return part


def _first(unknown: Part, progress: bool) -> Part:
    """What the registry delivers now. The archive is read from where archives lie, and is not kept there."""
    store = cache_dir("archives")
    if offline():
        raise SensoriumError(
            f"{unknown.source} was never fetched and SENSORIUM_OFFLINE is set; unset it once while there is a network."
        )
    with tempfile.TemporaryDirectory(prefix=".pin.", dir=store) as scratch:
        try:
            path = _delivered(unknown, Path(scratch), progress)
        except Unreachable as reason:
            raise SensoriumError(
                f"{unknown.source} could not be fetched ({reason}); correct its name and version, or check the "
                "network, the proxy and the registry's settings."
            ) from None
        digest, size = sha256_of(path), path.stat().st_size
        kept = store / digest[:32]
        path.replace(kept)
    part = Part(unknown.source, unknown.file, digest, size)
    try:
        fetch(part, progress=progress)
    finally:
        with contextlib.suppress(OSError):
            kept.unlink()
    return part


def _delivered(unknown: Part, scratch: Path, progress: bool) -> Path:
    registry = REGISTRIES[unknown.parsed.kind]
    if hasattr(registry, "native"):
        with reporting(unknown.parsed.label, None, show=progress):
            found: Path = registry.native(unknown, scratch)
        return found
    answer = registry.offers(unknown, online=True)
    reasons = []
    for offer in answer.found:
        target = scratch / "archive"
        if offer.path is not None:
            target.write_bytes(offer.path.read_bytes())  # a copy: what lies in another tool's cache stays there
            return target
        try:
            with reporting(unknown.parsed.label, offer.size, show=progress) as report:
                download(answer.network, offer.url, target, size=offer.size, report=report)
            return target
        except Unreachable as reason:
            reasons.append(str(reason))
    raise Unreachable("; ".join([*answer.notes, *reasons]) or "no source has it")
