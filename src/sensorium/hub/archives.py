"""Reading members out of wheels, npm tarballs and Debian packages, which are data here and never code.

Zip, tar (plain, gzip, bzip2, xz, zstd) and ar-with-tar are told apart by their first bytes. Names that would leave the
target directory, special files and archives that unpack to more than the limits are refused; real links are never made.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import hashlib
import lzma
import os
import posixpath
import shutil
import stat
import subprocess
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from sensorium.errors import SensoriumError
from sensorium.hub.paths import atomic_write, write_error

_CHUNK = 1 << 20
# What the standard library raises on damaged or unusual archives.
_DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,
    RuntimeError,  # an encrypted zip member
    ValueError,
    OverflowError,
    IndexError,
)


@dataclass(frozen=True)
class ArchiveLimits:
    """What is unpacked at most: members looked at, files taken, bytes of one file, bytes of all files together."""

    max_members: int = 1_000_000
    max_files: int = 200_000
    max_file_bytes: int = 16 << 30
    max_total_bytes: int = 32 << 30


@dataclass(frozen=True)
class Entry:
    """One member of an archive: a safe relative ``name`` with ``/``, its declared size, what it is."""

    name: str
    size: int
    kind: Literal["file", "link", "hardlink", "other"]
    target: str
    open: Callable[[], IO[bytes]]


@dataclass(frozen=True)
class Extracted:
    """A file that was taken out: the name in the archive, where it lies now, its size in bytes and sha256."""

    name: str
    path: Path
    size: int
    sha256: str


def safe_name(name: str) -> str | None:
    """``name`` as a clean relative path with ``/``; None where it is absolute, climbs out, or is no path at all."""
    if "\\" in name or "\0" in name or ":" in name.split("/", 1)[0][:2] or name.startswith("/"):
        return None
    pieces = [piece for piece in name.split("/") if piece not in ("", ".")]
    if not pieces or ".." in pieces or any(len(os.fsencode(piece)) > 255 for piece in pieces):
        return None
    return "/".join(pieces)


def is_pattern(name: str) -> bool:
    """True where ``name`` is a glob and not one path."""
    return any(character in name for character in "*?[")


def extract_one(
    archive: Path, member: str, target: Path, *, label: str, limits: ArchiveLimits | None = None
) -> Extracted:
    """Write the one file that ``member`` names (a path, or a glob that matches just one) to ``target / its name``.

    Raises:
        SensoriumError: no member or several match, it is no regular file, the archive is damaged, the disk is full.
    """
    with _explained(label):
        return _extract_one(archive, member, target, label, limits or ArchiveLimits())


def _extract_one(archive: Path, member: str, target: Path, label: str, limits: ArchiveLimits) -> Extracted:
    pattern = is_pattern(member)
    found: Extracted | None = None
    names: list[str] = []
    for entry in _entries(archive, label, limits):
        if entry.kind == "file" and len(names) < 1000:
            names.append(entry.name)
        if not (fnmatch.fnmatchcase(entry.name, member) if pattern else entry.name == member):
            continue
        if entry.kind != "file":
            if pattern:
                continue
            raise SensoriumError(f"{member} in {label} is a link or a special file; name a regular file of it.")
        if found is not None:
            raise SensoriumError(
                f"{member!r} matches several files of {label} ({found.name}, {entry.name}, ...); name one of them."
            )
        found = _write(entry, target / entry.name, label, limits)
        if not pattern:
            break
    if found is None:
        some = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        raise SensoriumError(f"{label} holds no file {member!r}; it holds {some or 'no files'}.")
    return found


def extract_many(
    archive: Path,
    patterns: Iterable[str],
    target: Path,
    *,
    label: str,
    limits: ArchiveLimits | None = None,
) -> list[Extracted]:
    """Write every regular file that matches one of ``patterns`` (globs; ``*`` crosses ``/``) below ``target``.

    A link inside the archive that matches and points to a file of the archive becomes a hard link or a copy of it (the
    openclipart package files 1,221 of its pictures so); other links and special files are left out.

    Raises:
        SensoriumError: nothing matches, a limit is passed, the archive is damaged, the disk is full.
    """
    with _explained(label):
        return _extract_many(archive, list(patterns), target, label, limits or ArchiveLimits())


def _extract_many(archive: Path, wanted: list[str], target: Path, label: str, bounds: ArchiveLimits) -> list[Extracted]:
    names = {name for name in wanted if not is_pattern(name)}
    patterns = [name for name in wanted if is_pattern(name)]
    taken: dict[str, Extracted] = {}
    links: dict[str, str] = {}
    total = 0
    for entry in _entries(archive, label, bounds):
        if entry.name not in names and not any(fnmatch.fnmatchcase(entry.name, pattern) for pattern in patterns):
            continue
        if entry.kind in ("link", "hardlink"):
            start = posixpath.dirname(entry.name) if entry.kind == "link" else ""
            place = safe_name(posixpath.normpath(posixpath.join(start, entry.target)))
            if place is not None and not entry.target.startswith("/"):
                links[entry.name] = place
        elif entry.kind == "file":
            extracted = _write(entry, target / entry.name, label, bounds, durable=False)
            total += extracted.size
            taken[entry.name] = extracted
            if total > bounds.max_total_bytes or len(taken) > bounds.max_files:
                raise SensoriumError(
                    f"{label} unpacks to more than {bounds.max_files} files or {bounds.max_total_bytes} bytes; "
                    "name fewer files of it."
                )
    for name, place in links.items():
        seen = {name}
        while place in links and place not in seen:
            seen.add(place)
            place = links[place]
        if place in taken and name not in taken:
            _link(taken[place].path, target / name)
            taken[name] = Extracted(name, target / name, taken[place].size, taken[place].sha256)
    if not taken:
        raise SensoriumError(f"{label} holds no file that matches {', '.join(wanted[:5])}.")
    return list(taken.values())


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _write(entry: Entry, path: Path, label: str, limits: ArchiveLimits, *, durable: bool = True) -> Extracted:
    """Copy one member to ``path``, counting the real bytes: a header may lie about the size.

    ``durable`` writes atomically and to the disk; the thousands of small files of a tree, which is checked as a whole
    and moved into place as a whole, do without (it would take a minute).
    """
    digest = hashlib.sha256()
    written = 0
    with atomic_write(path) if durable else _plain_write(path) as out:
        with entry.open() as stream:
            while chunk := stream.read(_CHUNK):
                written += len(chunk)
                if written > entry.size or written > limits.max_file_bytes:
                    raise SensoriumError(
                        f"{entry.name} in {label} unpacks to more than the "
                        f"{min(entry.size, limits.max_file_bytes)} bytes it may have; do not use this archive."
                    )
                digest.update(chunk)
                out.write(chunk)
        if written != entry.size:
            raise SensoriumError(
                f"{entry.name} in {label} ends after {written} of {entry.size} bytes; fetch the archive again."
            )
    return Extracted(entry.name, path, written, digest.hexdigest())


@contextlib.contextmanager
def _plain_write(path: Path) -> Iterator[IO[bytes]]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as out:
            yield out
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise write_error(path, error) from error
        raise


def _entries(archive: Path, label: str, limits: ArchiveLimits) -> Iterator[Entry]:
    """All members in the order of the archive; an entry can be opened only until the next one is asked for."""
    with archive.open("rb") as handle:
        start = handle.read(265)
        handle.seek(0)
        if start.startswith(b"PK"):
            walk = _zip_entries(handle)
        elif start.startswith(b"!<arch>\n"):
            walk = _deb_entries(handle, archive)
        elif start[257:262] == b"ustar" or start[:2] == b"\x1f\x8b" or start[:3] in (b"BZh", b"\xfd7z"):
            walk = _tar_entries(handle)
        else:
            raise SensoriumError(f"{label} is no wheel, zip, tar or Debian package, so nothing can be read from it.")
        for count, entry in enumerate(walk):
            if count >= limits.max_members:
                raise SensoriumError(f"{label} has more than {limits.max_members} members; do not use this archive.")
            yield entry


@contextlib.contextmanager
def _explained(label: str) -> Iterator[None]:
    """Whatever a damaged archive makes the standard library raise becomes one sentence."""
    try:
        yield
    except _DAMAGE as error:
        raise SensoriumError(
            f"{label} is a damaged or unusual archive ({_reason(error)}); fetch it again, or name another version."
        ) from error
    except OSError as error:
        # zlib, bz2 and gzip report damaged data as an OSError without a number; the disk's own errors have one.
        reason = error.strerror or _reason(error)
        raise SensoriumError(f"{label} cannot be unpacked ({reason}); fetch it again.") from error


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:120].rstrip(".") or type(error).__name__


def _zip_entries(handle: IO[bytes]) -> Iterator[Entry]:
    with zipfile.ZipFile(handle) as archive:
        for info in archive.infolist():
            name = safe_name(info.filename)
            if name is None or info.is_dir():
                continue
            mode = info.external_attr >> 16
            special = mode and stat.S_IFMT(mode) not in (0, stat.S_IFREG)
            yield Entry(name, info.file_size, "other" if special else "file", "", lambda i=info: archive.open(i))  # type: ignore[misc]


def _tar_entries(handle: IO[bytes]) -> Iterator[Entry]:
    with tarfile.open(fileobj=handle, mode="r|*") as archive:
        for info in archive:
            name = safe_name(info.name)
            if name is None or info.isdir():
                continue
            if info.isreg():
                kind: Literal["file", "link", "hardlink", "other"] = "file"
            else:
                kind = "link" if info.issym() else "hardlink" if info.islnk() else "other"
            yield Entry(name, info.size, kind, info.linkname, lambda i=info: _tar_open(archive, i))  # type: ignore[misc]


def _tar_open(archive: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    stream = archive.extractfile(info)
    if stream is None:
        raise tarfile.ReadError(f"{info.name} has no data")
    return stream


def _deb_entries(handle: IO[bytes], archive: Path) -> Iterator[Entry]:
    """A Debian package is an ar archive of debian-binary, control.tar.* and data.tar.*; only the last matters here."""
    handle.seek(8)
    while header := handle.read(60):
        if len(header) < 60 or header[58:60] != b"`\n":
            raise tarfile.ReadError("the ar header is damaged")
        name = header[:16].rstrip(b" ").rstrip(b"/")
        size = int(header[48:58])
        if size < 0:
            raise tarfile.ReadError("the ar header is damaged")
        start = handle.tell()
        if name.startswith(b"data.tar"):
            if name == b"data.tar.zst":
                yield from _zstd_deb_entries(archive)
            else:
                yield from _tar_entries(_Window(handle, start, size))  # type: ignore[arg-type]
            return
        handle.seek(start + size + size % 2)
    raise tarfile.ReadError("it has no data.tar")


def _zstd_deb_entries(archive: Path) -> Iterator[Entry]:
    """zstd came to the standard library with Python 3.14, so dpkg-deb unpacks the stream (no script runs)."""
    tool = shutil.which("dpkg-deb")
    if tool is None:
        raise SensoriumError(
            f"{archive.name} is compressed with zstd, which needs the program dpkg-deb; use a Debian or Ubuntu machine."
        )
    process = subprocess.Popen(
        [tool, "--fsys-tarfile", os.fspath(archive)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    try:
        yield from _tar_entries(process.stdout)
    finally:
        process.stdout.close()
        with contextlib.suppress(OSError):
            process.kill()
        process.wait()


class _Window:
    """A read-only view of a stretch of a file, as a stream for tarfile."""

    def __init__(self, handle: IO[bytes], start: int, size: int) -> None:
        self._handle, self._left = handle, size
        handle.seek(start)

    def read(self, size: int = -1) -> bytes:
        take = self._left if size < 0 else min(size, self._left)
        data = self._handle.read(take)
        self._left -= len(data)
        return data
