"""Batches of heard utterances: features cut to a common number of LLM positions, and the tokens that were said.

Utterances of a batch take equally many positions, so that they share a layout. Which frames they are cut to is drawn
anew each time: where stacks begin is an accident of the recording, and the projector must not depend on it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sensorium.training.listen_store import Shard, Utterance


@dataclass(frozen=True)
class Batch:
    """Utterances of one number of positions.

    Attributes:
        features: [B, frames, dim], zeros behind the end of each.
        lengths: [B] frames that count; all take `positions` positions.
        positions: of the LLM.
        numbers: which utterances of `Heard` these are.
    """

    features: Tensor
    lengths: Tensor
    positions: int
    numbers: tuple[int, ...]


class Heard:
    """The utterances of some shards.

    Args:
        shards: which.
        encode: the tokenizer's.
        stack: frames of a position.
        most: positions of an utterance that is used; longer ones are left out, as are those said so fast that their
            tokens (with a blank between equal neighbours) do not fit their positions.
        without: of texts, whether an utterance is left out.

    Attributes:
        utterances, tokens: what was said, as text and as token ids.
        left_out: how many utterances are not used.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        encode: Callable[[str], list[int]],
        stack: int = 8,
        most: int = 40,
        without: Callable[[str], bool] = lambda text: False,
    ) -> None:
        self.stack = stack
        self.utterances: list[Utterance] = []
        self.tokens: list[list[int]] = []
        self._shards: list[Shard] = []
        self.left_out = 0
        for shard in shards:
            for utterance in shard.utterances:
                ids = encode(utterance.text)
                positions = -(-(utterance.end - utterance.start) // stack)
                if not ids or needed(ids) > positions - 1 or positions > most or without(utterance.text):
                    self.left_out += 1
                    continue
                self.utterances.append(utterance)
                self.tokens.append(ids)
                self._shards.append(shard)
        self.frames = np.array([each.end - each.start for each in self.utterances])

    def __len__(self) -> int:
        return len(self.utterances)

    def heard(self, number: int) -> NDArray[np.float16]:
        """Features of an utterance, [frames, dim]."""
        return self._shards[number].heard(self.utterances[number])

    def whole(self, numbers: Sequence[int]) -> Batch:
        """Uncut utterances, which must take equally many positions."""
        return self._batch(numbers, [(0, int(self.frames[i])) for i in numbers])

    def cut(self, numbers: Sequence[int], rng: np.random.Generator) -> Batch:
        """Utterances of like length, each cut at either end, by less than `stack` frames if they are equally long."""
        positions = -(-int(self.frames[list(numbers)].min()) // self.stack)
        spans = []
        for i in numbers:
            frames = int(self.frames[i])
            least, most = max(0, frames - positions * self.stack), frames - (positions - 1) * self.stack - 1
            gone = int(rng.integers(least, most + 1))
            first = int(rng.integers(gone + 1))
            spans.append((first, frames - gone + first))
        return self._batch(numbers, spans)

    def _batch(self, numbers: Sequence[int], spans: Sequence[tuple[int, int]]) -> Batch:
        lengths = [end - start for start, end in spans]
        positions = {-(-length // self.stack) for length in lengths}
        if len(positions) != 1:
            raise ValueError(f"utterances of one batch take {sorted(positions)} positions")
        features = np.zeros((len(numbers), max(lengths), self.heard(numbers[0]).shape[1]), np.float32)
        for row, (i, (start, end)) in enumerate(zip(numbers, spans)):
            features[row, : end - start] = self.heard(i)[start:end]
        return Batch(torch.from_numpy(features), torch.tensor(lengths), positions.pop(), tuple(numbers))


class Drawn:
    """Which utterances a step takes: near one another in length, a function of the seed and the step alone.

    Args:
        frames: length of each utterance.
        numbers: those to draw from.
        size: LLM positions of a batch, about.
    """

    def __init__(self, frames: NDArray[np.int64], numbers: Sequence[int], size: int, stack: int = 8) -> None:
        self.order = np.array(sorted(numbers, key=lambda i: (frames[i], i)))
        self.frames, self.size, self.stack = frames, size, stack

    def step(self, rng: np.random.Generator) -> list[int]:
        """One that is drawn and some that are longer by less than a stack, so that `Heard.cut` takes one position of
        each at most."""
        length = int(self.frames[self.order[int(rng.integers(len(self.order)))]])
        rows = max(1, self.size * self.stack // length)
        lengths = self.frames[self.order]
        near = self.order[np.searchsorted(lengths, length) : np.searchsorted(lengths, length + self.stack)]
        return [int(i) for i in rng.permutation(near)[:rows]]


def needed(ids: Sequence[int]) -> int:
    """Positions that CTC needs for tokens: one each, and a blank between equal neighbours."""
    return len(ids) + sum(a == b for a, b in pairwise(ids))
