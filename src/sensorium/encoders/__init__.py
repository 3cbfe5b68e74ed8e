"""Frozen encoders. A new family is one file and one line of ``_KINDS``."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sensorium.encoders.base import AudioEncoder, Encoder, FeatureSpec, Grid, Sequence, TextEncoder, Vector
from sensorium.errors import UsageError

__all__ = [
    "AudioEncoder",
    "Encoder",
    "FeatureSpec",
    "Grid",
    "Sequence",
    "TextEncoder",
    "Vector",
    "audio_kinds",
    "create",
    "create_audio",
    "create_text",
    "kinds",
    "text_kinds",
]


class _Kind(NamedTuple):
    module: str
    name: str
    arguments: tuple[Any, ...] = ()  # those that stand before the weights


_KINDS = {
    "efficientnet-lite0": _Kind("efficientnet_lite", "EfficientNetLite", (0,)),
    "efficientnet-lite1": _Kind("efficientnet_lite", "EfficientNetLite", (1,)),
    "efficientnet-lite2": _Kind("efficientnet_lite", "EfficientNetLite", (2,)),
    "linear-patches": _Kind("linear_patches", "LinearPatches"),
}

_TEXT_KINDS = {"minilm": _Kind("minilm", "MiniLM")}

_AUDIO_KINDS = {
    "linear-frames": _Kind("linear_frames", "LinearFrames"),
    "whisper-tiny.en": _Kind("whisper", "WhisperEncoder", ("tiny.en",)),
    "whisper-base": _Kind("whisper", "WhisperEncoder", ("base",)),
}


def kinds() -> list[str]:
    """The names that ``create`` knows."""
    return sorted(_KINDS)


def create(kind: str, weights: Path, **options: Any) -> Encoder:
    """Load an encoder.

    Args:
        kind: One of ``kinds()``.
        weights: Its weights file.
        **options: The encoder's own (for ``efficientnet-lite*``: ``resolution``, ``threads``).

    Raises:
        UsageError: The kind or an option is unknown.
        SensoriumError: The weights cannot be used.
    """
    made: Encoder = _create(_KINDS, kind, weights, options)
    return made


def text_kinds() -> list[str]:
    """The names that ``create_text`` knows."""
    return sorted(_TEXT_KINDS)


def create_text(kind: str, weights: Path, **options: Any) -> TextEncoder:
    """Load an encoder of texts: one of ``text_kinds()``. Arguments and errors as of ``create``."""
    made: TextEncoder = _create(_TEXT_KINDS, kind, weights, options)
    return made


def audio_kinds() -> list[str]:
    """The names that ``create_audio`` knows."""
    return sorted(_AUDIO_KINDS)


def create_audio(kind: str, weights: Path, **options: Any) -> AudioEncoder:
    """Load an encoder of sound: one of ``audio_kinds()``. Arguments and errors as of ``create``."""
    made: AudioEncoder = _create(_AUDIO_KINDS, kind, weights, options)
    return made


def _create(known: Mapping[str, _Kind], kind: str, weights: Path, options: Mapping[str, Any]) -> Any:
    if kind not in known:
        raise UsageError(f"Encoder kind {kind!r} is unknown; use one of {', '.join(sorted(known))}.")
    module, name, arguments = known[kind]
    encoder: Callable[..., Any] = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    try:
        inspect.signature(encoder).bind(*arguments, weights, **options)
    except TypeError as error:
        raise UsageError(f"Encoder {kind!r} does not take these options: {error}.") from None
    return encoder(*arguments, weights, **options)
