"""The embedding matrix of a prepared model, mapped from its file: a lookup reads only the rows that it needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sensorium.backbones.quantize import BLOCK


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
