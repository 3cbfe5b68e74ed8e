"""fetch and fetch_tree: from a pinned part to verified files in the cache.

Layout below ``home()``: ``parts/<archive digest>/<member>``, ``trees/<archive digest>/<patterns digest>/``,
``archives/`` (kept or unfinished downloads), ``records/`` (size and time of every verified file: what makes a warm
fetch cost two system calls instead of hashing 98 MB), ``locks/``. Everything is named by digest, so there is nothing to
migrate.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sensorium.errors import SensoriumError
from sensorium.hub.parts import Part
from sensorium.hub.paths import atomic_dir, atomic_write, file_lock, home, remove_stale

NESTED = "!/"
"""Between a zip inside an archive and the wanted file in it."""


def fetch(part: Part, *, progress: bool = True) -> Path:
    """The wanted file of ``part``, in the cache and verified; downloaded on the first call only.

    A file inside a zip inside the archive is named ``zip!/file`` (as URLs of jars do): the zip is fetched as any other
    file, and the wanted file taken out of it under the same limits. A file that is published in pieces is joined in
    order, and its digest is that of the whole.

    Any number of processes and threads may call it at once. A file whose size or time changed is hashed again, and
    fetched again when it is damaged. ``progress`` shows a bar on a terminal, or one line elsewhere, on standard error.

    Raises:
        SensoriumError: it cannot be fetched (network, offline, digest, disk, archive); the sentence says what to do.
    """
    if part.parsed.kind == "file" and not part.file and not part.sha256:
        from sensorium.hub.obtain import local_file

        return local_file(part)
    path = _recorded(part) or _reverified(part)
    if path is None:
        outer, nested, _ = part.file.rpartition(NESTED)
        archive = fetch(replace(part, file=outer, file_sha256=None), progress=progress) if nested else None
        with file_lock(home() / "locks" / _short(part)):
            path = _recorded(part) or _install(part, progress, archive)
    return path


def fetch_together(parts: Sequence[Part], along: Sequence[Part] = (), *, progress: bool = True) -> list[Path]:
    """Files of one archive, which is downloaded once at most; otherwise as :func:`fetch` of each.

    Those of ``along`` are taken out too where the archive has to be opened anyway.
    """
    if len({(part.source, part.sha256) for part in (*parts, *along)}) > 1:
        raise ValueError("the files must be of one archive")
    paths = [_recorded(part) or _reverified(part) for part in parts]
    if None in paths:
        from sensorium.hub.obtain import obtained

        with file_lock(home() / "locks" / _short(parts[0])), obtained(parts[0], progress=progress) as archive:
            for part in (*parts, *along):
                if _recorded(part) is None:
                    _take_out(part, archive)
    return [fetch(part, progress=progress) for part in parts]


def fetch_tree(part: Part, patterns: Sequence[str], *, progress: bool = True, keep_archive: bool = True) -> Path:
    """A directory with every file of the archive that matches one of ``patterns``, under its path in the archive.

    For training material: ``fetch_tree(Part("deb:tuxpaint-stamps-default", ...), ["*.png", "*.txt"])``. In a pattern
    ``*`` also crosses ``/``. ``part.file`` is not used. Links inside the archive become files. The archive is kept by
    default, as training material is often asked for again with other patterns. A ``file:`` part may name a directory,
    which is returned as it is.

    Raises:
        SensoriumError: as :func:`fetch`; also when nothing matches.
    """
    if part.parsed.kind == "file" and Path(part.parsed.name).expanduser().is_dir():
        return Path(part.parsed.name).expanduser()
    if isinstance(patterns, str) or not patterns:
        raise ValueError("patterns must be a list of globs")
    key = _digest("\n".join(sorted(set(patterns))))[:16]
    target = home() / "trees" / _short(part) / key
    record = home() / "records" / _short(part) / f"tree-{key}.json"
    if _tree_is_whole(target, record):
        return target
    from sensorium.hub.archives import extract_many
    from sensorium.hub.obtain import obtained

    with file_lock(home() / "locks" / _short(part)):
        if _tree_is_whole(target, record):
            return target
        remove_stale(target)
        with (
            obtained(part, progress=progress, keep=keep_archive) as archive,
            atomic_dir(target) as directory,
        ):
            files = extract_many(archive, patterns, directory, label=part.parsed.label)
        _write_json(
            record, {"files": len(files), "bytes": sum(file.size for file in files), "patterns": list(patterns)}
        )
    return target


def _short(part: Part) -> str:
    """The directory name of an archive: 128 bits of its digest (paths on Windows are short)."""
    return (part.sha256 or _digest(part.source))[:32]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _record_path(part: Part) -> Path:
    place = part.source if part.parsed.kind == "file" else ""
    return (
        home() / "records" / _short(part) / f"{_digest('|'.join((place, part.file, part.file_sha256 or '')))[:16]}.json"
    )


def _read_record(part: Part) -> dict[str, Any] | None:
    try:
        record = json.loads(_record_path(part).read_bytes())
        wanted = {"file": str, "size": int, "mtime_ns": int, "sha256": str}
        if all(isinstance(record[key], kind) for key, kind in wanted.items()):
            return dict(record)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def _recorded(part: Part) -> Path | None:
    """The file, if it stands as it was when it was verified. This is the whole cost of a warm start."""
    record = _read_record(part)
    if record is None:
        return None
    path = home() / record["file"]
    with contextlib.suppress(OSError, ValueError):
        facts = path.stat()
        if facts.st_size == record["size"] and facts.st_mtime_ns == record["mtime_ns"]:
            return path
    return None


def _reverified(part: Part) -> Path | None:
    """The file, if only its time changed (a cache that was copied, or comes with an image): its digest decides."""
    record = _read_record(part)
    if record is None:
        return None
    from sensorium.hub.obtain import sha256_of

    path = home() / record["file"]
    with contextlib.suppress(OSError, ValueError):
        if path.stat().st_size == record["size"] and sha256_of(path) == record["sha256"]:
            with contextlib.suppress(SensoriumError):  # a cache that cannot be written still serves
                _remember(part, path, record["sha256"])
            return path
    return None


def _remember(part: Part, path: Path, digest: str) -> None:
    facts = path.stat()
    inside = path.relative_to(home()).as_posix() if path.is_relative_to(home()) else str(path.absolute())
    record = {"file": inside, "size": facts.st_size, "mtime_ns": facts.st_mtime_ns, "sha256": digest}
    _write_json(_record_path(part), {**record, "source": part.source})


def _write_json(path: Path, value: dict[str, Any]) -> None:
    with atomic_write(path, "w") as out:
        json.dump(value, out)


def _install(part: Part, progress: bool, inside: Path | None = None) -> Path:
    """Take the file out of its archive: the published one, or ``inside``, a zip that was fetched from it before."""
    from sensorium.hub.archives import extract_one
    from sensorium.hub.obtain import obtained
    from sensorium.hub.progress import say

    damaged = _read_record(part)
    if damaged is not None and progress and (home() / damaged["file"]).exists():
        say(f"The cached {part.source} is damaged or was changed; fetching it again")
    if part.pieces:
        from sensorium.hub.pieces import join

        path = join(part, home() / "parts" / _short(part) / part.parsed.name, progress=progress)
        _remember(part, path, part.sha256)
        return path
    with contextlib.nullcontext(inside) if inside else obtained(part, progress=progress) as archive:
        if inside:
            outer, _, name = part.file.rpartition(NESTED)
            directory = home() / "parts" / _short(part) / f"{outer or inside.name}!"
            found = extract_one(archive, name, directory, label=f"{outer or inside.name} in {part.parsed.label}")
            path, digest = found.path, found.sha256
        elif part.parsed.kind == "file" and not part.file:
            path, digest = archive, part.sha256
        elif part.parsed.kind == "hf":
            name = part.file.rpartition("/")[2]
            path, digest = home() / "parts" / _short(part) / name, part.sha256
            with archive.open("rb") as stream, atomic_write(path) as out:
                while chunk := stream.read(1 << 20):
                    out.write(chunk)
        else:
            return _take_out(part, archive)
    return _kept(part, path, digest)


def _take_out(part: Part, archive: Path) -> Path:
    from sensorium.hub.archives import extract_one

    found = extract_one(archive, part.file, home() / "parts" / _short(part), label=part.parsed.label)
    return _kept(part, found.path, found.sha256)


def _kept(part: Part, path: Path, digest: str) -> Path:
    if part.file_sha256 and digest != part.file_sha256:
        if path.is_relative_to(home()):
            path.unlink(missing_ok=True)
        raise SensoriumError(
            f"{part.file} in {part.source} has the sha256 {digest}, not the pinned {part.file_sha256}; correct the pin."
        )
    _remember(part, path, digest)
    return path


def _tree_is_whole(target: Path, record: Path) -> bool:
    """Whether a tree still holds the number of files and bytes that were unpacked (about 40 ms for 10,000 files)."""
    try:
        wanted = json.loads(record.read_bytes())
        files = size = 0
        stack = [os.fspath(target)]
        while stack:
            with os.scandir(stack.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        stack.append(entry.path)
                    else:
                        files += 1
                        size += entry.stat().st_size
        return bool(files == wanted["files"] and size == wanted["bytes"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
