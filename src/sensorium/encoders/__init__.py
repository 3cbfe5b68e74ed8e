"""Frozen encoders. A new family is one file and one line of ``_KINDS``."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from sensorium.encoders.base import Encoder, FeatureSpec, Grid, Sequence
from sensorium.errors import UsageError

__all__ = ["Encoder", "FeatureSpec", "Grid", "Sequence", "create", "kinds"]


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
    if kind not in _KINDS:
        raise UsageError(f"Encoder kind {kind!r} is unknown; use one of {', '.join(kinds())}.")
    module, name, arguments = _KINDS[kind]
    encoder: Callable[..., Encoder] = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    try:
        inspect.signature(encoder).bind(*arguments, weights, **options)
    except TypeError as error:
        raise UsageError(f"Encoder {kind!r} does not take these options: {error}.") from None
    return encoder(*arguments, weights, **options)
