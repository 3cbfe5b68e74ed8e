"""The only door for untrusted bytes: files, streams and arrays come in, typed arrays go out."""

from __future__ import annotations

import os
from typing import BinaryIO

from sensorium.errors import SensoriumError
from sensorium.media.image import Image, decode_image, load_image
from sensorium.media.kind import Kind, kind_of, sniff
from sensorium.media.limits import DEFAULT, Limits
from sensorium.media.reading import read_bytes


def load(src: str | os.PathLike[str] | bytes | BinaryIO, limits: Limits = DEFAULT) -> Image:
    """Read a file of any kind; its content decides what it is. (Images now; audio and video follow.)

    Raises:
        SensoriumError: one sentence that says what is wrong with ``src`` and what to do.
    """
    data, label = read_bytes(src, limits.max_bytes)
    if kind_of(data) in ("audio", "video"):
        raise SensoriumError(f"{label} is {kind_of(data)}, which this version does not take; give an image.")
    return decode_image(data, limits, label=label)


__all__ = [
    "DEFAULT",
    "Image",
    "Kind",
    "Limits",
    "decode_image",
    "kind_of",
    "load",
    "load_image",
    "read_bytes",
    "sniff",
]
