"""How a text is written, as codes beside its tokens: what an output projector reads to pronounce it.

A row of an embedding table says what a token means and hardly how it is written; a network that has only the row must
learn the sound of every token by heart. With the letters it learns how letters sound, also in words it never met.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

KNOWN = " abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789'.,!?;:-\"()%$&/+=*#\n"
NONE = 0
"""The code in front of a text's first letter."""
CLASSES = len(KNOWN) + 1
"""Codes of letters: one for each known character from 1, the last for all others."""
CODES = 1 + 2 * CLASSES
"""All codes: none, and each letter once as part of an earlier token and once as part of the newest."""

END = "\n"
"""How the end of a turn is written."""

_CODE = {character: code for code, character in enumerate(KNOWN, start=1)}


class Spelling:
    """The last letters of a text that grows by tokens.

    Args:
        letters: how many are told; the newest is the last.
    """

    def __init__(self, letters: int) -> None:
        self._codes = np.full(letters, NONE, np.int64)

    def push(self, piece: str) -> NDArray[np.int64]:
        """What is told once a token has been added: int64 [letters]."""
        new = [_CODE.get(character, CLASSES) for character in piece]
        codes = np.concatenate((self._codes, np.array(new, np.int64)))[len(new) :]
        self._codes = codes
        told = codes.copy()
        if new:
            told[-len(new) :] += CLASSES
        return told


def spelt(pieces: Iterable[str], letters: int) -> NDArray[np.int64]:
    """`Spelling` of a whole text: int64 [tokens, letters]."""
    text = Spelling(letters)
    return np.array([text.push(piece) for piece in pieces], np.int64).reshape(-1, letters)
