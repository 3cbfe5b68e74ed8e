"""WebDataset shards: plain tar files in which the members of a sample stand together under one base name.

`000123.jpg` with `000123.txt` is a captioned picture; `000123.json` may hold any record of `conversation.sample_of`.
Nothing is extracted: a picture is the stretch of the tar file in which it lies.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from sensorium.errors import SensoriumError, UsageError
from sensorium.training.data.formats.lines import MAX_RECORD, opened, parse
from sensorium.training.data.formats.reader import Reader, Record, Shard, matching
from sensorium.training.data.formats.sample import MediaRef

IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
Members = list[tuple[str, int, int]]  # (extension, offset, bytes)


class WebDatasetReader(Reader):
    """Tar shards."""

    kind = "webdataset"

    def files(self) -> list[Path]:
        """The tar files."""
        return matching(self.path, ".tar")

    def records(self, shard: Shard, start: int) -> Iterator[Record]:
        """Groups of members; only headers are read."""
        for number, (key, members) in enumerate(_groups(shard.path)):
            if number >= start:
                yield Record(f"{shard.path}, {key}", partial(self._record, shard.path, key, members))

    def _record(self, path: Path, key: str, members: Members) -> dict[str, Any]:
        record: dict[str, Any] = {}
        pictures = []
        for extension, offset, size in members:
            if extension in IMAGES:
                pictures.append(MediaRef(f"{path}, {key}.{extension}", path=path, span=(offset, size)))
            elif extension in ("json", "txt", "cls"):
                if size > MAX_RECORD:
                    raise SensoriumError(f"its .{extension} has more than {MAX_RECORD >> 20} MiB.")
                record |= _text_member(path, extension, offset, size)
        return {"__key__": key, **record, **({"images": pictures} if pictures else {})}


def _text_member(path: Path, extension: str, offset: int, size: int) -> dict[str, Any]:
    data = MediaRef(f"{path}", path=path, span=(offset, size)).read() if size else b""
    if extension != "json":
        return {"caption": data.decode("utf-8", errors="replace").strip()}
    value = parse(data)
    if isinstance(value, SensoriumError):
        raise value
    if not isinstance(value, dict):
        raise UsageError("its .json holds no object; write one with `messages` or `caption`.")
    return value


def _groups(path: Path) -> Iterator[tuple[str, Members]]:
    """Neighbouring members with the same name up to the first dot behind the last slash."""
    key, members = "", Members()
    for name, offset, size in _members(path):
        base, _, extension = name.rpartition("/")[2].partition(".")
        found = name[: len(name) - len(extension) - 1] if extension else name
        if found != key and members:
            yield key, members
            members = []
        key = found
        if base:
            members.append((extension.lower(), offset, size))
    if members:
        yield key, members


def _members(path: Path) -> Iterator[tuple[str, int, int]]:
    """(name, offset, bytes) of every regular member. Links and devices are passed over: they could name anything."""
    with opened(path) as file:
        length = path.stat().st_size
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                while (member := archive.next()) is not None:
                    archive.members.clear()  # type: ignore[attr-defined]  # else it remembers every one
                    if member.size < 0 or archive.offset > length + tarfile.BLOCKSIZE:
                        raise tarfile.ReadError(f"{member.name[:80]} goes beyond the end")
                    if not member.isreg() or member.issparse():
                        continue
                    yield member.name, member.offset_data, member.size
                # Whatever is no header ends the loop. Only a block of zeros is an end that the writer has written.
                file.seek(archive.offset)
                if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                    raise tarfile.ReadError("no end mark")
        except (tarfile.TarError, OSError, ValueError, EOFError, RecursionError) as error:
            raise SensoriumError(
                f"{path} is no plain tar file, or is damaged or cut off ({str(error)[:100] or type(error).__name__}); "
                "get a whole copy, unpacked if it is compressed."
            ) from None
