"""The kinds of output projectors: the registry, and their options. No torch is imported before a module is asked for.

A new kind is one torch file beside this one and one line of `KINDS`; `projectors/spec.py` has those of the input side.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from sensorium.errors import UsageError
from sensorium.projectors.spec import LARGEST


@dataclass(frozen=True)
class OutputKind:
    """A kind of output projector: ``projectors/<file>.py`` and its class, made as ``name(dim, units, **options)``;
    `options` are whole numbers with their defaults."""

    file: str
    name: str
    options: Mapping[str, int]


KINDS = {
    "ctc": OutputKind(
        "ctc",
        "CTCProjector",
        {
            "width": 384,
            "depth": 2,
            "heads": 6,
            "ffn": 1024,
            "upsample": 16,
            "inner": 96,
            "window": 32,
            "letters": 32,
            "readings": 2,
        },
    )
}


def filled(kind: str, options: Mapping[str, Any]) -> dict[str, int]:
    """All options of a kind, checked. Raises UsageError for an unknown kind or option, or a wrong value."""
    if kind not in KINDS:
        raise UsageError(f"output projector kind {kind!r} is unknown; known kinds: {', '.join(sorted(KINDS))}.")
    known = KINDS[kind].options
    for name, value in options.items():
        if name not in known:
            raise UsageError(
                f"an output projector of kind {kind} has no option {name!r}; its options are {', '.join(known)}."
            )
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LARGEST:
            raise UsageError(f"output projector option {name}={value!r} must be a whole number from 1 to {LARGEST}.")
    return {**known, **options}


def torch_class(kind: str) -> Any:
    """The torch module of a kind (imports torch)."""
    filled(kind, {})
    return getattr(import_module(f"sensorium.projectors.{KINDS[kind].file}"), KINDS[kind].name)
