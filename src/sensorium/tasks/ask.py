"""A question, with or without pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sensorium.arguments import several, shown
from sensorium.errors import UsageError
from sensorium.media import load_image
from sensorium.messages import Message

if TYPE_CHECKING:
    from sensorium.answer import Answer, Stream
    from sensorium.model import Model


def question(text: str, images: Any = ()) -> list[Message]:
    """One user message with a picture or a list of them.

    Raises:
        UsageError: the text is empty or no text.
        SensoriumError: a picture cannot be read.
    """
    if not isinstance(text, str):
        raise UsageError(f"the question is {shown(text)}; give it as a text.")
    if not text.strip():
        raise UsageError("the question is empty; write what you want to know.")
    return [Message("user", [*map(load_image, several(images)), text])]


def ask(model: Model, text: str, images: Any = (), **options: Any) -> Answer | Stream:
    """Answer one question about any number of pictures. Options as for `Model.chat`."""
    return model.chat(question(text, images), **options)
