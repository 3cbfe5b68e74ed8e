"""The tensors of a weights file: safetensors, or a ``.pth`` read without pickle. Nothing in a file is trusted."""

from __future__ import annotations

import stat
from pathlib import Path

import numpy as np

from sensorium.encoders.pth import read_pth
from sensorium.errors import SensoriumError

MAX_BYTES = 1 << 30
"""Larger files are refused; the encoders here are below 100 MB."""


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a ``.safetensors`` file, or of any other name as a ``.pth``. Raises SensoriumError."""
    return read_safetensors(path) if path.suffix == ".safetensors" else read_pth(path)


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file.

    Raises:
        SensoriumError: it cannot be read, is too large, or holds anything else.
    """
    from safetensors.numpy import load

    data = read_bytes(path, MAX_BYTES)
    try:
        return load(data)
    except Exception as error:  # safetensors raises its own class, and others for types that numpy lacks
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise SensoriumError(f"no safetensors file ({reason}); name the model's weights.") from None


def read_bytes(path: Path, most: int) -> bytes:
    """The bytes of a regular file of at most so many. Raises SensoriumError."""
    try:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode):  # opening a pipe would wait, reading a device never end
            raise SensoriumError(f"{path} is no file; correct the path.")
        if facts.st_size > most:
            raise SensoriumError(f"{path} has {facts.st_size} bytes, more than the {most} that such a file may have.")
        return path.read_bytes()
    except OSError as error:
        raise SensoriumError(f"{path} cannot be read ({error.strerror}); correct the path.") from None
