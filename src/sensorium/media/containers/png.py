"""PNG and APNG (W3C PNG, third edition)."""

from __future__ import annotations

import struct
import zlib

from sensorium.media.containers.base import CUT_OFF, DAMAGED, UNUSUAL, Broken, Parsed
from sensorium.media.exif import orientation

_KEEP = {b"IHDR", b"PLTE", b"tRNS", b"IDAT"}
_MAX_CHUNKS = 50_000
_IEND = b"\0\0\0\0IEND\xaeB`\x82"


def parse(data: bytes, max_frames: int) -> Parsed:
    """Keep the header, the palette and the pixels; check their checksums; count the frames of an animation.

    Raises:
        Broken: the file is cut off, damaged or made to waste time.
    """
    kept = [data[:8]]
    view = memoryview(data)
    place, chunks, frames, turned, finished = 8, 0, 0, 1, False
    width = height = depth = colour = 0
    while place + 12 <= len(data) and not finished:
        length, name = struct.unpack_from(">I4s", data, place)
        end = place + 12 + length
        chunks += 1
        if chunks > _MAX_CHUNKS:
            raise Broken(UNUSUAL)
        if chunks == 1 and (name != b"IHDR" or length != 13):
            raise Broken(DAMAGED)
        if end > len(data):
            raise Broken(CUT_OFF)
        if name in _KEEP:
            if zlib.crc32(view[place + 4 : end - 4]) != int.from_bytes(view[end - 4 : end], "big"):
                raise Broken(DAMAGED)
            if name != b"tRNS" or _fits(colour, length):
                kept.append(data[place:end])
        if name == b"IHDR":
            if chunks != 1:
                raise Broken(DAMAGED)
            width, height, depth, colour, compression, filters, _ = struct.unpack_from(">IIBBBBB", data, place + 8)
            if compression or filters:
                raise Broken(DAMAGED)
        elif name == b"fcTL":
            frames += 1
            if frames > max_frames:
                return Parsed(b"", width, height, frames)
        elif name == b"eXIf":
            turned = orientation(data[place + 8 : min(end - 4, place + 8 + 65536)])
        finished = name == b"IEND"
        place = end
    names = {chunk[4:8] for chunk in kept[1:]}
    if colour == 3 and finished and b"PLTE" not in names:
        raise Broken(DAMAGED)
    if b"IDAT" not in names:
        raise Broken(DAMAGED if finished else CUT_OFF)
    # A file that lacks only its end mark still has all its pixels; the decoder finds out.
    return Parsed(b"".join([*kept, _IEND]), width, height, max(1, frames), turned, 65535 if depth == 16 else None)


def _fits(colour: int, length: int) -> bool:
    """Whether a transparency chunk has the length that its colour type asks for; libpng too passes over others."""
    return 1 <= length <= 256 if colour == 3 else length == {0: 2, 2: 6}.get(colour)
