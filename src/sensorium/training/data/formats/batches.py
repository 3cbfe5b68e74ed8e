"""The packed batches that a stage trains on: a function of the seed and the step, for any number of processes.

Row ``i`` of every batch has a lane of the mixture to itself (`mixture.Mixture`). A process that makes some of the rows
reads the lanes of those rows and no other, so dividing rows among processes changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from sensorium.errors import SensoriumError, UsageError
from sensorium.training.data.formats.ahead import ahead
from sensorium.training.data.formats.encode import Encoded
from sensorium.training.data.formats.mixture import Mixture
from sensorium.training.data.formats.packing import PackedRows, best_fit, pack
from sensorium.training.data.formats.reader import Reader
from sensorium.training.data.formats.sample import MediaRef, Sample

Features = Callable[[Sequence[MediaRef]], np.ndarray]
"""Media -> frozen features float32 [media, cells, dim]; of no media, an array [0, cells, dim]."""


class GoneThrough(SensoriumError):
    """There is no further sample."""


class PackedBatches:
    """Batches for `task.PackedTask`.

    Args:
        sets: (reader, weight) of each data set.
        encode: a sample's layout; it must refuse samples of more than ``row_tokens`` (`encode.encode` with ``limit``).
        features: what the media of a batch become.
        rows: rows of a step, over all processes.
        row_tokens: length of a row.
        pool: samples among which rows are packed; more of them leave less padding.
        rank, world: this process; it makes ``rows / world`` rows.
        options: of `Mixture`: seed, temperature, window, epochs.

    Raises:
        UsageError: rows cannot be divided among the processes.
    """

    def __init__(
        self,
        sets: Sequence[tuple[Reader, float]],
        encode: Callable[[Sample], Encoded],
        features: Features,
        *,
        rows: int,
        row_tokens: int,
        pool: int = 64,
        rank: int = 0,
        world: int = 1,
        **options: Any,
    ) -> None:
        if rows % world:
            raise UsageError(f"{rows} rows cannot be divided among {world} processes; choose a multiple of them.")
        share = rows // world
        self._lanes = [
            _Lane(Mixture(sets, lane=lane, lanes=rows, **options), encode, row_tokens, pool, options.get("seed", 0))
            for lane in range(rank * share, (rank + 1) * share)
        ]
        self._first, self._rows_of_all = rank * share, rows
        self._features, self._length, self._step = features, row_tokens, 0
        self._states: dict[int, dict[str, Any]] = {}

    def batches(self, start: int, stop: int) -> Iterator[tuple[np.ndarray, PackedRows]]:
        """Features and rows of steps ``start`` to ``stop``, made ahead in a thread.

        Without a restored position, the steps before ``start`` are read and packed again, but no medium is opened.

        Raises:
            SensoriumError: a sample or a medium is broken, or the data sets are gone through.
        """
        if self._step > start:
            raise UsageError(f"the data is at step {self._step}; a stream cannot go back to step {start}.")
        while self._step < start:
            self._rows()

        def make() -> Iterator[tuple[int, dict[str, Any], np.ndarray, PackedRows]]:
            while self._step < stop:
                rows = pack(self._rows(), self._length)
                state = {"step": self._step, "lanes": [lane.state() for lane in self._lanes]}
                yield self._step, state, self._features(rows.media), rows

        for step, state, features, rows in ahead(make(), 4):
            self._states = {step: state}
            yield features, rows

    def state(self) -> dict[str, Any]:
        """The position of these rows behind the batch that was given last; small, ready for JSON."""
        return next(iter(self._states.values()), {})

    def restore(self, state: dict[str, Any]) -> None:
        """Go on behind the batch after which ``state`` was taken, of these rows or of the rows of all processes.

        Raises:
            SensoriumError: it is of other data, or of another number of rows.
        """
        if not state:
            return
        lanes = state.get("lanes", ())
        if len(lanes) == self._rows_of_all:
            lanes = lanes[self._first : self._first + len(self._lanes)]
        if len(lanes) != len(self._lanes):
            raise SensoriumError("The position is of another number of rows or processes; start the stage anew.")
        for lane, position in zip(self._lanes, lanes):
            lane.restore(position)
        self._step, self._states = int(state["step"]), {int(state["step"]): state}

    def count(self, enough: int = 2**31) -> int:
        """Steps that the ``epochs`` of the mixture make: until one of the rows has no further sample. That uses the
        stream up; no medium is opened."""
        steps = 0
        while steps < enough:
            try:
                self._rows()
            except GoneThrough:
                break
            steps += 1
        return steps

    def _rows(self) -> list[list[Encoded]]:
        self._step += 1
        return [lane.row() for lane in self._lanes]


class _Lane:
    """One row of every batch: pools of samples, each packed into rows that come in a shuffled order."""

    def __init__(
        self, mixture: Mixture, encode: Callable[[Sample], Encoded], length: int, pool: int, seed: int
    ) -> None:
        self._mixture, self._encode, self._length, self._pool, self._seed = mixture, encode, length, pool, seed
        self._begin, self._at, self._number = mixture.state(), 0, 0
        self._packed: list[list[Encoded]] = []

    def row(self) -> list[Encoded]:
        """The samples of the next row."""
        if self._at >= len(self._packed):
            self._fill()
        self._at += 1
        return self._packed[self._at - 1]

    def _fill(self) -> None:
        self._begin, self._at = self._mixture.state(), 0
        self._number += 1
        pool = [self._encode(sample) for _, sample in zip(range(self._pool), self._mixture)]
        if not pool:
            raise GoneThrough("The data sets are gone through before the last step; allow fewer steps or more epochs.")
        packed = best_fit([sample.length for sample in pool], self._length)
        order = np.random.default_rng([self._seed, 0x9AC7, self._number]).permutation(len(packed))
        self._packed = [[pool[i] for i in packed[int(row)]] for row in order]

    def state(self) -> dict[str, Any]:
        """Where the pool began, its number, and how many of its rows are given."""
        return {"pool": self._begin, "number": self._number, "at": self._at}

    def restore(self, state: dict[str, Any]) -> None:
        """Read the pool again."""
        self._mixture.restore(state["pool"])
        self._begin, self._packed, self._at, self._number = state["pool"], [], 0, int(state["number"])
        if state["at"]:
            self._number -= 1
            self._fill()
            self._at = int(state["at"])
