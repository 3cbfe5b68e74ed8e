"""Clusters of speech features -> sound: HuBERT or mHuBERT units by k-means, said by a unit vocoder (as LLaMA-Omni's).

The vocoder is any ONNX graph with `units` int64 [1, n] (0 to clusters - 1) in and `sound` float32 [1, samples] out,
such as an exported CodeHiFiGAN with its duration predictor. Units have no words or pauses, so chunks are cut by number
(LLaMA-Omni's Omega) and cross-faded.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sensorium.composition import file_sha256
from sensorium.errors import SensoriumError
from sensorium.generators.base import Samples, UnitSpec
from sensorium.sessions import trained_session


class UnitVocoder:
    """See `base.SpeechGenerator`; there is no text front-end.

    Args:
        path: the ONNX file.
        clusters: how many units there are.
        rate: samples a second that the graph gives.
        chunk: units of a chunk (40 units are 0.8 s at most, since repeats were merged).

    Raises:
        SensoriumError: the file is no such graph.
    """

    def __init__(self, path: Path, clusters: int = 1000, rate: int = 16000, chunk: int = 40) -> None:
        self._session = trained_session(path, "no vocoder", 1)
        sides = [[value.name for value in side] for side in (self._session.get_inputs(), self._session.get_outputs())]
        if sides != [["units"], ["sound"]]:
            raise SensoriumError(f"{path}: a unit vocoder takes `units` and gives `sound`, this file has {sides}.")
        self.rate, self.chunk = rate, chunk
        self.units = UnitSpec(tuple(str(number) for number in range(clusters)), file_sha256(path))

    def generate(self, units: Sequence[int], index: int = 0) -> Samples:
        """Sound of a chunk; nothing for no units."""
        if not len(units):
            return np.zeros(0, np.float32)
        numbers = np.asarray(units, np.int64)[None] - 1
        sound = self._session.run(["sound"], {"units": numbers})[0]
        return np.clip(np.asarray(sound, np.float32).reshape(-1), -1, 1)

    def cut(self, units: Sequence[int], first: bool) -> int:
        """Chunks of a fixed number of units."""
        return self.chunk if len(units) >= self.chunk else 0
