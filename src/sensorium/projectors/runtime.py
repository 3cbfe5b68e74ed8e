"""Runs a trained projector at inference: the ONNX twin that training writes beside the weights. No torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sensorium.errors import SensoriumError


class Projector:
    """Features -> LLM embeddings.

    Args:
        path: ONNX file with one input `features` [B, cells, feature dim] and one output `embeds` [B, tokens, backbone
            dim], both float32, batch size free and the other sizes fixed.
        threads: ONNX Runtime threads, `None` for one per physical core.

    Attributes:
        cells, feature_dim: What it takes.
        tokens, dim: What it gives.

    Raises:
        SensoriumError: the file is missing, no ONNX file, or has other inputs and outputs.
    """

    def __init__(self, path: Path, threads: int | None = None) -> None:
        import onnxruntime as ort

        self.path = path
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.log_severity_level = 3
        # Spinning workers would steal the cores from the LLM between two pictures.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if not path.is_file():
            raise SensoriumError(f"{path} does not exist; a composition's projector needs its ONNX file.")
        try:
            self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime raises its own family of exceptions, none of them exported
            reason = str(error).splitlines()[0][:120]
            raise SensoriumError(
                f"{path} is not a projector that ONNX Runtime can load ({reason}); export it again."
            ) from None
        self.cells, self.feature_dim = self._sizes("input", "features", self._session.get_inputs())
        self.tokens, self.dim = self._sizes("output", "embeds", self._session.get_outputs())

    def _sizes(self, side: str, name: str, values: list) -> tuple[int, int]:
        found = {value.name: value for value in values}
        value = found.get(name)
        if value is None or len(found) != 1 or value.type != "tensor(float)" or len(value.shape) != 3:
            given = ", ".join(f"{v.name} {v.type}{v.shape}" for v in values)
            raise SensoriumError(
                f"{self.path}: a projector has one float {side} {name!r} of rank 3, this file has {given}."
            )
        _, count, dim = value.shape
        if not isinstance(count, int) or not isinstance(dim, int):
            raise SensoriumError(f"{self.path}: the sizes of {name!r} must be fixed, this file has {value.shape}.")
        return count, dim

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
