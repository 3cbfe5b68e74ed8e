"""How words sound, as keys that frames point to: made of pieces of their pronunciation and spelling.

A key is a sum over pieces of one to four phonemes and of three letters (fastText's idea, arXiv 1607.04606, with sounds
added), so words share what they have in common, and a rare one learns from those that sound like it. A correction of
its own learns what is particular about a word. Tokens that training never says have none (`listen_run`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

PHONEMES, LETTERS = (1, 2, 3, 4), (3,)
TWICE = 2  # a piece of one word alone says no more than the word's own correction
RIDGE = 0.03  # of 0.01 to 1, with which left-out words of the shipped projector are told about best (cosine 0.976)
_WORD = re.compile("[A-Za-z']+")
_SILENT = frozenset("ˈˌː .,?!;:—…\"()“”'")


class Pronunciation:
    """A text -> its phonemes: what is heard of a speech generator's units, without stress, spaces and punctuation.

    Args:
        front: the generator, with its text front-end (`generators.base.TextFront`).
    """

    def __init__(self, front: Any) -> None:
        self._front = front
        self._known: dict[str, list[int]] = {}
        self.symbols = [symbol for symbol in front.units.symbols if symbol not in _SILENT]
        self._numbers = {symbol: number for number, symbol in enumerate(self.symbols, start=1)}

    def __call__(self, text: str) -> list[str]:
        """Of any text."""
        return [self.symbols[number - 1] for number in self.numbers(text)]

    def numbers(self, text: str) -> list[int]:
        """As numbers of `symbols`, from 1."""
        if text not in self._known:
            units = (self._front.units.symbols[unit - 1] for unit in self._front.units_of(text))
            self._known[text] = [self._numbers[unit] for unit in units if unit in self._numbers]
        return self._known[text]


def pieces(token: str, said: Callable[[str], Sequence[str]]) -> list[str]:
    """The pieces of a token, by name; none of what is no word.

    Args:
        token: its text, with the space in front.
        said: a word -> its phonemes.
    """
    word = token.strip()
    if not _WORD.fullmatch(word):
        return []
    begins = "^" if token[0] == " " or word[0].isupper() else "+"
    sounds, letters = [begins, *said(word), "$"], [begins, *word.lower(), "$"]
    found = [f"sound {''.join(sounds[i : i + n])}" for n in PHONEMES for i in range(len(sounds) - n + 1)]
    found += [f"letters {''.join(letters[i : i + n])}" for n in LETTERS for i in range(len(letters) - n + 1)]
    return found + ["capital"] * word[0].isupper() + ["no space"] * (token[0] != " ")


class WordKeys(nn.Module):
    """Keys of the classes of `objectives.align.TokenRows`.

    Args:
        named: the pieces of each class but the blank.
        dim: of a key.
    """

    def __init__(self, named: Sequence[Sequence[str]], dim: int) -> None:
        super().__init__()
        often = Counter(piece for each in named for piece in each)
        numbers = {piece: i for i, piece in enumerate(p for p, count in often.items() if count >= TWICE)}
        self.pieces = nn.Parameter(torch.randn(max(1, len(numbers)), dim))
        self.own = nn.Parameter(torch.zeros(1 + len(named), dim))
        self._of = [np.array([numbers[piece] for piece in each if piece in numbers], np.int64) for each in named]

    def forward(self, among: Sequence[int]) -> Tensor:
        """Keys [1 + among, dim] of the blank and of these classes."""
        return torch.cat((self.own[:1], self._shared(among, self.pieces) + self.own[torch.tensor(among)]))

    def _shared(self, among: Sequence[int], pieces: Tensor) -> Tensor:
        """What classes have from their pieces, [among, dim]."""
        numbers, starts, sizes = self._bags(among)
        return F.embedding_bag(numbers, pieces, starts, mode="sum") / sizes.clamp(min=1).sqrt()[:, None]

    def _bags(self, among: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Of classes, the numbers of all their pieces, where each class begins, and how many it has."""
        of = [self._of[i - 1] for i in among]
        sizes = torch.tensor([len(each) for each in of])
        return torch.from_numpy(np.concatenate(of)), sizes.cumsum(0) - sizes, sizes

    def fit(self, known: Mapping[int, Tensor], blank: Tensor, steps: int = 40) -> None:
        """Become such that these classes have these keys, and the others those of their pieces.

        The pieces are the ridge regression of ``known`` on them (conjugate gradients), in which a piece weighs as much
        as when it is drawn at random; the classes' own corrections are what it leaves over.
        """
        among = list(known)
        wanted = torch.stack([known[i] for i in among])
        numbers, _, sizes = self._bags(among)
        rows = torch.repeat_interleave(torch.arange(len(among)), sizes)
        shares = sizes.clamp(min=1).sqrt().reciprocal()[:, None]

        def spread(keys: Tensor) -> Tensor:
            return torch.zeros_like(self.pieces).index_add_(0, numbers, (keys * shares)[rows])

        with torch.no_grad():
            found = torch.zeros_like(self.pieces)
            left = spread(wanted)
            ahead, size = left.clone(), left.pow(2).sum(0)
            for _ in range(steps):
                pulled = spread(self._shared(among, ahead)) + RIDGE * ahead
                length = size / (ahead * pulled).sum(0).clamp(min=1e-12)
                found += length * ahead
                left -= length * pulled
                before, size = size, left.pow(2).sum(0)
                ahead = left + size / before.clamp(min=1e-12) * ahead
            self.pieces.copy_(found)
            self.own.zero_()
            self.own[torch.tensor(among)] = wanted - self._shared(among, found)
            self.own[0] = blank

    def all(self) -> Tensor:
        """Keys of all classes, without a gradient."""
        with torch.no_grad():
            return self(range(1, len(self.own)))


class Sounds(nn.Module):
    """What half of the projector's layers make of a sound -> logits of phonemes, some slots to a position.

    Beside the words, training has the projector tell the sounds of the language (hierarchical multitask CTC, arXiv
    1807.06234): there are forty of them, each heard a thousand times as often as a word. It is not part of what is
    exported.

    Args:
        width: of these layers.
        units: phonemes.
        slots: of each position; 4 are 40 ms each.
    """

    def __init__(self, width: int, units: int, slots: int = 4) -> None:
        super().__init__()
        self.slots, self.units = slots, units
        self.head = nn.Linear(width, slots * (units + 1))

    def forward(self, heard: Tensor) -> Tensor:
        """[B, n, width] -> logits [B, slots * n, 1 + units], a blank first."""
        return self.head(heard).reshape(len(heard), -1, self.units + 1)
