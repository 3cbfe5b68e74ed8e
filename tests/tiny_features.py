"""Small material for the feature cache: pictures, an encoder, and what a worker must not survive."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
from PIL import Image

from sensorium.errors import SensoriumError
from sensorium.training.data.formats.sample import MediaRef
from sensorium.training.features import EncoderPart

GRID, DIM = 4, 24


def pictures(directory: Path, count: int, start: int = 0) -> list[MediaRef]:
    """Different PNG files."""
    directory.mkdir(parents=True, exist_ok=True)
    made = []
    for i in range(start, start + count):
        path = directory / f"{i}.png"
        pixels = np.random.default_rng(i).integers(0, 255, (5, 7, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((40, 30)).save(path)
        made.append(MediaRef(path.name, path))
    return made


def encoder(directory: Path, seed: int = 0) -> EncoderPart:
    """`linear-patches` with random weights."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"patches{seed}.npy"
    np.save(path, np.random.default_rng(seed).normal(size=(2 * 2 * 3, DIM)).astype(np.float32))
    return EncoderPart("linear-patches", path, {"grid": GRID})


def double(number: int) -> int:
    """A task that works."""
    return 2 * number


def die(number: int) -> int:
    """A task whose worker is killed, as when memory runs out."""
    os._exit(9)


def complain(number: int) -> int:
    """A task that has something to say."""
    raise SensoriumError(f"The picture {number} is broken.")


def trip(number: int) -> int:
    """A task with a bug."""
    raise KeyError(number)


def sleep(number: int) -> int:
    """A task that takes long."""
    time.sleep(60)
    return number
