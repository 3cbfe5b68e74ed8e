"""Keys and values of past positions, in buffers that the graph reads and extends in place."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

# Growing copies everything, so it happens in steps; the graph's scratch memory also depends on the capacity.
_STEP = 256


class KVCache:
    """Buffers for `batch` sequences of a model.

    Attributes:
        buffers: one float32 [batch, kv_heads, capacity, head_dim] per layer for keys and one for values, in the order
            key 0, value 0, key 1, ...
        lengths: int32 [batch], how many positions of each sequence are filled.
    """

    def __init__(self, batch: int, layers: int, kv_heads: int, head_dim: int, capacity: int) -> None:
        self.capacity = round_up(capacity)
        shape = (batch, kv_heads, self.capacity, head_dim)
        # Zeroed memory, which the system hands out lazily: what no sequence uses costs nothing.
        self.buffers: list[Floats] = [np.zeros(shape, np.float32) for _ in range(2 * layers)]
        self.lengths = np.zeros(batch, np.int32)

    @property
    def batch(self) -> int:
        """Number of sequences."""
        return len(self.lengths)

    @property
    def nbytes_per_position(self) -> int:
        """Bytes that one position of one sequence takes."""
        return sum(buffer[0, :, 0].nbytes for buffer in self.buffers)

    def grow(self, capacity: int) -> bool:
        """Make room for `capacity` positions in each sequence; True when the buffers have been replaced."""
        if capacity <= self.capacity:
            return False
        filled, old = int(self.lengths.max(initial=0)), self.buffers
        self.capacity = round_up(max(capacity, self.capacity + self.capacity // 2))
        for i, buffer in enumerate(old):
            wider = np.zeros((*buffer.shape[:2], self.capacity, buffer.shape[3]), np.float32)
            wider[:, :, :filled] = buffer[:, :, :filled]
            self.buffers[i] = wider
        return True

    def read(self, row: int, length: int) -> Floats:
        """A copy of the first `length` positions of a sequence: float32 [2 * layers, kv_heads, length, head_dim]."""
        return np.stack([buffer[row, :, :length] for buffer in self.buffers])

    def write(self, row: int, past: Floats) -> None:
        """Replace a sequence by what `read` gave."""
        length = past.shape[2]
        self.grow(length)
        for buffer, values in zip(self.buffers, past):
            buffer[row, :, :length] = values
        self.lengths[row] = length

    def adopt(self, row: int, other: KVCache, source: int = 0) -> None:
        """Replace a sequence by one of another cache of the same model."""
        length = int(other.lengths[source])
        self.grow(length)
        for mine, theirs in zip(self.buffers, other.buffers):
            mine[row, :, :length] = theirs[source, :, :length]
        self.lengths[row] = length

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all sequences but these (ascending)."""
        self.buffers = [np.ascontiguousarray(buffer[list(rows)]) for buffer in self.buffers]
        self.lengths = self.lengths[list(rows)]


def round_up(capacity: int) -> int:
    """The next multiple of the growth step, at least one step."""
    return max(1, -(-capacity // _STEP)) * _STEP
