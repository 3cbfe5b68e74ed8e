"""Linear patches: a picture cut into a grid of patches, each through one matrix. A control, and the encoder of the
tests.

It perceives nothing but colour and rough shape, so a projector over it shows how much of a result the pretrained
encoder accounts for. Its matrix is a `.npy` file, float32 [patch * patch * 3, dim].
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sensorium.encoders.base import FeatureSpec, Grid
from sensorium.errors import SensoriumError, UsageError


class LinearPatches:
    """Patch-wise linear features.

    Args:
        weights: the `.npy` file of the matrix.
        grid: patches along each side, 1 to 64.
        threads: ignored; numpy's matrix product is used.

    Raises:
        UsageError: the grid is no such number.
        SensoriumError: the file is no such matrix.
    """

    def __init__(self, weights: Path | str, grid: int = 4, threads: int | None = None) -> None:
        if type(grid) is not int or not 1 <= grid <= 64:
            raise UsageError(f"Grid {grid!r} does not fit; use a whole number from 1 to 64.")
        try:
            matrix = np.load(weights, allow_pickle=False)
        except (OSError, ValueError, EOFError):
            raise SensoriumError(f"{weights} is not a .npy file; give the matrix of the patches.") from None
        side = round((matrix.shape[0] / 3) ** 0.5) if matrix.ndim == 2 else 0
        if matrix.dtype != np.float32 or matrix.ndim != 2 or side * side * 3 != matrix.shape[0]:
            shape = f"{matrix.dtype} {list(matrix.shape)}"
            raise SensoriumError(f"{weights} holds {shape}; give float32 [patch * patch * 3, dim].")
        self._matrix, self._grid, self._patch = matrix, grid, side
        digest = hashlib.sha256(f"linear-patches-v1;{grid};{list(matrix.shape)};".encode() + matrix.tobytes())
        self.spec = FeatureSpec(matrix.shape[1], Grid(grid, grid), None, digest.hexdigest())

    def encode(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Features of uint8 pictures [H, W, 3]: float32 [B, grid * grid, dim]."""
        from PIL import Image

        grid, patch = self._grid, self._patch
        features = np.empty((len(images), grid * grid, self.spec.dim), np.float32)
        for row, image in zip(features, images):
            picture = Image.fromarray(np.ascontiguousarray(image))
            small = np.asarray(picture.resize((grid * patch, grid * patch), Image.Resampling.BOX), np.float32)
            cells = (small / 255 - 0.5).reshape(grid, patch, grid, patch, 3).transpose(0, 2, 1, 3, 4)
            row[:] = cells.reshape(grid * grid, -1) @ self._matrix
        return features
