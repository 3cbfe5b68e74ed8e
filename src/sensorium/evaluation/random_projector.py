"""The floor of every score of speech: the same composition, one of whose projectors knows nothing."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np

from sensorium.generators.base import BLANK
from sensorium.loading import Lazy
from sensorium.perception import Perception
from sensorium.projectors.units import UnitProjector

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


class RandomUnits(UnitProjector):
    """A random linear map of the same frames to units, as many a token as the trained projector gives on average.

    Args:
        trained: the output projector whose place it takes.
        seed: of its weights.
    """

    SAID = 0.3
    """Share of slots that hold a unit: some five of sixteen."""

    def __init__(self, trained: UnitProjector, seed: int = 0) -> None:
        # what a `UnitProjector` says of its file, without one
        self.dim, self.letters, self.upsample, self.units = (
            trained.dim, trained.letters, trained.upsample, trained.units
        )  # fmt: skip
        random = np.random.default_rng(seed)
        self._weights = random.standard_normal((2 * self.dim, self.upsample * (self.units + 1)), np.float32)

    def run(self, states: Any, embeds: Any, before: Any, letters: Any, past: Any, start: int) -> tuple[Any, Any]:
        """Logits of n frames, and no cache."""
        frames = np.concatenate((states, embeds / (embeds.std() + 1e-6)), axis=1)
        logits = (frames @ self._weights).reshape(len(frames), self.upsample, self.units + 1)
        best = logits[..., 1:].max(axis=-1)
        logits[..., BLANK] = np.where(best > np.quantile(best, 1 - self.SAID), -np.inf, np.inf)
        return logits, None


def with_random_projector(model: Model, kind: str = "speech") -> Model:
    """The model, all of whose parts are shared, with a random projector for one kind of media."""
    twin, parts = copy.copy(model), copy.copy(model.parts)
    random: Any = Lazy(lambda: RandomProjector(model.parts.projectors[kind].get()))
    parts.projectors = {**parts.projectors, kind: random}
    twin.parts, twin._perception = parts, Perception(parts)
    return twin


def with_random_units(model: Model) -> Model:
    """The model, all of whose parts are shared, with a random output projector."""
    twin, parts = copy.copy(model), copy.copy(model.parts)
    trained = model.parts.output.get()
    assert trained is not None
    random: Any = Lazy(lambda: RandomUnits(trained))
    parts.output = random
    twin.parts = parts
    return twin
