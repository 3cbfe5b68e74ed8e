"""Pillow images of every mode -> uint8 RGB arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import PIL.Image

_ALPHA = {"LA", "PA", "RGBA", "La", "RGBa"}


def to_rgb(picture: PIL.Image.Image, white: int | None = None, inverted: bool = False) -> np.ndarray:
    """The pixels as uint8 [height, width, 3], transparency laid on white.

    Samples of more than 8 bits are scaled, not cut: 16-bit ones by ``white`` (their value for white, else 65535);
    32-bit integers and floats, which have no range of their own, by the smallest of 1 (floats only), 255 and 65535
    that holds them, else from their least to their greatest value. NaN and infinities become black and white.
    """
    mode = picture.mode
    if mode.startswith("I") or mode == "F":
        grey = _scaled(picture, white)
        grey = 255 - grey if inverted else grey
        return np.repeat(grey[:, :, None], 3, axis=2)
    if mode == "LAB":
        picture = _lab_to_rgb(picture)
    if picture.mode in _ALPHA or "transparency" in picture.info:
        picture = _on_white(picture)
    return np.asarray(picture.convert("RGB"))


def _on_white(picture: PIL.Image.Image) -> PIL.Image.Image:
    from PIL import Image

    rgba = picture.convert("LA" if picture.mode == "La" else "RGBA").convert("RGBA")
    canvas = Image.new("RGB", rgba.size, "white")
    canvas.paste(rgba, mask=rgba.getchannel("A"))
    return canvas


def _scaled(picture: PIL.Image.Image, white: int | None) -> np.ndarray:
    values = np.asarray(picture)
    if picture.mode.startswith("I;16"):
        white = white or 65535
        transparent = picture.info.get("transparency")
        scaled = ((np.minimum(values, white).astype(np.uint32) * 255 + white // 2) // white).astype(np.uint8)
        if isinstance(transparent, int):
            scaled[values == transparent] = 255
        return scaled
    values = values.astype(np.float64)
    finite = values[np.isfinite(values)]
    least, most = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    if white is not None:
        least, most = 0.0, float(white)
    elif least >= 0:
        ranges = (1.0, 255.0, 65535.0) if picture.mode == "F" else (255.0, 65535.0)
        least, most = next(((0.0, top) for top in ranges if most <= top), (least, most))
    values = np.nan_to_num(values, nan=least, posinf=most, neginf=least)
    scaled = (values - least) / (most - least) if most > least else np.zeros_like(values)
    return np.rint(np.clip(scaled, 0, 1) * 255).astype(np.uint8)


def _lab_to_rgb(picture: PIL.Image.Image) -> PIL.Image.Image:
    from PIL import ImageCms

    converted = ImageCms.profileToProfile(
        picture, ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), outputMode="RGB"
    )
    assert converted is not None
    return converted


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Undo an EXIF orientation 1..8 (CIPA DC-008, 4.6.5.1.6)."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels
