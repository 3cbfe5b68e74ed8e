"""Frozen encoders. A new family is one file and one line of ``_KINDS``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sensorium.encoders.base import Encoder, FeatureSpec, Grid, Sequence
from sensorium.errors import UsageError

__all__ = ["Encoder", "FeatureSpec", "Grid", "Sequence", "create", "kinds"]


def _efficientnet_lite(variant: int) -> Callable[..., Encoder]:
    def make(weights: Path, **options: Any) -> Encoder:
        from sensorium.encoders.efficientnet_lite import EfficientNetLite

        return EfficientNetLite(variant, weights, **options)

    return make


def _linear_patches(weights: Path, **options: Any) -> Encoder:
    from sensorium.encoders.linear_patches import LinearPatches

    return LinearPatches(weights, **options)


_KINDS: dict[str, Callable[..., Encoder]] = {
    "efficientnet-lite0": _efficientnet_lite(0),
    "efficientnet-lite1": _efficientnet_lite(1),
    "efficientnet-lite2": _efficientnet_lite(2),
    "linear-patches": _linear_patches,
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
    try:
        return _KINDS[kind](weights, **options)
    except TypeError as error:
        raise UsageError(f"Encoder {kind!r} does not take these options: {error}.") from None
