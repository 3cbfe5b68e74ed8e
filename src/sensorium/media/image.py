"""Encoded images from anywhere -> uint8 RGB arrays."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from sensorium.errors import SensoriumError
from sensorium.media.limits import DEFAULT, Limits

if TYPE_CHECKING:
    import PIL.Image

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")


@dataclass(frozen=True, eq=False)
class Image:
    """One decoded picture: ``pixels`` uint8 [H, W, 3], RGB, upright; ``sha256`` of the encoded bytes."""

    pixels: np.ndarray
    sha256: str
    frames: int = 1
    source: str = "image"


def load_image(
    src: str | Path | bytes | BinaryIO | PIL.Image.Image | np.ndarray | Image, limits: Limits = DEFAULT
) -> Image:
    """Decode an image. (First version; the limits and the odd formats follow.)"""
    from PIL import Image as Pillow
    from PIL import ImageOps

    if isinstance(src, Image):
        return src
    if isinstance(src, np.ndarray):
        if src.dtype != np.uint8 or src.ndim != 3 or src.shape[2] != 3:
            raise SensoriumError(f"An array of {src.dtype} {src.shape} is no image; give uint8 [height, width, 3].")
        return Image(np.ascontiguousarray(src), hashlib.sha256(src.tobytes()).hexdigest(), 1, "array")
    source, digest, picture = "image", "", None
    if isinstance(src, Pillow.Image):
        picture = src
    else:
        source = str(src) if isinstance(src, (str, Path)) else "bytes"
        data = src if isinstance(src, bytes) else Path(src).read_bytes() if isinstance(src, (str, Path)) else src.read()
        digest = hashlib.sha256(data).hexdigest()
        try:
            picture = Pillow.open(io.BytesIO(data), formats=FORMATS)
            picture.load()
        except Exception as error:
            raise SensoriumError(f"{source} is no readable image ({error}).") from error
    picture = ImageOps.exif_transpose(picture)
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        picture = Pillow.alpha_composite(Pillow.new("RGBA", rgba.size, "white"), rgba)
    pixels = np.asarray(picture.convert("RGB"))
    return Image(pixels, digest or hashlib.sha256(pixels.tobytes()).hexdigest(), 1, source)
