"""How much of an untrusted file is read and decoded."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Limits that hold before anything is decoded.

    Attributes:
        max_bytes: size of the encoded file.
        max_pixels: width x height of a frame. 64 million pixels take about 1 GB while they are decoded. (Above 89
            million Pillow warns on its own for WebP and TIFF, above 178 million it refuses those.)
        max_side: width or height alone, in pixels.
        max_frames: frames of an animation or pages of a document (the first is taken; more than this is refused).
    """

    max_bytes: int = 64 * 1024 * 1024
    max_pixels: int = 64_000_000
    max_side: int = 65_535
    max_frames: int = 10_000


DEFAULT = Limits()
