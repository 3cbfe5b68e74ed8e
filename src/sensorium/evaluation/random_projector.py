"""The floor of every listening score: the same composition, whose speech projector knows nothing."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np

from sensorium.loading import Lazy
from sensorium.perception import Perception

if TYPE_CHECKING:
    from sensorium.model import Model


class RandomProjector:
    """A random linear map of the same frames to as many positions, as loud as the trained projector's.

    Args:
        trained: the projector whose place it takes.
        seed: of its weights.
    """

    def __init__(self, trained: Any, seed: int = 0) -> None:
        self.trained, self.seed = trained, seed
        self.path = f"{trained.path}?random={seed}"
        self.cells, self.tokens = trained.cells, trained.tokens
        self.feature_dim, self.dim = trained.feature_dim, trained.dim

    def count(self, frames: int | None = None) -> int:
        """As the trained one's."""
        return int(self.trained.count(frames))

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """[B, frames, feature dim] -> [B, tokens, dim], float32."""
        known = self.trained(features)
        batch, tokens, dim = known.shape
        stack = -(-features.shape[1] // tokens)
        padded = np.pad(features, ((0, 0), (0, tokens * stack - features.shape[1]), (0, 0)))
        weights = np.random.default_rng(self.seed).standard_normal((stack * features.shape[2], dim), np.float32)
        mapped = padded.reshape(batch, tokens, -1) @ weights
        return np.asarray(mapped * np.sqrt(np.mean(known**2) / np.mean(mapped**2)), np.float32)


def with_random_projector(model: Model, kind: str = "speech") -> Model:
    """The model, all of whose parts are shared, with a random projector for one kind of media."""
    twin, parts = copy.copy(model), copy.copy(model.parts)
    random: Any = Lazy(lambda: RandomProjector(model.parts.projectors[kind].get()))
    parts.projectors = {**parts.projectors, kind: random}
    twin.parts, twin._perception = parts, Perception(parts)
    return twin
