"""Arrays that a program has made -> uint8 RGB arrays."""

from __future__ import annotations

import numpy as np

from sensorium.errors import SensoriumError


def array_to_rgb(array: np.ndarray) -> np.ndarray:
    """A new uint8 array [height, width, 3] from [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] of uint8, float 0..1 or bool.

    Raises:
        SensoriumError: another shape (channels first among them), another type, values out of range or not finite.
    """
    _check_shape(array)
    values = _as_uint8(np.asarray(array))
    if values.ndim == 2:
        values = values[:, :, None]
    if values.shape[2] == 4:
        alpha = values[:, :, 3:].astype(np.uint16)
        mixed = values[:, :, :3].astype(np.uint16) * alpha + 255 * (255 - alpha)
        return ((mixed + 127) // 255).astype(np.uint8)
    if values.shape[2] == 1:
        return np.repeat(values, 3, axis=2)
    return np.array(values)


def _check_shape(array: np.ndarray) -> None:
    shape = array.shape
    if array.ndim not in (2, 3) or 0 in shape:
        hint = "give one image of it" if array.ndim == 4 else "an image is [height, width, 3]"
        raise SensoriumError(f"An array of shape {shape} is no image; {hint}.")
    if array.ndim == 3 and shape[2] not in (1, 3, 4):
        if shape[0] in (1, 3, 4):
            raise SensoriumError(
                f"An array of shape {shape} has its channels first; give array.transpose(1, 2, 0), which is "
                f"[height, width, {shape[0]}]."
            )
        raise SensoriumError(
            f"An array of shape {shape} has {shape[2]} channels; an image has 1, 3 or 4 of them, last."
        )


def _as_uint8(array: np.ndarray) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype.kind != "f":
        raise SensoriumError(
            f"An array of type {array.dtype.name} has no known range; give uint8 from 0 to 255, or floats from 0 to 1."
        )
    if not np.isfinite(array).all():
        raise SensoriumError("The array holds values that are not finite; give floats from 0 to 1.")
    least, most = float(array.min()), float(array.max())
    # A little beyond the range is what resampling leaves behind.
    if least < -0.01 or most > 1.01:
        raise SensoriumError(
            f"The array of floats goes from {least:.3g} to {most:.3g}; scale it to 0..1, or give uint8 from 0 to 255."
        )
    return np.rint(np.clip(array.astype(np.float32), 0, 1) * 255).astype(np.uint8)
