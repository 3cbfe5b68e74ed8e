"""A caption of a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sensorium.media import load_image
from sensorium.messages import Message

if TYPE_CHECKING:
    from sensorium.answer import Answer, Stream
    from sensorium.model import Model

PROMPT = "Describe this picture."
"""The wording that training uses for captions."""


def describe(model: Model, image: Any, *, max_tokens: int = 96, **options: Any) -> Answer | Stream:
    """Describe one picture. Options as for `Model.chat`; greedy by default."""
    return model.chat([Message("user", [load_image(image), PROMPT])], max_tokens=max_tokens, **options)
