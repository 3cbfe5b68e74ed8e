"""The orientation in EXIF data, and nothing else of it.

Pillow's reader copies every field before anyone asks for it, and fields may overlap, so a small file can fill the
memory; other fields are of no use here.
"""

from __future__ import annotations

import struct

_ORIENTATION = 0x0112
_MAX_FIELDS = 4096


def orientation(blob: bytes) -> int:
    """The orientation 1..8 of an EXIF blob (with or without its "Exif" mark); 1, upright, for anything unreadable."""
    if blob.startswith(b"Exif\0\0"):
        blob = blob[6:]
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(blob[:4])
    if order is None or len(blob) < 10:
        return 1
    (start,) = struct.unpack_from(f"{order}I", blob, 4)
    if start + 2 > len(blob):
        return 1
    (count,) = struct.unpack_from(f"{order}H", blob, start)
    for index in range(min(count, _MAX_FIELDS)):
        place = start + 2 + 12 * index
        if place + 12 > len(blob):
            break
        tag, kind, number = struct.unpack_from(f"{order}HHI", blob, place)
        if tag == _ORIENTATION:
            # SHORT by the specification; some writers use LONG.
            value = struct.unpack_from(f"{order}I" if kind == 4 else f"{order}H", blob, place + 8)[0]
            return value if number == 1 and kind in (3, 4) and 1 <= value <= 8 else 1
    return 1
