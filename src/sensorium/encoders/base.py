"""What an encoder declares and does: the seam between a frozen perception model and the projectors.

An encoder turns decoded media into features and says, before it runs, what shape they have. Projectors, token
counts and checkpoints are checked against that declaration when a composition is loaded.
"""

from __future__ import annotations

import collections.abc
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np


@dataclass(frozen=True)
class Grid:
    """Features on a regular grid over the picture, row-major: cell ``(y, x)`` is feature ``y * w + x``."""

    h: int
    w: int

    @property
    def cells(self) -> int:
        """Features per picture."""
        return self.h * self.w


@dataclass(frozen=True)
class Sequence:
    """Features along time; how many there are depends on the length of the medium (see ``FeatureSpec.rate_hz``)."""


@dataclass(frozen=True)
class Vector:
    """One feature for the whole medium: what a sentence encoder gives."""


@dataclass(frozen=True)
class FeatureSpec:
    """The shape and identity of an encoder's features.

    Attributes:
        dim: Width of one feature vector.
        layout: ``Grid(h, w)`` for pictures, ``Sequence()`` for sound, ``Vector()`` for a whole text.
        rate_hz: Features per second of a ``Sequence``; ``None`` for a ``Grid``.
        fingerprint: Hex sha256 over all that changes the numbers: weights, preprocessing, resolution, layer.
            Projectors trained against one fingerprint are refused for another.
    """

    dim: int
    layout: Grid | Sequence | Vector
    rate_hz: float | None
    fingerprint: str


@runtime_checkable
class Encoder(Protocol):
    """A frozen model from decoded pictures to features."""

    @property
    def spec(self) -> FeatureSpec:
        """What ``encode`` returns."""
        ...

    def encode(self, images: collections.abc.Sequence[np.ndarray]) -> np.ndarray:
        """Encode uint8 pictures ``[H, W, 3]`` (any sizes) into float32 features ``[B, cells, dim]``.

        Batch-invariant: a picture's features do not depend on the pictures encoded with it.
        """
        ...


@runtime_checkable
class AudioEncoder(Protocol):
    """A frozen model from sound to features along time."""

    @property
    def spec(self) -> FeatureSpec:
        """What ``encode`` returns; its layout is ``Sequence()``, its rate ``rate_hz`` features a second."""
        ...

    def encode(self, sounds: collections.abc.Sequence[np.ndarray]) -> list[np.ndarray]:
        """Encode mono sounds at 16 kHz, float32 ``[n]`` of any lengths, into float32 ``[frames, dim]`` each.

        ``frames`` is ``ceil(n / 16000 * rate_hz)``: nothing is padded to a common length or cut. Batch-invariant: a
        sound's features do not depend on the sounds encoded with it.
        """
        ...


@runtime_checkable
class TextEncoder(Protocol):
    """A frozen model from texts to one vector each."""

    @property
    def spec(self) -> FeatureSpec:
        """What ``encode_text`` returns; its layout is ``Vector()``."""
        ...

    def encode_text(self, texts: collections.abc.Sequence[str]) -> np.ndarray:
        """Texts into float32 features ``[N, dim]``, not normalised."""
        ...
