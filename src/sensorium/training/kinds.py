"""Which kinds of recipes there are, and what runs each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sensorium import config
from sensorium.errors import UsageError
from sensorium.training.overrides import override, place

PICTURES = ""  # a recipe without the key
RUNS = {
    PICTURES: ("run", "train"),
    "clip": ("clip_run", "train_clip"),
    "listen": ("listen_run", "train_listen"),
    "speak": ("speak_run", "train_speak"),
}
"""Kind -> module of `sensorium.training` and the function there."""


def kind_of(recipe: Path, overrides: Sequence[str] = ()) -> str:
    """The kind of a recipe as it is with its changes; `PICTURES` for a file that cannot be read, whose reader says why.

    Raises:
        UsageError: there is no such kind, or a change is none.
    """
    try:
        data, _ = config.read_yaml(recipe)
    except UsageError:
        return PICTURES
    for text in overrides:
        override(data, text)
    kind = data.get("kind", PICTURES)
    if "kind" in data and (not isinstance(kind, str) or kind not in RUNS or kind == PICTURES):
        *most, last = sorted(set(RUNS) - {PICTURES})
        raise UsageError(
            f"{place(recipe, overrides, 'kind')}: kind is {str(kind)[:40]!r}: use {', '.join(most)} or {last}, or "
            "leave the key out for a projector of pictures."
        )
    return kind
