"""Several data sets -> one endless, shuffled, weighted stream whose position is a few numbers.

Each data set is read in windows: a window of samples is shuffled and drawn from, then the next is read, so memory holds
one window per data set. A window and its order are a function of where it begins. A position is therefore where each
window begins and how many of it are drawn, and `restore` needs to read no more than those windows again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from sensorium.errors import SensoriumError, UsageError
from sensorium.training.data.formats.reader import Reader
from sensorium.training.data.formats.sample import Broken, Sample

WINDOW_BYTES = 64 << 20
"""Bytes of pictures that a window holds at most, where they come out of tables instead of files."""


class Mixture:
    """A stream of samples; iterate over it.

    Args:
        sets: (reader, weight); a data set of weight 2 is drawn from twice as often as one of weight 1.
        seed: of all shuffling.
        temperature: weights are raised to 1 / temperature: above 1 they become more alike.
        window: samples that are shuffled together. Shards are shuffled besides, every epoch anew.
        lane, lanes: this stream gives lane ``lane`` of ``lanes``: no sample of an epoch stands in two of them. Give
            each process a lane, or each row of a batch, which makes a batch independent of the number of processes.
        epochs: how often each data set is gone through; None for an endless stream.

    Raises:
        UsageError: no data set, or a weight or a temperature that is none.
    """

    def __init__(
        self,
        sets: Sequence[tuple[Reader, float]],
        *,
        seed: int = 0,
        temperature: float = 1.0,
        window: int = 256,
        lane: int = 0,
        lanes: int = 1,
        epochs: int | None = None,
    ) -> None:
        if not sets or any(not 0 < weight < float("inf") for _, weight in sets):
            raise UsageError("a mixture needs at least one data set, and weights above 0.")
        if temperature <= 0 or window < 1 or not 0 <= lane < lanes:
            raise UsageError("temperature must be above 0, window at least 1, and lane below lanes.")
        self._weights = np.array([weight for _, weight in sets]) ** (1 / temperature)
        self._seed, self._lane, self._draws = seed, lane, 0
        self._sources = [_Source(reader, (seed, i), window, lane, lanes, epochs) for i, (reader, _) in enumerate(sets)]
        facts = [
            seed,
            temperature,
            window,
            lane,
            lanes,
            epochs,
            [(s.facts, w) for s, (_, w) in zip(self._sources, sets)],
        ]
        self._digest = hashlib.sha256(repr(facts).encode()).hexdigest()[:16]

    def __iter__(self) -> Iterator[Sample]:
        return self

    def __next__(self) -> Sample:
        """The next sample.

        Raises:
            StopIteration: every data set has been gone through ``epochs`` times.
            SensoriumError: a record is broken, or a data set holds none.
        """
        while True:
            open_ = np.array([not source.over for source in self._sources])
            if not open_.any():
                raise StopIteration
            shares = np.cumsum(np.where(open_, self._weights, 0))
            point = np.random.default_rng([self._seed, self._lane, 0xD4A3, self._draws]).random() * shares[-1]
            sample = self._sources[int(np.searchsorted(shares, point, side="right"))].draw()
            if sample is not None:
                self._draws += 1
                return sample

    def state(self) -> dict[str, Any]:
        """The position: a few numbers per data set, ready for JSON."""
        return {"of": self._digest, "draws": self._draws, "sets": [source.state() for source in self._sources]}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on behind the sample after which ``state`` was taken.

        Raises:
            SensoriumError: the state is of other data sets, or of other arguments.
        """
        if state.get("of") != self._digest:
            raise SensoriumError(
                "The position is of other data: a file, a weight, the seed or the division has changed since; start "
                "the stage anew."
            )
        self._draws = int(state["draws"])
        for source, position in zip(self._sources, state["sets"]):
            source.restore(position)


Position = tuple[int, int, int]  # epoch, shard of the epoch's order, record


class _Source:
    """One data set's share of a lane."""

    def __init__(
        self, reader: Reader, seed: tuple[int, ...], window: int, lane: int, lanes: int, epochs: int | None
    ) -> None:
        self.reader, self.shards = reader, reader.shards()
        self._seed, self._window, self._lane, self._lanes, self._epochs = seed, window, lane, lanes, epochs
        # Whole shards where there are enough of them to share out evenly, else every lanes-th record of every shard.
        self._whole = len(self.shards) % lanes == 0 or len(self.shards) >= 4 * lanes
        self._begin: Position = (0, 0, 0)
        self._next: Position = (0, 0, 0)
        self._block: list[Sample] = []
        self._at = 0

    @property
    def facts(self) -> list[Any]:
        """What a position depends on: names and sizes of the files."""
        return [self.reader.kind, [(s.path.name, s.part, s.parts, s.path.stat().st_size) for s in self.shards]]

    @property
    def over(self) -> bool:
        """Every epoch is drawn."""
        return self._epochs is not None and self._next[0] >= self._epochs and self._at >= len(self._block)

    def draw(self) -> Sample | None:
        """The next sample, or None when there is no further epoch."""
        if self._at >= len(self._block):
            self._fill()
            if not self._block:
                return None
        self._at += 1
        return self._block[self._at - 1]

    def state(self) -> list[int]:
        """[epoch, shard, record, drawn of the window that begins there]."""
        return [*self._begin, self._at]

    def restore(self, state: Sequence[int]) -> None:
        """Read the window again."""
        epoch, shard, record, at = (int(n) for n in state)
        self._next, self._block, self._at = (epoch, shard, record), [], 0
        if at:
            self._fill()
            self._at = at
        self._begin = (epoch, shard, record)

    def _fill(self) -> None:
        """Read the window that begins at ``_next``; empty when there is no further epoch."""
        block: list[Sample] = []
        self._begin, empty = self._next, 0
        while not block and not (self._epochs is not None and self._next[0] >= self._epochs):
            held = 0
            epoch = self._next[0]
            for position, sample in self._epoch(self._next):
                if isinstance(sample, Broken):
                    raise sample.error()
                block.append(sample)
                held += sum(len(medium.data or b"") for medium in sample.media)
                self._next = position
                if len(block) >= self._window or held >= WINDOW_BYTES:
                    break
            else:
                self._next = (epoch + 1, 0, 0)
                empty += not block
            if empty > self._lanes:
                raise SensoriumError(f"The data set {self.reader.name} holds no sample; give one that does.")
        order = np.random.default_rng([*self._seed, self._lane, 0xB10C, *self._begin]).permutation(len(block))
        self._block, self._at = [block[int(i)] for i in order], 0

    def _epoch(self, start: Position) -> Iterator[tuple[Position, Sample | Broken]]:
        """The rest of an epoch from a position on, each sample with the position behind it."""
        epoch, first, record = start
        order = np.random.default_rng([*self._seed, 0x5A4D, epoch]).permutation(len(self.shards))
        step = 1 if self._whole else self._lanes
        mine = order[self._lane :: self._lanes] if self._whole else order
        for k in range(first, len(mine)):
            # Which records of a shard are this lane's turns with the shard and the epoch, so that none is always short.
            offset = 0 if self._whole else (self._lane + k + epoch) % step
            number = record + (offset - record) % step
            for sample in self.reader.read(self.shards[int(mine[k])], number, step):
                yield (epoch, k, number + 1), sample
                number += step
            record = 0
