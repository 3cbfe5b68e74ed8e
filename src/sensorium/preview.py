"""A picture in a terminal: two pixels per character cell, as an upper half block with two colours."""

from __future__ import annotations

import os
import sys
from typing import Literal, TextIO

import numpy as np

Colours = Literal["24 bit", "256"]


def colours(stream: TextIO | None = None) -> Colours | None:
    """The colours that the stream can show: 24 bits where COLORTERM says so, 256 on any other terminal.

    None where it is no terminal, or a dumb one, or NO_COLOR asks for none.
    """
    stream = stream or sys.stdout
    if not stream.isatty() or "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb":
        return None
    return "24 bit" if os.environ.get("COLORTERM", "").lower() in ("truecolor", "24bit") else "256"


def half_blocks(pixels: np.ndarray, columns: int = 40, rows: int = 16, colours: Colours = "24 bit") -> str:
    """Draw uint8 pixels [H, W, 3] within `columns` x `rows` character cells, as lines with ANSI colours."""
    from PIL import Image

    height, width = pixels.shape[:2]
    scale = min(columns / width, 2 * rows / height)
    size = max(1, round(width * scale)), max(2, round(height * scale / 2) * 2)
    small = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BOX))
    if colours == "24 bit":
        codes = np.array([[f"2;{r};{g};{b}" for r, g, b in row] for row in small])
    else:
        codes = np.array([[f"5;{code}" for code in row] for row in nearest_256(small)])
    lines = []
    for top, bottom in zip(codes[0::2], codes[1::2]):
        lines.append("".join(f"\x1b[38;{t}m\x1b[48;{b}m▀" for t, b in zip(top, bottom)) + "\x1b[0m")
    return "\n".join(lines)


_LEVELS = np.array([0, 95, 135, 175, 215, 255])


def nearest_256(pixels: np.ndarray) -> np.ndarray:
    """The nearest colours of xterm's palette: uint8 [..., 3] -> numbers [...], 16..231 of its cube, 232..255 greys."""
    values = pixels.astype(np.int64)
    steps = np.abs(values[..., None] - _LEVELS).argmin(axis=-1)
    cube = steps @ np.array([36, 6, 1]) + 16
    grey = np.clip(np.round((values.mean(axis=-1) - 8) / 10), 0, 23).astype(np.int64)
    far = np.square(_LEVELS[steps] - values).sum(axis=-1)
    far_grey = np.square((8 + 10 * grey)[..., None] - values).sum(axis=-1)
    return np.where(far_grey < far, 232 + grey, cube)
