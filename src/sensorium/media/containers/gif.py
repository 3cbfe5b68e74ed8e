"""GIF (CompuServe, 87a and 89a)."""

from __future__ import annotations

import struct

from sensorium.media.containers.base import CUT_OFF, DAMAGED, Broken, Parsed


def parse(data: bytes, max_frames: int) -> Parsed:
    """Keep the first frame with its palettes and transparency; count the frames.

    Raises:
        Broken: the first frame is missing, cut off, or the file has another structure.
    """
    if len(data) < 13:
        raise Broken(CUT_OFF)
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    place = 13 + _table(flags)
    kept = [data[:place]]
    frames = 0
    while place < len(data):
        mark = data[place]
        if mark == 0x21:  # an extension; the graphic control extension holds the transparent colour
            end = _blocks(data, place + 2)
            if frames == 0 and data[place + 1 : place + 3] == b"\xf9\x04" and end is not None:
                kept = [*kept[:1], data[place:end]]
        elif mark == 0x2C:
            if place + 10 > len(data):
                end = None
            else:
                end = _blocks(data, place + 10 + _table(data[place + 9]) + 1)
                if frames == 0 and end is not None:
                    left, top, wide, high = struct.unpack_from("<HHHH", data, place + 1)
                    width, height = max(width, left + wide), max(height, top + high)
                    kept.append(data[place:end])
            frames += end is not None
            if frames > max_frames:
                break
        else:  # the trailer, or bytes that belong to nothing
            if frames == 0:
                raise Broken(DAMAGED)
            break
        if end is None:
            if frames == 0:
                raise Broken(CUT_OFF)
            break
        place = end
    if frames == 0:
        raise Broken(CUT_OFF)
    return Parsed(b"".join([*kept, b";"]), width, height, frames)


def _table(flags: int) -> int:
    """Bytes of the colour table that follows a descriptor with these flags."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _blocks(data: bytes, place: int) -> int | None:
    """Where a chain of sub-blocks ends, None if the file ends first."""
    length = len(data)
    while place < length:
        size = data[place]
        place += 1 + size
        if size == 0:
            return place
    return None
