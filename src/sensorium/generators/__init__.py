"""Generators: what turns units into sound. One file a generator; a new one is a file and a line of `KINDS`."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from sensorium.errors import UsageError

KINDS = {"hibari": ("hibari", "Hibari"), "unit-vocoder": ("unit_vocoder", "UnitVocoder")}
"""Speech generators: name -> (file, class)."""
PACKAGES = {"hibari": "hibari-tts"}
"""Those that are Python packages and need no file: name -> package."""


def create(kind: str, options: Mapping[str, Any] | None = None, path: Path | None = None) -> Any:
    """The generator of a kind; `path` is its file, where it is no package.

    Raises:
        UsageError: there is no such kind, or it takes no such options.
        SensoriumError: it cannot be loaded.
    """
    if kind not in KINDS:
        raise UsageError(f"generator kind {kind!r} is unknown; known kinds: {', '.join(sorted(KINDS))}.")
    file, name = KINDS[kind]
    try:
        given = {**(options or {}), **({"path": path} if path else {})}
        return getattr(import_module(f"sensorium.generators.{file}"), name)(**given)
    except TypeError:
        said = ", ".join(options or {}) or "none"
        raise UsageError(f"generator {kind} does not take these options ({said}), or it lacks its file.") from None
