"""WebP (RFC 9649). The file goes to the decoder as it is: libwebp reads the container in C and skips the rest."""

from __future__ import annotations

import struct

from sensorium.media.containers.base import CUT_OFF, DAMAGED, UNUSUAL, Broken, Parsed
from sensorium.media.exif import orientation

_MAX_CHUNKS = 20_000


def parse(data: bytes, max_frames: int) -> Parsed:
    """Read the canvas, count the frames, find the orientation.

    Raises:
        Broken: no picture chunk, cut off, or made to waste time.
    """
    place, chunks, frames, turned = 12, 0, 0, 1
    end = 8 + int.from_bytes(data[4:8], "little")  # what follows belongs to nothing
    if end > len(data) + 1:  # the padding of an odd last chunk is often left out
        raise Broken(CUT_OFF)
    size: tuple[int, int] | None = None
    while place + 8 <= end:
        name, length = struct.unpack_from("<4sI", data, place)
        body, place = place + 8, place + 8 + length + (length & 1)
        chunks += 1
        if chunks > _MAX_CHUNKS:
            raise Broken(UNUSUAL)
        if body + length > min(end, len(data)):
            raise Broken(CUT_OFF)
        if name == b"VP8X" and length >= 10 and size is None:
            size = 1 + _three(data, body + 4), 1 + _three(data, body + 7)
        elif name == b"VP8 " and length >= 10 and size is None:
            width, height = struct.unpack_from("<HH", data, body + 6)
            size = width & 0x3FFF, height & 0x3FFF
        elif name == b"VP8L" and length >= 5 and size is None:
            bits = int.from_bytes(data[body + 1 : body + 5], "little")
            size = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        elif name == b"ANMF":
            frames += 1
            if frames > max_frames:
                return Parsed(b"", *(size or (1, 1)), frames)
        elif name == b"EXIF":
            turned = orientation(data[body : body + min(length, 65536)])
    if size is None:
        raise Broken(CUT_OFF if chunks == 0 else DAMAGED)
    return Parsed(data, *size, max(1, frames), turned)


def _three(data: bytes, place: int) -> int:
    return int.from_bytes(data[place : place + 3], "little")
