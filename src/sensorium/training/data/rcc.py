"""Reader for Qt binary resource files (.rcc), the form in which GCompris ships its pictures.

Layout (Qt's own qresource.cpp): header "qres", version, offsets of tree, data and names; a tree of 14-byte (version 1)
or 22-byte (versions 2 and 3) nodes; names in UTF-16; each file's bytes stored plain or zlib-compressed.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from sensorium.errors import SensoriumError

_COMPRESSED, _DIRECTORY, _ZSTD = 1, 2, 4


def read_rcc(path: Path, limit: int = 64 << 20) -> Iterator[tuple[str, bytes]]:
    """(name inside the resource tree, file bytes) of every file; Zstandard-compressed ones are left out.

    ``limit`` bounds one inflated file. Raises SensoriumError when the file is no Qt resource or points outside itself.
    """
    blob = path.read_bytes()
    if blob[:4] != b"qres":
        raise SensoriumError(f"{path.name} is not a Qt resource file: it does not begin with 'qres'.")
    try:
        version, tree, data, names = struct.unpack(">4I", blob[4:20])
        yield from _walk(blob, tree, data, names, 14 if version < 2 else 22, limit)
    except (struct.error, zlib.error, UnicodeDecodeError) as error:
        raise SensoriumError(f"{path.name} is a damaged Qt resource file ({error}).") from None


def _walk(blob: bytes, tree: int, data: int, names: int, size: int, limit: int) -> Iterator[tuple[str, bytes]]:
    stack, seen = [(0, "")], set()
    while stack:
        index, prefix = stack.pop()
        if index in seen:
            continue
        seen.add(index)
        node = tree + index * size
        name_at, flags = struct.unpack(">IH", blob[node : node + 6])
        (length,) = struct.unpack(">H", blob[names + name_at : names + name_at + 2])
        name = blob[names + name_at + 6 : names + name_at + 6 + 2 * length].decode("utf-16-be") if index else ""
        full = f"{prefix}/{name}" if prefix else name
        if flags & _DIRECTORY:
            count, first = struct.unpack(">II", blob[node + 6 : node + 14])
            stack += [(child, full) for child in reversed(range(first, min(first + count, len(blob) // size)))]
            continue
        (offset,) = struct.unpack(">I", blob[node + 10 : node + 14])
        (length,) = struct.unpack(">I", blob[data + offset : data + offset + 4])
        raw = blob[data + offset + 4 : data + offset + 4 + length]
        if flags & _ZSTD:
            continue
        if flags & _COMPRESSED:
            raw = zlib.decompressobj().decompress(raw[4:], limit)
        yield full, raw
