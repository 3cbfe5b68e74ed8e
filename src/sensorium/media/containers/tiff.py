"""TIFF 6.0 and BigTIFF: the first page."""

from __future__ import annotations

import struct
from typing import NamedTuple

from sensorium.media.containers.base import CUT_OFF, DAMAGED, UNUSUAL, Broken, Parsed

# What decodes pixels: sizes, sample formats, compression, strips, tiles, palettes, colour spaces, JPEG tables.
# fmt: off
_KEEP = {
    254, 256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 280, 281, 284, 292, 293, 317, 320, 322, 323, 324, 325, 332,
    338, 339, 340, 341, 347, 512, 513, 514, 515, 517, 518, 519, 520, 521, 529, 530, 531, 532,
}
# Of these there is one number; some writers repeat it for every sample, which Pillow warns about.
_SINGLE = {254, 256, 257, 259, 262, 266, 274, 277, 278, 284, 317, 322, 323}
# fmt: on
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_NUMBERS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q"}
_MAX_PIECES = 1 << 18  # strips or tiles: one for each row of the tallest image, four planes
_MAX_TILE_BYTES = 1 << 30


class _Layout(NamedTuple):
    """Where things stand in classic TIFF and in BigTIFF."""

    order: str
    number: str
    entry: str
    pointer: str
    first: int

    @property
    def inline(self) -> int:
        return struct.calcsize(self.order + self.pointer)


class _Field(NamedTuple):
    kind: int
    length: int
    raw: bytes  # the whole entry
    place: int  # where the values stand


def parse(data: bytes, max_frames: int) -> Parsed:
    """Rebuild the first directory with only the fields that decode pixels; count the pages; read size and orientation.

    Fields whose values are longer than the file (or overlap so that together they are) are refused: readers copy them.

    Raises:
        Broken: the directory is cut off, impossible, or made to waste time or memory.
    """
    order = "<" if data[:2] == b"II" else ">"
    if len(data) < 16:
        raise Broken(CUT_OFF)
    big = data[2:4] in (b"+\0", b"\0+")
    layout = _Layout(order, "Q", "HHQ8s", "Q", 8) if big else _Layout(order, "H", "HHI4s", "I", 4)
    (start,) = struct.unpack_from(order + layout.pointer, data, layout.first)
    fields, following = _directory(data, layout, start)
    width, height = _number(data, layout, fields, 256), _number(data, layout, fields, 257)
    if width is None or height is None or not {273, 324, 513} & set(fields):
        raise Broken(DAMAGED)
    _refuse_waste(data, layout, fields)
    bits = _number(data, layout, fields, 258) or 1
    kept = [_entry(data, layout, fields, tag) for tag in sorted(_KEEP & set(fields))]
    directory = struct.pack(order + layout.number, len(kept)) + b"".join(kept)
    directory += struct.pack(order + layout.pointer, 0)
    padding = b"\0" * (-len(data) % 8)
    stream = bytearray(data)
    stream += padding + directory
    struct.pack_into(order + layout.pointer, stream, layout.first, len(data) + len(padding))
    turned = _number(data, layout, fields, 274) or 1
    return Parsed(
        bytes(stream),
        width,
        height,
        _pages(data, layout, start, following, max_frames),
        turned if 1 <= turned <= 8 else 1,
        (1 << bits) - 1 if 8 < bits <= 16 else None,
        bits > 8 and _number(data, layout, fields, 262) == 0,
    )


def _directory(data: bytes, layout: _Layout, start: int) -> tuple[dict[int, _Field], int]:
    """The fields of a directory (the first of each tag) and where the next directory stands (0 for none)."""
    order, total = layout.order, 0
    head = struct.calcsize(order + layout.number)
    if start + head > len(data):
        raise Broken(CUT_OFF)
    (count,) = struct.unpack_from(order + layout.number, data, start)
    size = struct.calcsize(order + layout.entry)
    if count > 4096:
        raise Broken(UNUSUAL)
    end = start + head + count * size
    if end + layout.inline > len(data) + layout.inline:
        raise Broken(CUT_OFF)
    fields: dict[int, _Field] = {}
    for place in range(start + head, end, size):
        tag, kind, number, value = struct.unpack_from(order + layout.entry, data, place)
        length = _SIZES.get(kind, 1) * number
        where = place + size - layout.inline
        if length > layout.inline:
            (where,) = struct.unpack(order + layout.pointer, value)
            if tag in _KEEP:
                total += length
                if where + length > len(data):
                    raise Broken(CUT_OFF)
                if total > len(data):
                    raise Broken(UNUSUAL)
        fields.setdefault(tag, _Field(kind, number, data[place : place + size], where))
    following = 0
    if end + layout.inline <= len(data):
        (following,) = struct.unpack_from(order + layout.pointer, data, end)
    return fields, following


def _entry(data: bytes, layout: _Layout, fields: dict[int, _Field], tag: int) -> bytes:
    field = fields[tag]
    if tag not in _SINGLE or field.length == 1:
        return field.raw
    value = _number(data, layout, fields, tag)
    if value is None or value >= 1 << 32:
        raise Broken(DAMAGED)
    return struct.pack(layout.order + layout.entry, tag, 4, 1, struct.pack(f"{layout.order}I", value))


def _number(data: bytes, layout: _Layout, fields: dict[int, _Field], tag: int) -> int | None:
    """The first value of an integer field, None where it is missing or no integer."""
    field = fields.get(tag)
    if field is None or field.length < 1 or field.kind not in _NUMBERS:
        return None
    form = layout.order + _NUMBERS[field.kind]
    if field.place + struct.calcsize(form) > len(data):
        return None
    return int(struct.unpack_from(form, data, field.place)[0])


def _refuse_waste(data: bytes, layout: _Layout, fields: dict[int, _Field]) -> None:
    pieces = max((fields[tag].length for tag in (273, 279, 324, 325) if tag in fields), default=0)
    samples, bits = _number(data, layout, fields, 277) or 1, _number(data, layout, fields, 258) or 1
    tile = (_number(data, layout, fields, 322) or 1) * (_number(data, layout, fields, 323) or 1)
    if pieces > _MAX_PIECES or samples > 64 or bits > 64 or tile * samples * bits // 8 > _MAX_TILE_BYTES:
        raise Broken(UNUSUAL)


def _pages(data: bytes, layout: _Layout, start: int, following: int, max_frames: int) -> int:
    seen = {start}
    head, size = struct.calcsize(layout.order + layout.number), struct.calcsize(layout.order + layout.entry)
    while following and following not in seen and len(seen) <= max_frames and following + head <= len(data):
        seen.add(following)
        (count,) = struct.unpack_from(layout.order + layout.number, data, following)
        end = following + head + count * size
        if end + layout.inline > len(data):
            break
        (following,) = struct.unpack_from(layout.order + layout.pointer, data, end)
    return len(seen)
