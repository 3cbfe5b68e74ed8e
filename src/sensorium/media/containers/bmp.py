"""BMP: the Windows and OS/2 headers."""

from __future__ import annotations

import struct

from sensorium.media.containers.base import CUT_OFF, DAMAGED, UNUSUAL, Broken, Parsed

# Pillow decodes run lengths in Python, at 1 MB/s in the worst case; drawings that are stored so are smaller than this.
_MAX_RUN_LENGTH_BYTES = 2 << 20


def parse(data: bytes, max_frames: int) -> Parsed:
    """Read the size. A negative height means that the rows stand from the top down.

    Raises:
        Broken: the header is cut off or impossible.
    """
    (header,) = struct.unpack_from("<I", data, 14)
    if len(data) < 14 + header:
        raise Broken(CUT_OFF)
    if header == 12:
        width, height = struct.unpack_from("<HH", data, 18)
    else:
        width, height = struct.unpack_from("<ii", data, 18)
        compression = struct.unpack_from("<I", data, 30)[0] if header >= 40 else 0
        if compression in (1, 2) and len(data) > _MAX_RUN_LENGTH_BYTES:
            raise Broken(UNUSUAL)
    if width < 0:
        raise Broken(DAMAGED)
    return Parsed(data, width, abs(height))
