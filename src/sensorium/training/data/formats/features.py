"""Media -> frozen features by running the encoder, for data sets whose features are not in a store."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from sensorium.encoders.base import Encoder, Grid
from sensorium.errors import SensoriumError
from sensorium.media.limits import DEFAULT, Limits
from sensorium.training.data.formats.sample import MediaRef


class EncoderFeatures:
    """Runs the encoder on each picture, and remembers some by content.

    Args:
        encoder: the frozen encoder; it must give a grid.
        limits: of the media door.
        keep: pictures whose features are kept, half-precision, least recently used leave first.
    """

    def __init__(self, encoder: Encoder, limits: Limits = DEFAULT, keep: int = 512) -> None:
        layout = encoder.spec.layout
        if not isinstance(layout, Grid):
            raise SensoriumError("The encoder gives no grid of features; use one for pictures.")
        self._encoder, self._limits, self._keep = encoder, limits, keep
        self._shape = (layout.h * layout.w, encoder.spec.dim)
        self._kept: OrderedDict[str, np.ndarray] = OrderedDict()

    def __call__(self, media: Sequence[MediaRef]) -> np.ndarray:
        """Float32 [media, cells, dim]. Raises SensoriumError for a medium that cannot be opened."""
        found = np.zeros((len(media), *self._shape), np.float32)
        for i, medium in enumerate(media):  # one by one: memory holds one decoded picture
            found[i] = self._one(medium)
        return found

    def _one(self, medium: MediaRef) -> np.ndarray:
        image = medium.load(self._limits)
        if image.sha256 not in self._kept:
            self._kept[image.sha256] = self._encoder.encode([image.pixels])[0].astype(np.float16)
        self._kept.move_to_end(image.sha256)
        while len(self._kept) > self._keep:
            self._kept.popitem(last=False)
        features: np.ndarray = self._kept.get(image.sha256, np.zeros(self._shape, np.float16))
        return features
