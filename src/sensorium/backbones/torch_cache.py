"""Keys and values of past positions on the device of a torch model, as the engine and as transformers want them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sensorium.backbones.kv_cache import round_up


class TorchCache:
    """Keys and values of `batch` sequences on the model's device; the interface of `kv_cache.KVCache`.

    Attributes:
        buffers: [batch, kv_heads, capacity, width] of each layer's keys and values, as the model first gives them.
        layers: the same as transformers wants it.
    """

    def __init__(self, layers: int, batch: int, capacity: int) -> None:
        self.capacity = round_up(capacity)
        self.lengths = np.zeros(batch, np.int32)
        self.buffers: list[Tensor | None] = [None] * (2 * layers)
        self.layers = _layers(self, layers)
        self.total = 0
        self._start: int | None = 0
        self._positions: Tensor | None = None

    @property
    def batch(self) -> int:
        """Number of sequences."""
        return len(self.lengths)

    @property
    def nbytes_per_position(self) -> int:
        """Bytes that one position of one sequence takes; beyond any cache where layers differ in shape."""
        found = [buffer for buffer in self.buffers if buffer is not None]
        if len({buffer.shape[1:] for buffer in found}) > 1 or len(found) < len(self.buffers):
            return 1 << 60
        return sum(buffer.shape[1] * buffer.shape[3] * buffer.element_size() for buffer in found)

    def place(self, positions: Tensor) -> None:
        """Where the next run writes: positions [B, S]."""
        alike = int(self.lengths.max()) == int(self.lengths.min())
        self._start = int(self.lengths[0]) if alike else None
        self._positions, self.total = positions, int(self.lengths.max()) + positions.shape[1]

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write what a layer computed, and give all that it may attend to."""
        return self._put(2 * layer, keys), self._put(2 * layer + 1, values)

    def _put(self, i: int, new: Tensor) -> Tensor:
        buffer = self.buffers[i]
        if buffer is None:
            buffer = self.buffers[i] = new.new_zeros((self.batch, new.shape[1], self.capacity, new.shape[3]))
        if self._start is not None:
            buffer[:, :, self._start : self._start + new.shape[2]] = new
        else:
            rows = torch.arange(self.batch, device=new.device)[:, None]
            buffer[rows, :, self._positions] = new.transpose(1, 2)
        return buffer[:, :, : self.total]

    @torch.inference_mode()
    def grow(self, capacity: int) -> None:
        """Make room for `capacity` positions in each sequence."""
        if capacity <= self.capacity:
            return
        self.capacity = round_up(max(capacity, self.capacity + self.capacity // 2))
        for i, buffer in enumerate(self.buffers):
            if buffer is not None:
                wider = buffer.new_zeros((*buffer.shape[:2], self.capacity, buffer.shape[3]))
                wider[:, :, : buffer.shape[2]] = buffer
                self.buffers[i] = wider

    @torch.inference_mode()
    def read(self, row: int, length: int) -> Tensor:
        """A copy of the first `length` positions of a sequence: [2 * layers, kv_heads, length, width]."""
        return torch.stack([buffer[row, :, :length] for buffer in self.buffers if buffer is not None])

    @torch.inference_mode()
    def write(self, row: int, past: Tensor) -> None:
        """Replace a sequence by what `read` gave."""
        self._take(row, list(past), past.shape[2])

    @torch.inference_mode()
    def adopt(self, row: int, other: TorchCache, source: int = 0) -> None:
        """Replace a sequence by one of another cache of the same model."""
        length = int(other.lengths[source])
        self._take(row, [None if buffer is None else buffer[source, :, :length] for buffer in other.buffers], length)

    def _take(self, row: int, past: Sequence[Tensor | None], length: int) -> None:
        self.grow(length)
        for i, values in enumerate(past):
            if values is None:
                continue
            buffer = self.buffers[i]
            if buffer is None:
                shape = (self.batch, values.shape[0], self.capacity, values.shape[2])
                buffer = self.buffers[i] = values.new_zeros(shape)
            buffer[row, :, :length] = values
        self.lengths[row] = length

    @torch.inference_mode()
    def keep(self, rows: Sequence[int]) -> None:
        """Drop all sequences but these (ascending)."""
        chosen = list(rows)
        self.buffers = [None if buffer is None else buffer[chosen].contiguous() for buffer in self.buffers]
        self.lengths = self.lengths[chosen]


def _layers(cache: TorchCache, count: int) -> Any:
    """The cache as transformers wants it: an object per layer that takes new keys and values and gives all."""
    from transformers.cache_utils import Cache, CacheLayerMixin

    class Layer(CacheLayerMixin):
        is_sliding = False

        def __init__(self, index: int) -> None:
            super().__init__()
            self.index, self.is_initialized = index, True

        def lazy_initialization(self, *_: Any, **__: Any) -> None: ...

        def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
            return cache.update(self.index, key_states, value_states)

        def get_mask_sizes(self, query_length: Any, *_: Any) -> tuple[int, int]:
            return cache.total, 0

        def get_seq_length(self, *_: Any) -> int:
            return int(cache.lengths.max())

        def get_max_length(self) -> int:
            return -1

        def get_max_cache_shape(self) -> int:
            return -1

    return Cache(layers=[Layer(i) for i in range(count)])
