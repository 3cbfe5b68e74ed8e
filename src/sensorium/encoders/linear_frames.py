"""Linear frames: sound cut into frames of 20 ms, each through one matrix. A control, and the encoder of the tests.

It hears loudness and pitch within a frame and knows no words, so a projector over it shows how much of a result the
pretrained encoder accounts for. Its matrix is a `.npy` file, float32 [320, dim].
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sensorium.encoders import base
from sensorium.errors import SensoriumError

FRAME = 320
"""Samples of a feature, at 16 kHz."""


class LinearFrames:
    """Frame-wise linear features at 50 Hz.

    Args:
        weights: the `.npy` file of the matrix.
        threads: ignored; numpy's matrix product is used.

    Raises:
        SensoriumError: the file is no such matrix.
    """

    def __init__(self, weights: Path | str, threads: int | None = None) -> None:
        try:
            matrix = np.load(weights, allow_pickle=False)
        except (OSError, ValueError, EOFError):
            raise SensoriumError(f"{weights} is not a .npy file; give the matrix of the frames.") from None
        if matrix.dtype != np.float32 or matrix.ndim != 2 or len(matrix) != FRAME:
            shape = f"{matrix.dtype} {list(matrix.shape)}"
            raise SensoriumError(f"{weights} holds {shape}; give float32 [{FRAME}, dim].")
        self._matrix = matrix
        digest = hashlib.sha256(f"linear-frames-v1;{list(matrix.shape)};".encode() + matrix.tobytes())
        self.spec = base.FeatureSpec(matrix.shape[1], base.Sequence(), 16_000 / FRAME, digest.hexdigest())

    def encode(self, sounds: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Features of mono sounds at 16 kHz, float32 [n] each, of any lengths: float32 [ceil(n / 320), dim] each."""
        return [np.pad(x, (0, -len(x) % FRAME)).reshape(-1, FRAME) @ self._matrix for x in sounds]
