"""The two sides of a contrastive step: features of a frozen tower, computed once, or a tower that learns.

A side is asked twice in a step: `take` gathers what belongs to the places of a batch (no gradient, numpy), `features`
makes pooled features of that (with a gradient where there is a tower).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from sensorium.encoders.minilm import padded
from sensorium.training.clip_heads import pooled
from sensorium.training.data.formats.sample import MediaRef

Inputs = tuple[Tensor, ...]
TEXTS = 32  # texts of like length that a tower sees at a time


class Source(Protocol):
    """Pictures, or texts."""

    @property
    def tower(self) -> nn.Module | None:
        """What learns, if anything does."""

    def take(self, places: np.ndarray) -> Any:
        """What a step needs of the pictures or texts at these places [n]."""

    def features(self, taken: Any) -> Tensor:
        """Of what was taken: float32 [n, 2 * dim] of pictures, [n, dim] of texts."""


class Kept:
    """A frozen tower: its features [N, width], computed once."""

    tower = None

    def __init__(self, rows: np.ndarray) -> None:
        self.rows = rows

    def take(self, places: np.ndarray) -> Tensor:
        """[n, width]."""
        return torch.from_numpy(np.asarray(self.rows[places], np.float32))

    def features(self, taken: Tensor) -> Tensor:
        """As taken."""
        return taken


class Learning:
    """A tower that learns. What stands twice in a batch goes through it once.

    Args:
        tower: of `training.towers`.
        inputs: places, each once -> batches for the tower, and the order in which those hold the places.
    """

    def __init__(self, tower: nn.Module, inputs: Callable[[np.ndarray], tuple[list[Inputs], np.ndarray]]) -> None:
        self.tower, self._inputs = tower, inputs

    def take(self, places: np.ndarray) -> tuple[list[Inputs], Tensor]:
        """Batches for the tower, and for each place its row among their results."""
        unique, back = np.unique(places, return_inverse=True)
        batches, order = self._inputs(unique)
        return batches, torch.from_numpy(np.argsort(order)[back])

    def features(self, taken: tuple[list[Inputs], Tensor]) -> Tensor:
        """The tower's; pooled where they are cells."""
        batches, back = taken
        found = torch.cat([self.tower(*batch) for batch in batches])[back]
        return pooled(found) if found.ndim == 3 else found


class Tokens:
    """Texts as a tower takes them: (ids, mask) of `TEXTS` at a time, of like length, so that little is padding."""

    def __init__(self, ids: Sequence[Sequence[int]]) -> None:
        self._ids = ids

    def __call__(self, places: np.ndarray) -> tuple[list[Inputs], np.ndarray]:
        """As `Learning` asks."""
        order = np.argsort([len(self._ids[at]) for at in places], kind="stable")
        batches: list[Inputs] = []
        for start in range(0, len(order), TEXTS):
            ids, mask = padded([self._ids[places[at]] for at in order[start : start + TEXTS]])
            batches.append((torch.from_numpy(ids), torch.from_numpy(mask)))
        return batches, order


class Pixels:
    """Pictures as a tower takes them, made anew in every step: scenes are composed, files are decoded.

    Args:
        scene: the pixels of a scene of the recipe, uint8 [H, W, 3].
        scenes: how many there are; they stand before the files.
        files: pictures that can be decoded.
        prepare: resizes one to what the tower takes, uint8 [side, side, 3].
    """

    def __init__(
        self,
        scene: Callable[[int], np.ndarray] | None,
        scenes: int,
        files: Sequence[Path],
        prepare: Callable[[np.ndarray], np.ndarray],
    ) -> None:
        self._scene, self._scenes, self._files, self._prepare = scene, scenes, files, prepare

    def __call__(self, places: np.ndarray) -> tuple[list[Inputs], np.ndarray]:
        """As `Learning` asks, in one batch."""
        pixels = np.stack([self._prepare(picture) for picture in self._pictures(places)])
        return [(torch.from_numpy(pixels),)], np.arange(len(places))

    def _pictures(self, places: np.ndarray) -> Iterator[np.ndarray]:
        for at in map(int, places):
            if self._scene is not None and at < self._scenes:
                yield self._scene(at)
            else:
                path = self._files[at - self._scenes]
                yield MediaRef(str(path), path).load().pixels
