"""Runs a trained projector at inference: the ONNX twin that training writes beside the weights. No torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sensorium.errors import SensoriumError
from sensorium.sessions import trained_session


class Projector:
    """Features -> LLM embeddings.

    Args:
        path: ONNX file with one input `features` [B, cells, feature dim] and one output `embeds` [B, tokens, backbone
            dim], both float32, batch size free and the other sizes fixed; along time, [1, any number of frames, feature
            dim] and [1, tokens, backbone dim].
        threads: ONNX Runtime threads, `None` for one per physical core.

    Attributes:
        cells, feature_dim: What it takes; no `cells` along time.
        tokens, dim: What it gives; no `tokens` along time, see `count`.

    Raises:
        SensoriumError: the file is missing, no ONNX file, or has other inputs and outputs.
    """

    def __init__(self, path: Path, threads: int | None = None) -> None:
        self.path = path
        self._session = trained_session(path, "not a projector", threads)
        self.cells, self.feature_dim = self._sizes("input", "features", self._session.get_inputs())
        self.tokens, self.dim = self._sizes("output", "embeds", self._session.get_outputs())
        if (self.cells is None) != (self.tokens is None):
            raise SensoriumError(f"{path}: of cells and tokens, one is fixed and the other is not; export it again.")

    def count(self, frames: int | None = None) -> int:
        """The tokens that it gives; along time, for so many frames (found by trying)."""
        if self.tokens is not None or frames is None:
            return self.tokens or 0
        return self(np.zeros((1, frames, self.feature_dim), np.float32)).shape[1]

    def _sizes(self, side: str, name: str, values: list) -> tuple[int | None, int]:
        found = {value.name: value for value in values}
        value = found.get(name)
        if value is None or len(found) != 1 or value.type != "tensor(float)" or len(value.shape) != 3:
            given = ", ".join(f"{v.name} {v.type}{v.shape}" for v in values)
            raise SensoriumError(
                f"{self.path}: a projector has one float {side} {name!r} of rank 3, this file has {given}."
            )
        _, count, dim = value.shape
        if not isinstance(dim, int):
            raise SensoriumError(f"{self.path}: the width of {name!r} must be fixed, this file has {value.shape}.")
        return count if isinstance(count, int) else None, dim

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Project [B, cells, feature dim] into [B, tokens, dim], float32.

        Pictures run one by one, so that a picture's embeddings do not depend on its neighbours.
        """
        features = np.ascontiguousarray(features, np.float32)
        rows = [self._session.run(["embeds"], {"features": features[i : i + 1]})[0] for i in range(len(features))]
        embeds = np.concatenate(rows)
        if not np.isfinite(embeds).all():
            raise SensoriumError(
                f"{self.path} gives values that are not finite; its weights are damaged, train or fetch it again."
            )
        return embeds
