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
    return np.asarray(picture if picture.mode == "RGB" else picture.convert("RGB"))


def _on_white(picture: PIL.Image.Image) -> PIL.Image.Image:
    from PIL import Image

    rgba = picture.convert("LA" if picture.mode == "La" else "RGBA").convert("RGBA")
    canvas = Image.new("RGB", rgba.size, "white")
    canvas.paste(rgba, mask=rgba.getchannel("A"))
    return canvas


def _scaled(picture: PIL.Image.Image, white: int | None) -> np.ndarray:
    """The grey values as uint8 [height, width]. In stripes, since the steps between need eight bytes for a pixel."""
    values = np.asarray(picture)
    result = np.empty(values.shape, np.uint8)
    rows = max(1, 1_000_000 // values.shape[1])
    stripes = [slice(start, start + rows) for start in range(0, values.shape[0], rows)]
    if picture.mode.startswith("I;16"):
        white = white or 65535
        transparent = picture.info.get("transparency")
        for stripe in stripes:
            samples = np.minimum(values[stripe], white).astype(np.uint32)
            result[stripe] = (samples * 255 + white // 2) // white
            if isinstance(transparent, int):
                result[stripe][values[stripe] == transparent] = 255
        return result
    least, most = (0.0, float(white)) if white is not None else _range(values, stripes)
    for stripe in stripes:
        with np.errstate(invalid="ignore"):  # a signalling NaN is one more NaN
            samples = np.nan_to_num(values[stripe].astype(np.float64), nan=least, posinf=most, neginf=least)
        share = (samples - least) / (most - least) if most > least else np.zeros_like(samples)
        result[stripe] = np.rint(np.clip(share, 0, 1) * 255)
    return result


def _range(values: np.ndarray, stripes: list[slice]) -> tuple[float, float]:
    """The values for black and white of samples that have no range of their own."""
    least, most = np.inf, -np.inf
    for stripe in stripes:
        finite = values[stripe][np.isfinite(values[stripe])]
        if finite.size:
            least, most = min(least, float(finite.min())), max(most, float(finite.max()))
    if least > most:
        return 0.0, 1.0
    ranges = (1.0, 255.0, 65535.0) if values.dtype.kind == "f" else (255.0, 65535.0)
    if least >= 0:
        return next(((0.0, top) for top in ranges if most <= top), (least, most))
    return least, most


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
