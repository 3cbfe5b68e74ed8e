"""A question, written or spoken, with or without pictures."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from sensorium.arguments import several, shown
from sensorium.errors import SensoriumError, UsageError
from sensorium.media import Audio, Limits, load_audio, load_image
from sensorium.messages import Message

if TYPE_CHECKING:
    from sensorium.answer import Answer, Stream
    from sensorium.model import Model


SHORTEST = 0.06
"""Seconds of a spoken question; no vowel is shorter."""


def question(
    text: str | None, images: Any = (), sounds: Any = (), limits: Callable[[], Limits] = Limits
) -> list[Message]:
    """One user message: pictures, then speech, then a text, one or a list of each.

    Args:
        text: what is asked; None where it is spoken alone.
        images: anything that `load_image` takes.
        sounds: anything that `load_audio` takes, but arrays.
        limits: gives those for sound, where there is some.

    Raises:
        UsageError: there is no question, or the text is empty or no text.
        SensoriumError: a picture or sound cannot be read, or the sound is too long, or too short to hold speech.
    """
    spoken = [_spoken(sound, limits) for sound in several(sounds)]
    if spoken and (seconds := sum(sound.seconds for sound in spoken)) < SHORTEST:
        raise SensoriumError(
            f"{spoken[0].source} is too short to hold speech ({1000 * seconds:.3g} ms); give a recording in which "
            "somebody speaks."
        )
    if text is None and not spoken:
        raise UsageError("there is no question; give it as a text, or as sound in which it is spoken.")
    if text is None:
        return [Message("user", [*map(load_image, several(images)), *spoken])]
    if not isinstance(text, str):
        raise UsageError(f"the question is {shown(text)}; give it as a text.")
    if not text.strip():
        raise UsageError("the question is empty; write what you want to know.")
    return [Message("user", [*map(load_image, several(images)), *spoken, text])]


def ask(model: Model, text: str | None, images: Any = (), sounds: Any = (), **options: Any) -> Answer | Stream:
    """Answer one question about any number of pictures. Options as for `Model.chat`."""
    return model.chat(question(text, images, sounds, model.hearing), **options)


def _spoken(sound: Any, limits: Callable[[], Limits]) -> Audio:
    if isinstance(sound, np.ndarray):
        raise UsageError(
            "the sound is an array, whose rate is unknown; give sensorium.load_audio(array, array_rate=16000)."
        )
    if isinstance(sound, Audio):
        return load_audio(sound)
    return load_audio(sound, limits())
