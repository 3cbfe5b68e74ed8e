"""A picture in a terminal: two pixels per character cell, as an upper half block with two colours."""

from __future__ import annotations

import os
import sys
from typing import TextIO

import numpy as np


def can_show(stream: TextIO | None = None) -> bool:
    """Whether the stream is a terminal that shows 24-bit colour."""
    stream = stream or sys.stdout
    colour = os.environ.get("COLORTERM", "").lower() in ("truecolor", "24bit")
    return stream.isatty() and colour and "NO_COLOR" not in os.environ


def half_blocks(pixels: np.ndarray, columns: int = 40, rows: int = 16) -> str:
    """Draw uint8 pixels [H, W, 3] within `columns` x `rows` character cells, as lines with ANSI colours."""
    from PIL import Image

    height, width = pixels.shape[:2]
    scale = min(columns / width, 2 * rows / height)
    size = max(1, round(width * scale)), max(2, round(height * scale / 2) * 2)
    small = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BOX))
    lines = []
    for top, bottom in zip(small[0::2], small[1::2]):
        cells = (f"\x1b[38;2;{r};{g};{b}m\x1b[48;2;{R};{G};{B}m▀" for (r, g, b), (R, G, B) in zip(top, bottom))
        lines.append("".join(cells) + "\x1b[0m")
    return "\n".join(lines)
