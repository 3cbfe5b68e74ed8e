"""Trained low-rank additions to a backbone's linear layers, as they are stored beside a composition.

Keys are "layers.{i}.{q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj}.lora_{A|B}"; A is [rank, in], B is
[out, rank] with the scale folded in, rows in Hugging Face order. LoRA: arXiv 2106.09685.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sensorium.backbones.spec import BackboneSpec
from sensorium.errors import SensoriumError


class LoRA:
    """A LoRA file opened for a backbone; every pair is checked against its shapes.

    Raises `SensoriumError` when the file is missing, malformed, or made for another backbone.
    """

    def __init__(self, path: Path, spec: BackboneSpec) -> None:
        from safetensors import SafetensorError
        from safetensors.numpy import load

        self.path, self.spec = path, spec
        try:
            data = path.read_bytes()
            tensors = load(data)
        except (OSError, SafetensorError) as error:
            raise SensoriumError(f"The LoRA {path} cannot be read ({error}); train or fetch it again.") from None
        self.sha256 = hashlib.sha256(data).hexdigest()
        self._pairs: dict[tuple[int, str], tuple[np.ndarray, np.ndarray]] = {}
        queries, keys = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
        self.sizes = sizes = {
            "q_proj": (spec.dim, queries),
            "k_proj": (spec.dim, keys),
            "v_proj": (spec.dim, keys),
            "o_proj": (queries, spec.dim),
            "gate_proj": (spec.dim, spec.ffn),
            "up_proj": (spec.dim, spec.ffn),
            "down_proj": (spec.ffn, spec.dim),
        }
        for name in tensors:
            head, _, side = name.rpartition(".")
            words = head.split(".")
            known = len(words) == 3 and words[0] == "layers" and words[1].isdecimal() and words[2] in sizes
            if not known or side not in ("lora_A", "lora_B") or int(words[1]) >= spec.layers:
                raise SensoriumError(
                    f"The LoRA {path} holds {name!r}, which is no layer of this backbone of {spec.layers} layers; "
                    "train it for this backbone."
                )
            inputs, outputs = sizes[words[2]]
            a, b = tensors.get(f"{head}.lora_A"), tensors.get(f"{head}.lora_B")
            if a is None or b is None or a.shape != (len(a), inputs) or b.shape != (outputs, len(a)):
                raise SensoriumError(
                    f"The LoRA {path} has no fitting pair of A [r, {inputs}] and B [{outputs}, r] for {head}; "
                    "train it for this backbone."
                )
            if not (np.isfinite(a).all() and np.isfinite(b).all()):
                raise SensoriumError(f"The LoRA {path} holds values in {head} that are not finite; train it again.")
            self._pairs[int(words[1]), words[2]] = a.astype(np.float32), b.astype(np.float32)

    def touches(self, layer: int, part: str) -> bool:
        """Whether a projection of a layer has an addition."""
        return (layer, part) in self._pairs

    def pairs(self) -> Iterator[tuple[int, str, NDArray[np.float32], NDArray[np.float32]]]:
        """(layer, projection, A [r, in], B [out, r]) of each addition, rows in Hugging Face order."""
        for (layer, part), (a, b) in self._pairs.items():
            yield layer, part, a, b

    def delta(self, layer: int, part: str, interleaved: bool) -> NDArray[np.float32]:
        """B @ A, float32 [out, in]; with `interleaved`, rows of queries and keys in the order of llama's GGUF files."""
        a, b = self._pair(layer, part, interleaved)
        return b @ a

    def low_rank(
        self, layer: int, parts: Sequence[str], interleaved: bool
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        """One pair A [r, in], B [out, r] for stacked projections with the same inputs, or None where none is touched.

        Columns of B have the same size throughout (A takes what they differ by), so that a block of them can share a
        scale.
        """
        touched = [part for part in parts if self.touches(layer, part)]
        if not touched:
            return None
        pairs = {part: self._pair(layer, part, interleaved) for part in touched}
        a = np.concatenate([pairs[part][0] for part in touched])
        b = np.zeros((sum(self.sizes[part][1] for part in parts), len(a)), np.float32)
        row = column = 0
        for part in parts:
            if part in pairs:
                block = pairs[part][1]
                b[row : row + len(block), column : column + block.shape[1]] = block
                column += block.shape[1]
            row += self.sizes[part][1]
        size = np.abs(b).max(axis=0)
        size[size == 0] = 1
        return a * size[:, None], b / size

    def _pair(self, layer: int, part: str, interleaved: bool) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        a, b = self._pairs[layer, part]
        if interleaved and part in ("q_proj", "k_proj"):
            heads = self.spec.heads if part == "q_proj" else self.spec.kv_heads
            halves = b.reshape(heads, 2, self.spec.head_dim // 2, -1)
            b = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(b.shape)
        return a, b
