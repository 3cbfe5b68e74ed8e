"""Many samples in one row: none sees another, each counts its positions from 0.

`rows.py` shares one picture among questions; here every sample is a document of its own, with any number of pictures or
none. A packed sample's loss is that of the sample alone (tested), because attention stops at its borders.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sensorium.errors import SensoriumError
from sensorium.prompt import IGNORE
from sensorium.training.data.formats.encode import Encoded
from sensorium.training.data.formats.sample import MediaRef


@dataclass(frozen=True, eq=False)
class PackedRows:
    """A batch, all arrays [B, length], as `rows.Rows` but for its media.

    Attributes:
        ids: token ids, 0 at media and padding.
        positions: rotary positions, from 0 in every document.
        branch: the document of each position, from 1 in every row; -1 for padding.
        labels: the id to be predicted *at* this position from the one before it (not yet shifted).
        weights: weight in the loss of each position's label.
        places: (row, start, end) of every medium, in the order of ``media``.
        media: what stands there.
        samples: ids of the samples of each row.
    """

    ids: np.ndarray
    positions: np.ndarray
    branch: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    places: tuple[tuple[int, int, int], ...]
    media: tuple[MediaRef, ...]
    samples: tuple[tuple[str, ...], ...]

    def mask(self) -> np.ndarray:
        """Boolean [B, length, length]: may position i attend to j? Causal, within its document."""
        length = self.branch.shape[1]
        own = self.branch[:, :, None] == self.branch[:, None, :]
        return own & np.tril(np.ones((length, length), bool))  # padding sees padding: no row of the softmax is empty

    def targets(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(row, position that predicts, id, weight) of every target; a document never begins with one."""
        rows, places = np.nonzero(self.labels != IGNORE)
        return rows, places - 1, self.labels[rows, places], self.weights[rows, places]


def best_fit(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Divide samples among as few rows of ``budget`` tokens as best fit decreasing finds (at most 11/9 of the fewest).

    Args:
        lengths: tokens of each sample, none above the budget.

    Returns:
        Indices into ``lengths``, row by row.
    """
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (room left, row), sorted
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        at = bisect_left(room, (lengths[index], -1))
        left, row = room.pop(at) if at < len(room) else (budget, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(index)
        insort(room, (left - lengths[index], row))
    return rows


def pack(rows: Sequence[Sequence[Encoded]], length: int) -> PackedRows:
    """Lay each row's samples one behind the other. Raises SensoriumError when they do not fit into ``length``."""
    shape = (len(rows), length)
    ids, positions = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    branch, labels = np.full(shape, -1, np.int64), np.full(shape, IGNORE, np.int64)
    places: list[tuple[int, int, int]] = []
    media: list[MediaRef] = []
    for row, samples in enumerate(rows):
        at = 0
        for number, sample in enumerate(samples, start=1):
            if at + sample.length > length:
                raise SensoriumError(f"The sample {sample.id!r} does not fit a row of {length} tokens; make it longer.")
            stretch = slice(at, at + sample.length)
            ids[row, stretch], labels[row, stretch], branch[row, stretch] = sample.ids, sample.labels, number
            positions[row, stretch] = np.arange(sample.length)
            places += [(row, at + start, at + end) for start, end in sample.places]
            media += sample.media
            at += sample.length
    names = tuple(tuple(sample.id for sample in samples) for samples in rows)
    return PackedRows(ids, positions, branch, labels, np.ones(shape, np.float32), tuple(places), tuple(media), names)
