"""What sets the supported architectures apart: rotary embedding, activation, norms, attention windows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sensorium.backbones.source import WeightSource
from sensorium.backbones.spec import LINEAR_FACTORS, BackboneSpec
from sensorium.errors import SensoriumError

# Gemma 3 attends locally in all but every sixth layer, with its own rotary base there (arXiv 2503.19786, section 2).
_GEMMA_PERIOD = 6
_GEMMA_LOCAL_THETA = 1e4
# The 27B model scales attention by its embedding width per head instead of the head's own (llama.cpp, llama-model.cpp).
_GEMMA_27B_LAYERS = 62


@dataclass(frozen=True)
class Traits:
    """`interleaved`: rotary pairs are neighbours (llama's GGUF row order) instead of the two halves of a head.
    `post_norms`: each sublayer's output is normed too. `embedding_scale`: token embeddings are multiplied by it."""

    spec: BackboneSpec
    interleaved: bool
    activation: str
    post_norms: bool
    embedding_scale: float
    attention_scale: float
    rope_factor: float
    rope_divisors: NDArray[np.float32] | None

    @staticmethod
    def of(gguf: WeightSource, spec: BackboneSpec) -> Traits:
        """The traits of an open model. Raises `SensoriumError` for a rotary scaling that is not supported."""
        gemma = spec.arch == "gemma3"
        factor, divisors = _stretch(gguf, spec)
        width = spec.dim / spec.heads if gemma and spec.layers == _GEMMA_27B_LAYERS else spec.head_dim
        return Traits(
            spec=spec,
            interleaved=spec.arch == "llama",
            activation="gelu" if gemma else "silu",
            post_norms=gemma,
            embedding_scale=spec.dim**0.5 if gemma else 1.0,
            attention_scale=width**-0.5,
            rope_factor=factor,
            rope_divisors=divisors,
        )

    def local(self, layer: int) -> bool:
        """Whether a layer attends to a window only."""
        return self.spec.arch == "gemma3" and bool(self.spec.sliding_window) and (layer + 1) % _GEMMA_PERIOD != 0

    def window(self, layer: int) -> int:
        """How many positions a layer attends to, itself included; -1 for all."""
        return self.spec.sliding_window if self.local(layer) else -1

    def theta(self, layer: int) -> float:
        """The rotary base of a layer."""
        return _GEMMA_LOCAL_THETA if self.local(layer) else self.spec.rope_theta

    def frequencies(self, theta: float) -> NDArray[np.float64]:
        """How far each rotary pair turns from one position to the next, in radians: [head_dim / 2]."""
        half = np.arange(0, self.spec.head_dim, 2, dtype=np.float64) / self.spec.head_dim
        turns = theta**-half
        if self.rope_divisors is not None:
            turns = turns / self.rope_divisors
        stretched: NDArray[np.float64] = turns / (self.rope_factor if theta == self.spec.rope_theta else 1.0)
        return stretched

    def rotary(self, theta: float, context: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Cosine and sine tables, float32 [context, head_dim / 2]."""
        angles = np.arange(context, dtype=np.float64)[:, None] * self.frequencies(theta)
        return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def _stretch(gguf: WeightSource, spec: BackboneSpec) -> tuple[float, NDArray[np.float32] | None]:
    """The factor and the divisors [head_dim / 2] by which positions are stretched; refuses schemes other than these."""
    if spec.rope_scaling == "none":
        return 1.0, None
    if spec.rope_scaling == "linear":
        found = (gguf.metadata.get(f"{spec.arch}.{key}") for key in LINEAR_FACTORS)
        factor = next((value for value in found if value is not None), 1.0)
        if isinstance(factor, (int, float)) and not isinstance(factor, bool) and 0 < factor < math.inf:
            return float(factor), None
        raise SensoriumError(
            f"The model file {gguf.path} stretches positions by the factor {factor!r}, which is no positive number; "
            "use another conversion of the model."
        )
    if spec.rope_scaling == "llama3":
        divisors = gguf.load("rope_freqs.weight").reshape(-1)
        if divisors.size == spec.head_dim // 2 and (divisors > 0).all() and np.isfinite(divisors).all():
            return 1.0, divisors
        raise SensoriumError(
            f"The model file {gguf.path} should divide {spec.head_dim // 2} rotary frequencies by positive numbers and "
            f"holds {divisors.size} values in rope_freqs.weight that do not fit; use another conversion of the model."
        )
    raise SensoriumError(
        f"The model file {gguf.path} stretches positions by {spec.rope_scaling!r}, which is not supported; use a model "
        "with none, linear or llama3."
    )
