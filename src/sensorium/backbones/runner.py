"""What an engine runs on: a runner makes caches of keys and values, and bindings that extend them.

`graph_runner.GraphRunner` runs an ONNX graph on the CPU, `torch_runner.TorchRunner` a transformers model. Everything
else (prompts, prefixes, batches, sampling, cancellation) is `engine.Engine`'s and exists once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


class Cache(Protocol):
    """Keys and values of `batch` sequences; see `kv_cache.KVCache`. What `read` gives only `write` understands."""

    lengths: NDArray[np.int32]
    capacity: int

    @property
    def nbytes_per_position(self) -> int: ...

    def read(self, row: int, length: int) -> Any: ...

    def write(self, row: int, past: Any) -> None: ...

    def adopt(self, row: int, other: Any, source: int = 0) -> None: ...

    def keep(self, rows: Sequence[int]) -> None: ...


class Binding(Protocol):
    """Fixed shapes bound to a cache: `step` runs the model on `embeds` [B, S, dim] and fills `outputs`."""

    embeds: Floats
    outputs: dict[str, Floats]

    def step(self, padding: int = 0) -> None: ...


class Runner(Protocol):
    """A loaded model, safe to share by threads."""

    def cache(self, batch: int, capacity: int) -> Any:
        """An empty `Cache`."""

    def binding(self, cache: Any, steps: int, chosen: int, outputs: tuple[str, ...] = ("logits",)) -> Binding:
        """Runs of `steps` positions, with outputs ("logits", "hidden") at the last `chosen` of them."""
