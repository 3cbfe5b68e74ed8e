"""LLaVA's JSON: `conversations` of {"from": "human" | "gpt", "value"}, `image` beside them, `<image>` in the text."""

from __future__ import annotations

from sensorium.training.data.formats.messages import MessagesReader


class LlavaReader(MessagesReader):
    """As messages; `image` counts from the directory of the JSON file, or from the media directory (their
    ``--image_folder``). Without an `image`, `<image>` in a text is just characters."""

    kind = "llava"
