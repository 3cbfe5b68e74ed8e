"""Speech into a WAV file: of a text, or of an answer while it is generated."""

from __future__ import annotations

import contextlib
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sensorium import hub
from sensorium.errors import UsageError
from sensorium.generators.base import Samples
from sensorium.generators.stream import SpeechStream


@contextlib.contextmanager
def wav_file(path: Path, rate: int) -> Iterator[Callable[[Samples], None]]:
    """Inside, what takes float32 samples and appends them to a 16-bit mono WAV file, which is there whole afterwards.

    Raises:
        SensoriumError: the file cannot be written.
    """
    with hub.atomic_write(path, "wb") as raw, wave.open(raw, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)

        def append(sound: Samples) -> None:
            file.writeframes((np.clip(sound, -1, 1) * 32767).astype("<i2").tobytes())

        yield append


def speak(generator: Any, text: str, sink: Callable[[Samples], None]) -> float:
    """Say a text by the generator's own text front-end, a chunk at a time; the seconds said.

    Raises:
        UsageError: there is nothing to say.
    """
    units = generator.units_of(text)
    stream = SpeechStream(generator)
    said = 0
    for sound in (stream.push(units), stream.flush()):
        said += len(sound)
        if len(sound):
            sink(sound)
    if not said:
        raise UsageError("the text holds nothing that can be said; give some words.")
    return said / float(generator.rate)
