"""From a pinned part to its verified archive: what lies here, what the registry offers, its own client."""

from __future__ import annotations

import contextlib
import hashlib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from sensorium.errors import SensoriumError
from sensorium.hub import deb, huggingface, npm, pypi
from sensorium.hub.network import Unreachable, download, redact
from sensorium.hub.offers import Offer, Offers
from sensorium.hub.parts import Part
from sensorium.hub.paths import cache_dir, home, offline, write_error
from sensorium.hub.progress import reporting

_KEPT = re.compile("[0-9a-f]{32}")
REGISTRIES: dict[str, ModuleType] = {"pypi": pypi, "npm": npm, "deb": deb, "hf": huggingface}


def sha256_of(path: Path) -> str:
    """The sha256 of a file's bytes, read in pieces (about 1 GB/s)."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as handle:
        while chunk := handle.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


@contextlib.contextmanager
def obtained(part: Part, *, progress: bool, keep: bool = False) -> Iterator[Path]:
    """Yield the verified archive of ``part``. The caller holds the lock of the part.

    What was downloaded is deleted afterwards unless ``keep`` (then it stays in ``home()/archives``). Files that a
    person has put into that directory by hand (for machines without a network) are used when their digest fits.

    Raises:
        SensoriumError: no place delivers an archive with the pinned digest.
    """
    store = cache_dir("archives")
    if part.parsed.kind == "file":
        yield local_file(part)
        return
    kept = store / part.sha256[:32]
    lying = _lying_here(store, part)
    if lying is not None:
        yield lying
        return
    with contextlib.ExitStack() as stack:
        path, ours = _search(part, store, stack, progress)
        if ours and keep:
            path = path.replace(kept)
        try:
            yield path
        finally:
            if ours and not keep:
                path.unlink(missing_ok=True)


def local_file(part: Part) -> Path:
    """The file of a ``file:`` part, checked against its digest where it has one.

    Raises:
        SensoriumError: it does not exist, is no file, cannot be read or has another digest.
    """
    path = pypi.local_path(part.source) if part.source.startswith("file://") else Path(part.parsed.name).expanduser()
    assert path is not None
    try:
        if not path.is_file():
            raise SensoriumError(f"{path} does not exist or is no file; correct the source {part.source} of this part.")
        digest = sha256_of(path) if part.sha256 else ""
    except OSError as error:
        raise SensoriumError(f"{path} cannot be read ({error.strerror}); change its permissions.") from error
    if digest != part.sha256:
        raise SensoriumError(
            f"{path} has the sha256 {digest}, not the pinned {part.sha256}; put the right file there or fix the pin."
        )
    return path


def _lying_here(store: Path, part: Part) -> Path | None:
    for path in sorted(store.iterdir()):
        if path.name.startswith(".") or path.suffix in (".partial", ".lock") or not path.is_file():
            continue
        ours = _KEPT.fullmatch(path.name) is not None
        likely = path.name == part.sha256[:32] if ours else part.size in (None, path.stat().st_size)
        if likely and sha256_of(path) == part.sha256:
            return path
    return None


def _search(part: Part, store: Path, stack: contextlib.ExitStack, progress: bool) -> tuple[Path, bool]:
    """The archive and whether it is ours to delete; ``stack`` keeps a directory that it may lie in."""
    registry, online = REGISTRIES[part.parsed.kind], not offline()
    answer: Offers = registry.offers(part, online=online)
    notes, mismatch = answer.notes, answer.mismatch
    for offer in answer.found:
        try:
            if offer.path is not None:
                return _checked(part, offer.path, str(offer.path)), False
            return _downloaded(part, offer, answer, store / f"{part.sha256[:32]}.partial", progress), True
        except _WrongDigest as wrong:
            notes.append(str(wrong))
            mismatch = True
        except Unreachable as reason:
            notes.append(str(reason))
    if online and not mismatch and hasattr(registry, "native"):
        try:
            scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix=".native.", dir=store))
            with reporting(part.parsed.label, part.size, show=progress and not answer.found):
                path = registry.native(part, Path(scratch))
            return _checked(part, path, path.name), True
        except (_WrongDigest, Unreachable) as reason:
            mismatch |= isinstance(reason, _WrongDigest)
            notes.append(str(reason))
    raise _sentence(part, notes, mismatch, online, store)


def _sentence(part: Part, notes: list[str], mismatch: bool, online: bool, store: Path) -> SensoriumError:
    archive = f"its archive (sha256 {part.sha256})"
    if mismatch:
        return SensoriumError(
            f"{part.source} is refused, since the published file is not the pinned one ({'; '.join(notes[-3:])}): "
            f"pinned is {part.sha256}; correct the pin if you trust that file, or put the right one into {store}."
        )
    if not online:
        return SensoriumError(
            f"{part.source} is not in the cache {home()} and SENSORIUM_OFFLINE is set; unset it once while there is a "
            f"network, or put {archive} into {store}."
        )
    why = "; ".join(dict.fromkeys(notes)) or "no source has it"
    return SensoriumError(
        f"{part.source} could not be fetched ({why}); check the network, the proxy and the registry's settings, "
        f"or put {archive} into {store}."
    )


class _WrongDigest(Exception):
    """A file arrived whole, and it is not the pinned one."""


def _checked(part: Part, path: Path, name: str) -> Path:
    try:
        digest = sha256_of(path)
    except OSError as error:
        raise Unreachable(f"{name} cannot be read ({error.strerror})") from error
    if digest != part.sha256:
        raise _WrongDigest(f"{name} has sha256 {digest}")
    return path


def _downloaded(part: Part, offer: Offer, answer: Offers, partial: Path, progress: bool) -> Path:
    size = part.size if part.size is not None else offer.size
    with reporting(part.parsed.label, size, show=progress) as report:
        for attempt in (1, 2):
            resumed = partial.exists()
            download(answer.network, offer.url, partial, size=size, report=report)
            try:
                return _checked(part, partial, redact(offer.url))
            except _WrongDigest:
                try:
                    partial.unlink()
                except OSError as error:
                    raise write_error(partial, error) from error
                # The front half may stem from a damaged earlier run: start once more from nothing.
                if not resumed or attempt == 2:
                    raise
    raise AssertionError("unreachable")
