"""Image files taken apart before a decoder sees them.

For each format a short reader finds the size and the number of frames (so limits hold before anything is decoded) and
rebuilds a minimal file: the first frame and what decodes it. Text, colour profiles, EXIF, thumbnails, later frames and
trailing data never reach Pillow, whose parsers for them are slow or unbounded on hostile input.
"""

from __future__ import annotations

from collections.abc import Callable

from sensorium.media.containers import bmp, gif, jpeg, png, tiff, webp
from sensorium.media.containers.base import Broken, Parsed

Parser = Callable[[bytes, int], Parsed]
"""Takes the bytes of a file and the most frames to count."""

PARSERS: dict[str, Parser] = {
    "PNG": png.parse,
    "JPEG": jpeg.parse,
    "GIF": gif.parse,
    "WebP": webp.parse,
    "BMP": bmp.parse,
    "TIFF": tiff.parse,
}

__all__ = ["PARSERS", "Broken", "Parsed", "Parser"]
