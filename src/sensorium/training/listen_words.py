"""How words sound, as keys that frames point to: made of pieces of their pronunciation and spelling.

A key is a sum over pieces of one to four phonemes and of three letters (fastText's idea, arXiv 1607.04606, with sounds
added), so words share what they have in common, and a rare one learns from those that sound like it. A correction of
its own learns what is particular about a word. Tokens that training never says have none (`listen_run`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

PHONEMES, LETTERS = (1, 2, 3, 4), (3,)
TWICE = 2  # a piece of one word alone says no more than the word's own correction
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
        of = [self._of[i - 1] for i in among]
        sizes = np.array([len(each) for each in of])
        starts = torch.from_numpy(np.concatenate(([0], np.cumsum(sizes)[:-1])))
        sums = F.embedding_bag(torch.from_numpy(np.concatenate(of)), self.pieces, starts, mode="sum")
        shared = sums / torch.from_numpy(np.sqrt(np.maximum(sizes, 1)).astype(np.float32))[:, None]
        return torch.cat((self.own[:1], shared + self.own[torch.tensor(among)]))

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
