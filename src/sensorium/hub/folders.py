"""Directories of several files: a model repository on Hugging Face, or a directory of one's own.

    fetch_folder(Folder("hf:org/name@<commit>"), ["config.json", "model*.safetensors"])

What is pinned is the commit, and the sha256 of each file: as the composition gives it, else as the repository declares
it, else as it came the first time. A fetched directory holds links to files of the cache, and is sealed: a file that
changes is noticed, and fetched again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from sensorium.errors import SensoriumError
from sensorium.hub.cache import fetch
from sensorium.hub.parts import Part, parse_source
from sensorium.hub.paths import atomic_dir, atomic_write, cache_dir, file_lock, offline, remove_stale
from sensorium.hub.seal import RECORD, is_sealed, seal

_COMMIT = re.compile("[0-9a-f]{40}")
_SHA256 = re.compile("[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9_][\w.-]*", re.ASCII)


@dataclass(frozen=True)
class Folder:
    """A directory that is used as a whole.

    Attributes:
        source: ``hf:organisation/name@commit`` (40 digits, because a branch moves) or ``file:/path/of/directory``.
        files: sha256 of files in it, by name; each is checked. May be empty.
        licence: SPDX identifier, shown by ``sensorium parts``.

    Raises:
        SensoriumError: the source is of another kind, names no commit, or a file or digest is malformed.
    """

    source: str
    files: Mapping[str, str] = field(default_factory=dict)
    licence: str = ""

    def __post_init__(self) -> None:
        kind, _, version = parse_source(self.source)
        if kind not in ("hf", "file"):
            raise SensoriumError(f"{self.source} is no directory; give hf:organisation/name@commit or file:/path.")
        if kind == "hf" and not _COMMIT.fullmatch(version):
            raise SensoriumError(
                f"{self.source} names a branch or a tag, which can move; give the commit, 40 digits 0-9 and a-f."
            )
        for name, digest in self.files.items():
            if not _NAME.fullmatch(name) or not _SHA256.fullmatch(digest):
                raise SensoriumError(
                    f"{name[:80]!r}: {digest[:80]!r} of {self.source} is no file name and sha256; "
                    "give names inside it and digests of 64 digits 0-9 and a-f."
                )


def fetch_folder(folder: Folder, wanted: Sequence[str], *, progress: bool = True) -> Path:
    """The directory, with every file that one of the globs ``wanted`` matches.

    Raises:
        SensoriumError: it does not exist, a file has another digest, or it cannot be fetched; one sentence.
    """
    kind, name, _ = parse_source(folder.source)
    if kind == "file":
        path = Path(name).expanduser()
        if not path.is_dir():
            raise SensoriumError(f"{path} does not exist or is no directory; correct the source {folder.source}.")
        _check_pins(path, folder)
        return path
    pins = json.dumps([folder.source, sorted(folder.files.items()), sorted(wanted)])
    target = cache_dir("folders") / hashlib.sha256(pins.encode()).hexdigest()[:32]
    if is_sealed(target):
        return target
    with file_lock(target):
        if not is_sealed(target):
            remove_stale(target)
            parts = _parts(folder, wanted, progress)
            with atomic_dir(target) as scratch:
                for part in parts:
                    _link(fetch(part, progress=progress), scratch / part.file)
                seal(scratch)
    return target


def _parts(folder: Folder, wanted: Sequence[str], progress: bool) -> list[Part]:
    """The wanted files, pinned."""
    from sensorium.hub.pin import pin

    parts = []
    for name, (digest, size) in sorted(_listed(folder, wanted).items()):
        if not _matches(name, wanted):
            continue
        if digest := folder.files.get(name, digest):
            parts.append(Part(folder.source, name, digest, size, folder.licence))
        else:
            parts.append(pin(folder.source, name, progress=progress))
    if not parts:
        raise SensoriumError(f"{folder.source} holds none of {', '.join(wanted)}; it is no model of the expected form.")
    return parts


def _matches(name: str, wanted: Sequence[str]) -> bool:
    plain = name != RECORD and _NAME.fullmatch(name) is not None
    return plain and any(fnmatchcase(name, glob) for glob in wanted)


_Listing = dict[str, tuple[str, int | None]]
"""{name: (sha256 or "", size or None)}"""


def _listed(folder: Folder, wanted: Sequence[str]) -> _Listing:
    """The repository's files: as pinned, as the service lists them, or what huggingface_hub has of them."""
    from sensorium.hub import huggingface
    from sensorium.hub.network import Unreachable
    from sensorium.hub.obtain import sha256_of

    if folder.files:
        return {name: (digest, None) for name, digest in folder.files.items()}
    if offline() or huggingface.offline():
        reason = f"{folder.source} was never fetched and there is no network by order of the environment"
    else:
        try:
            return _published(folder)
        except Unreachable as unreachable:
            reason = f"{folder.source} could not be fetched ({unreachable})"
    source = parse_source(folder.source)
    snapshot = huggingface.repository(source.name) / "snapshots" / source.version
    with contextlib.suppress(OSError):
        here = [path for path in snapshot.iterdir() if path.is_file() and _matches(path.name, wanted)]
        if here:
            return {path.name: (sha256_of(path), path.stat().st_size) for path in here}
    raise SensoriumError(f"{reason}; correct its name and commit, or fetch it once while there is a network.")


def _published(folder: Folder) -> _Listing:
    """What the service lists, with the digests of large files. Raises Unreachable."""
    from urllib.parse import quote

    from sensorium.hub import huggingface
    from sensorium.hub.network import get

    source = parse_source(folder.source)
    url = f"{huggingface.endpoint()}/api/models/{quote(source.name)}/tree/{source.version}"
    try:
        body, _, _ = get(huggingface.network(), url, accept="application/json")
        listed = {}
        for entry in json.loads(body):
            if entry["type"] == "file":
                large = entry.get("lfs") or {}
                digest = str(large.get("oid", "")).removeprefix("sha256:")
                size = large.get("size", entry.get("size"))
                listed[str(entry["path"])] = (
                    digest if _SHA256.fullmatch(digest) else "",
                    size if type(size) is int and size >= 0 else None,
                )
        return listed
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise SensoriumError(f"{url} answered with something that is no list of files; check HF_ENDPOINT.") from None


def _link(path: Path, target: Path) -> None:
    try:
        os.link(path, target)
    except OSError:  # another disk, or a file system without links
        shutil.copy2(path, target)


def _check_pins(path: Path, folder: Folder) -> None:
    """Compare the pinned files with their digests; sizes and times of what was found right are remembered."""
    if not folder.files:
        return
    from sensorium.hub.obtain import sha256_of

    record = cache_dir("records") / f"folder-{hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:32]}.json"
    known: dict[str, list[object]] = {}
    with contextlib.suppress(OSError, ValueError):
        loaded = json.loads(record.read_bytes())
        known = loaded if isinstance(loaded, dict) else {}
    found: dict[str, list[object]] = {}
    for name, digest in folder.files.items():
        file = path / name
        try:
            state = file.stat()
            if not file.is_file():
                raise SensoriumError(f"{file} is no regular file; put the pinned file there.")
            found[name] = [state.st_size, state.st_mtime_ns, digest]
            if known.get(name) != found[name] and sha256_of(file) != digest:
                raise SensoriumError(f"{file} has another sha256 than the pinned {digest}; put the right file there.")
        except OSError as error:
            raise SensoriumError(f"{file} cannot be read ({error.strerror}), but its sha256 is pinned.") from None
    if found != known:
        with contextlib.suppress(SensoriumError), atomic_write(record, "w") as out:
            json.dump(found, out)
