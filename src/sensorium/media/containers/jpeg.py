"""JPEG (ITU-T T.81)."""

from __future__ import annotations

import re
import struct

from sensorium.media.containers.base import CUT_OFF, DAMAGED, UNUSUAL, Broken, Parsed
from sensorium.media.exif import orientation

# Frame headers, tables and restart intervals; APP0 (JFIF) and APP14 (Adobe), which tell the colour space.
_SOF = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_KEEP = _SOF | {0xC4, 0xCC, 0xDB, 0xDC, 0xDD, 0xE0, 0xEE}
_MAX_SEGMENTS = 5_000
# Every scan of a progressive file goes over all pixels again; encoders write about ten.
_MAX_SCANS = 100
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")


def parse(data: bytes, max_frames: int) -> Parsed:
    """Keep the tables and the scans up to the end mark; read the size and the orientation.

    Raises:
        Broken: there is no picture in it, it is cut off before its first scan, or it is made to waste time.
    """
    kept = [b"\xff\xd8"]
    place, segments, turned = 2, 0, 1
    width = height = 0
    while True:
        found = _MARKER.search(data, place, place + 65536)
        if found is None:
            raise Broken(CUT_OFF if place + 65536 >= len(data) else DAMAGED)
        marker, start = data[found.end() - 1], found.end()
        segments += 1
        if segments > _MAX_SEGMENTS:
            raise Broken(UNUSUAL)
        if marker == 0xD9:
            raise Broken(DAMAGED)
        if marker == 0xD8:
            place = start
            continue
        if marker == 0xDA:
            break
        if start + 2 > len(data):
            raise Broken(CUT_OFF)
        (length,) = struct.unpack_from(">H", data, start)
        place = start + length
        if length < 2:
            raise Broken(DAMAGED)
        if place > len(data):
            raise Broken(CUT_OFF)
        if marker in _KEEP:
            kept.append(data[found.start() : place])
        if marker in _SOF and length >= 8:
            height, width = struct.unpack_from(">HH", data, start + 3)
        elif marker == 0xE1 and turned == 1 and data[start + 2 : start + 8] == b"Exif\0\0":
            turned = orientation(data[start + 2 : place])
    if not width:
        raise Broken(DAMAGED)
    kept.append(data[found.start() : _end_of_scans(data, found.start())])
    return Parsed(b"".join(kept), width, height, 1, turned)


def _end_of_scans(data: bytes, place: int) -> int:
    """Where the first picture ends: phones append films, depth maps and more pictures to a photograph."""
    scans = 0
    while (found := _MARKER.search(data, place)) is not None:
        marker, place = data[found.end() - 1], found.end()
        if marker == 0xD9:
            return place
        scans += marker == 0xDA
        if scans > _MAX_SCANS:
            raise Broken(UNUSUAL)
        if place + 2 <= len(data):
            place += max(2, int.from_bytes(data[place : place + 2], "big"))
    return len(data)
