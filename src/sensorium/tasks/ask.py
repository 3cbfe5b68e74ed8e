"""A question, with or without pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sensorium.errors import UsageError
from sensorium.media import load_image
from sensorium.messages import Message

if TYPE_CHECKING:
    from sensorium.answer import Answer, Stream
    from sensorium.model import Model


def question(text: str, images: Sequence[Any] = ()) -> list[Message]:
    """One user message with pictures. Raises UsageError for an empty text, SensoriumError for an unreadable picture."""
    if not isinstance(text, str) or not text.strip():
        raise UsageError("the question is empty; write what you want to know.")
    return [Message("user", [*map(load_image, images), text])]


def ask(model: Model, text: str, images: Sequence[Any] = (), **options: Any) -> Answer | Stream:
    """Answer one question about any number of pictures. Options as for `Model.chat`."""
    return model.chat(question(text, images), **options)
