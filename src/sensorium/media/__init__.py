"""The only door for untrusted bytes: files, streams and arrays come in, typed arrays go out."""

from __future__ import annotations

import os
from typing import BinaryIO

from sensorium.errors import SensoriumError
from sensorium.media.audio import Audio, decode_audio, load_audio, stream_audio
from sensorium.media.image import Image, decode_image, load_image
from sensorium.media.kind import Kind, kind_of, sniff
from sensorium.media.limits import DEFAULT, Limits
from sensorium.media.reading import open_seekable, read_bytes


def load(src: str | os.PathLike[str] | bytes | BinaryIO, limits: Limits = DEFAULT) -> Image | Audio:
    """Read a file of any kind; its content decides what it is. (Images and sound now; video follows.)

    Sound comes at 16 kHz; see :func:`load_audio` for other rates, and for the sound of a video.

    Raises:
        SensoriumError: one sentence that says what is wrong with ``src`` and what to do.
    """
    with open_seekable(src, max(limits.max_bytes, limits.max_audio_bytes)) as (handle, label):
        kind = kind_of(handle.read(1 << 16))
        handle.seek(0)
        if kind == "audio":
            return decode_audio(handle, limits, label=label)
        if kind == "video":
            raise SensoriumError(f"{label} is video, which is not taken here; give its sound, as load_audio does.")
        data, _ = read_bytes(handle, limits.max_bytes)
        return decode_image(data, limits, label=label)


__all__ = [
    "Audio",
    "DEFAULT",
    "Image",
    "Kind",
    "Limits",
    "decode_audio",
    "decode_image",
    "kind_of",
    "load",
    "load_audio",
    "load_image",
    "read_bytes",
    "sniff",
    "stream_audio",
]
