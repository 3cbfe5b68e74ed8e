"""A curve in the terminal, drawn with braille dots: two columns and four rows of them in every character."""

from __future__ import annotations

import math
from collections.abc import Sequence

DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # bit of each dot, by row and column of a character
EMPTY = 0x2800


def curve(values: Sequence[float], width: int = 60, height: int = 6) -> list[str]:
    """Lines of text with the course of a number, the highest and the lowest value at their left.

    Args:
        values: in their order; what is not finite leaves a gap.
        width, height: characters, labels not counted.
    """
    points = _thinned(values, 2 * width)
    finite = [value for value in points if math.isfinite(value)]
    if not finite:
        return []
    low, high = min(finite), max(finite)
    rows = 4 * height
    cells = [[EMPTY] * -(-len(points) // 2) for _ in range(height)]
    before: int | None = None
    for column, value in enumerate(points):
        if not math.isfinite(value):
            before = None
            continue
        at = rows - 1 if high == low else round((high - value) / (high - low) * (rows - 1))
        # from the point before, so that a steep curve is a line and not single dots
        start, end = (at, at) if before is None else sorted((at, before))
        for row in range(start, end + 1):
            if row != before or row == at:
                cells[row // 4][column // 2] |= DOTS[row % 4][column % 2]
        before = at
    labels = [f"{high:.3g}", *[""] * (height - 2), f"{low:.3g}"]
    margin = max(map(len, labels))
    return [f"{label:>{margin}} ┤{''.join(map(chr, row))}" for label, row in zip(labels, cells)]


def _thinned(values: Sequence[float], count: int) -> list[float]:
    """At most ``count`` values, each the mean of its share; NaN where that is not finite."""
    size = max(1.0, len(values) / count)
    parts = [
        values[int(i * size) : max(int(i * size) + 1, int((i + 1) * size))] for i in range(min(count, len(values)))
    ]
    means = [sum(part) / len(part) for part in parts]
    return [mean if math.isfinite(mean) else math.nan for mean in means]


def clock(minutes: float) -> str:
    """A time that is left, as 0:45 (minutes and seconds) or 1:02:03."""
    if not math.isfinite(minutes):
        return "?"
    seconds = max(0, round(minutes * 60))
    hours, rest = divmod(seconds, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
