"""The embedding matrix of a prepared model, mapped from its file: a lookup reads only the rows that it needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sensorium.backbones.quantize import BLOCK

Floats = NDArray[np.float32]
Lookup = Callable[[Sequence[int] | NDArray[np.integer]], Floats]


def opened(path: Path, facts: Mapping[str, Any], vocab: int, dim: int) -> Lookup:
    """The embeddings of a prepared model, those of new tokens included.

    Args:
        path: the file of its large arrays.
        facts: the entry "embeddings" of `model.json`; of the vocabulary's tokens, the last "new_rows" have their rows
            apart, as float32 at "new".
        vocab, dim: tokens in all, width.
    """
    new = int(facts.get("new_rows", 0))
    own = Embeddings(path, facts, vocab - new, dim)
    if not new:
        return own
    rows = np.memmap(path, np.float32, mode="r", offset=facts["new"], shape=(new, dim))
    return beside(own, rows * np.float32(facts["scale"]), vocab - new)


def beside(own: Lookup, rows: Floats, first: int) -> Lookup:
    """A lookup whose ids from `first` on are the rows [n, dim], all others those of `own`."""

    def look_up(ids: Sequence[int] | NDArray[np.integer]) -> Floats:
        wanted = np.asarray(ids, np.int64).reshape(-1)
        new = wanted >= first
        values = own(np.where(new, 0, wanted))
        values[new] = rows[wanted[new] - first]
        return values

    return look_up


class Embeddings:
    """Token id -> embedding.

    `facts` is the entry "embeddings" of `model.json`: "blocks" are 8-bit codes with scales and zero points (shared with
    the output head where the two are tied), "float16" and "float32" plain values.
    """

    def __init__(self, path: Path, facts: Mapping[str, Any], vocab: int, dim: int) -> None:
        self._scale = np.float32(facts["scale"])
        self._codes: np.ndarray | None = None

        def at(part: str, dtype: Any, *shape: int) -> np.ndarray:
            return np.memmap(path, dtype, mode="r", offset=facts[part], shape=shape)

        if facts["kind"] == "blocks":
            blocks = -(-dim // BLOCK)
            self._codes = at("codes", np.uint8, vocab, blocks, BLOCK)
            self._scales = at("scales", np.float32, vocab, blocks)
            self._zeros = at("zeros", np.uint8, vocab, blocks)
        else:
            self._values = at("values", facts["kind"], vocab, dim)
        self._dim = dim

    def __call__(self, ids: Sequence[int] | NDArray[np.integer]) -> NDArray[np.float32]:
        """Embeddings float32 [n, dim] of ids, each in 0..vocab-1."""
        rows = np.asarray(ids, np.int64).reshape(-1)
        if self._codes is None:
            values = np.asarray(self._values[rows], np.float32)
        else:
            blocks = self._codes[rows].astype(np.float32)
            blocks -= self._zeros[rows][..., None]
            blocks *= self._scales[rows][..., None]
            values = blocks.reshape(len(rows), -1)[:, : self._dim]
        return values * self._scale if self._scale != 1 else values
