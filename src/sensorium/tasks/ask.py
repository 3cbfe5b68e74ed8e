"""A question, written or spoken, with or without pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sensorium.arguments import several, shown
from sensorium.errors import UsageError
from sensorium.media import Audio, load_audio, load_image
from sensorium.messages import Message

if TYPE_CHECKING:
    from sensorium.answer import Answer, Stream
    from sensorium.model import Model


def question(text: str | None, images: Any = (), sounds: Any = ()) -> list[Message]:
    """One user message: pictures, then speech, then a text, one or a list of each.

    Args:
        text: what is asked; None where it is spoken alone.
        images: anything that `load_image` takes.
        sounds: anything that `load_audio` takes, but arrays.

    Raises:
        UsageError: there is no question, or the text is empty or no text.
        SensoriumError: a picture or sound cannot be read.
    """
    spoken = [_spoken(sound) for sound in several(sounds)]
    if text is None and spoken:
        return [Message("user", [*map(load_image, several(images)), *spoken])]
    if not isinstance(text, str):
        raise UsageError(f"the question is {shown(text)}; give it as a text.")
    if not text.strip():
        raise UsageError("the question is empty; write what you want to know.")
    return [Message("user", [*map(load_image, several(images)), *spoken, text])]


def ask(model: Model, text: str | None, images: Any = (), sounds: Any = (), **options: Any) -> Answer | Stream:
    """Answer one question about any number of pictures. Options as for `Model.chat`."""
    return model.chat(question(text, images, sounds), **options)


def _spoken(sound: Any) -> Audio:
    if isinstance(sound, np.ndarray):
        raise UsageError(
            "the sound is an array, whose rate is unknown; give sensorium.load_audio(array, array_rate=16000)."
        )
    return load_audio(sound)
