"""What the readers of containers give back, and how they refuse."""

from __future__ import annotations

from dataclasses import dataclass


class Broken(Exception):
    """The file cannot be decoded; the message is a clause that follows its name: "is cut off"."""


CUT_OFF = "is cut off"
DAMAGED = "is damaged"
UNUSUAL = "has a header that no camera or program writes"


@dataclass(frozen=True)
class Parsed:
    """An image file, taken apart.

    Attributes:
        stream: a minimal file with the first frame, for the decoder.
        width, height: of the canvas, in pixels.
        frames: frames or pages, counted up to one more than the limit that was given.
        orientation: EXIF orientation, 1..8.
        white: the sample value that means white where a sample has more than 8 bits; None for the usual ones.
        inverted: samples are 0 for white (only where Pillow does not see to it).
    """

    stream: bytes
    width: int
    height: int
    frames: int = 1
    orientation: int = 1
    white: int | None = None
    inverted: bool = False
