"""EfficientNet-Lite as an image encoder: uint8 pictures to a grid of features, on ONNX Runtime alone.

The features are the output of the network's last convolution (after ReLU6) at every grid cell, so the classifier that
the weights bring along reads them directly: ``logits = W @ features.mean(cells) + b``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from sensorium.encoders import efficientnet_lite_graph as graph
from sensorium.encoders.base import FeatureSpec, Grid
from sensorium.encoders.pth import file_sha256
from sensorium.encoders.session import FINGERPRINT, open_session
from sensorium.encoders.tensors import read_tensors
from sensorium.errors import SensoriumError, UsageError

MAX_ASPECT = 2.0
"""Pictures are squashed to a square; a longer one is first padded with grey to this aspect ratio."""

# Bump when anything between pixels and features changes: cached features and trained projectors are then refused.
_PREPROCESSING = "bicubic-antialias-v1;squash<=2,pad=127;rgb-127/128"
_LAYER = "conv_head+bn+relu6"
_GRAPH_VERSION = 1  # bump when the graph is written differently without changing the features
_CHUNK_PIXELS = 4 * 256 * 256  # per run: bounds the activations' memory; larger runs are not faster on two cores


class EfficientNetLite:
    """A frozen EfficientNet-Lite.

    Args:
        variant: 0, 1 or 2.
        weights: The ``.pth`` file of that variant (read without torch, see ``pth.py``), or what training made of it,
            as safetensors.
        resolution: Side in pixels of the square that pictures are resized to: a multiple of 32 from 128 to 512.
        threads: Threads of one ``encode`` call; ``None`` leaves it to ONNX Runtime (one per core).

    Raises:
        UsageError: The variant or the resolution is not one of those.
        SensoriumError: The file is not this variant's weights.
    """

    def __init__(self, variant: int, weights: Path | str, resolution: int = 256, threads: int | None = None) -> None:
        if variant not in graph.VARIANTS:
            raise UsageError(f"EfficientNet-Lite variant {variant!r} is unknown; use 0, 1 or 2.")
        if type(resolution) is not int or resolution % 32 or not 128 <= resolution <= 512:
            raise UsageError(f"Resolution {resolution!r} does not fit; use a multiple of 32 from 128 to 512.")
        if threads is not None and (type(threads) is not int or threads < 1):
            raise UsageError(f"{threads!r} threads cannot run; use 1 or more, or leave it out.")
        self.variant = variant
        self.resolution = resolution
        self._directions: tuple[np.ndarray, np.ndarray] | None = None
        self._weights = Path(weights)
        name = f"efficientnet-lite{variant}-{resolution}-v{_GRAPH_VERSION}-{file_sha256(self._weights)[:32]}"
        try:
            self._session = open_session(name, self._build, threads)
        except SensoriumError as error:
            raise SensoriumError(f"{weights}: {error}") from None
        side = resolution // 32
        fingerprint = self._session.get_modelmeta().custom_metadata_map[FINGERPRINT]
        self.spec = FeatureSpec(graph.HEAD_DIM, Grid(side, side), None, fingerprint)

    def _build(self) -> bytes:
        state = read_tensors(self._weights)
        graph.classifier(state)  # refused now rather than when the classifier is asked for
        return graph.build(self.variant, state, self.resolution, {FINGERPRINT: self.fingerprint_of(state)})

    def fingerprint_of(self, weights: Mapping[str, np.ndarray]) -> str:
        """The fingerprint that this encoder has with such weights. Raises SensoriumError for those of no such kind."""
        return _fingerprint(self.variant, weights, self.resolution)

    def encode(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Features of pictures of any sizes.

        Args:
            images: uint8 RGB arrays ``[H, W, 3]``.

        Returns:
            float32 ``[B, cells, 1280]`` in 0..6, cells row-major. ``B`` may be 0.

        Raises:
            UsageError: An array has another shape or type.
        """
        cells = self.resolution // 32
        features = np.empty((len(images), cells * cells, graph.HEAD_DIM), np.float32)
        chunk = max(1, _CHUNK_PIXELS // self.resolution**2)
        for start in range(0, len(images), chunk):
            pixels = np.stack([self.prepare(image) for image in images[start : start + chunk]])
            features[start : start + len(pixels)] = self._session.run(["features"], {"pixels": pixels})[0]
        return features

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """A picture as the network takes it; see the function."""
        return prepare(image, self.resolution)

    def class_directions(self) -> tuple[np.ndarray, np.ndarray]:
        """The ImageNet classifier over the features: ``W [1000, 1280]`` and ``b [1000]``, float32.

        Read from the weights file at the first call: most users never need it.
        """
        if self._directions is None:
            self._directions = graph.classifier(read_tensors(self._weights))
        return self._directions

    def logits(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """ImageNet logits of pictures, float32 ``[B, 1000]``; class names in ``imagenet.class_names``."""
        weight, bias = self.class_directions()
        return self.encode(images).mean(axis=1) @ weight.T + bias


def prepare(image: np.ndarray, resolution: int) -> np.ndarray:
    """Resize a uint8 picture ``[H, W, 3]`` to ``[resolution, resolution, 3]``, all of it in view.

    Antialiased bicubic, squashed to the square; beyond 2:1 the short side is first padded with mid-grey (the network's
    zero), so that nothing is distorted more than 2:1.
    """
    from PIL import Image

    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        what = f"{image.dtype} {list(image.shape)}" if isinstance(image, np.ndarray) else type(image).__name__
        raise UsageError(f"The image encoder was given {what}; give uint8 arrays [height, width, 3].")
    height, width = image.shape[:2]
    if not height or not width:
        raise UsageError(f"The image encoder was given an empty picture of {width}x{height} pixels; give a real one.")
    # The picture's box within the square: full, or a centred band when it is longer than 2:1.
    box_width = max(1, round(resolution * min(1.0, MAX_ASPECT * width / height)))
    box_height = max(1, round(resolution * min(1.0, MAX_ASPECT * height / width)))
    picture = Image.fromarray(np.ascontiguousarray(image))
    # reducing_gap averages large pictures down to three times the target first: no visible difference, much faster.
    resized = np.asarray(picture.resize((box_width, box_height), Image.Resampling.BICUBIC, reducing_gap=3.0))
    if resized.shape[:2] == (resolution, resolution):
        return resized
    square = np.full((resolution, resolution, 3), int(graph.MEAN), np.uint8)
    top, left = (resolution - box_height) // 2, (resolution - box_width) // 2
    square[top : top + box_height, left : left + box_width] = resized
    return square


def _fingerprint(variant: int, state: Mapping[str, np.ndarray], resolution: int) -> str:
    """sha256 over the weights' values and all that stands between pixels and features."""
    digest = hashlib.sha256(f"efficientnet-lite{variant};{resolution};{_LAYER};{_PREPROCESSING}".encode())
    for name in graph.weight_names(variant):
        array = graph.tensor(state, name)
        digest.update(f";{name}{list(array.shape)}".encode())
        digest.update(array.data)
    return digest.hexdigest()
