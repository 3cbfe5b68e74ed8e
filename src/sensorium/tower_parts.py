"""What `sensorium parts` shows of a two-tower model: both encoders, both heads, and the seams between them."""

from __future__ import annotations

from typing import Any

from sensorium.composition import file_sha256
from sensorium.encoders.base import Grid
from sensorium.two_tower import SIDES, Side, TwoTower


def describe_towers(towers: TwoTower) -> dict[str, Any]:
    """The model and its parts as plain values, as `parts.describe_parts` gives them of a composition.

    Raises:
        SensoriumError: a part cannot be had, or does not fit the others.
    """
    parts = [_encoder(towers, side) for side in SIDES] + [_head(towers, side) for side in SIDES]
    return {"model": towers.name, "directory": str(towers.directory), "parts": parts}


def _encoder(towers: TwoTower, side: Side) -> dict[str, Any]:
    declared = getattr(towers.spec.encoders, side)
    features = (towers.image_encoder if side == "image" else towers.text_encoder).get().spec
    path, published = towers.fetch(side)[0], towers.part(side)
    frozen = path.parent != towers.directory or f"encoders.{side}" in towers.manifest.frozen
    shape = f"{features.layout.h}x{features.layout.w}, " if isinstance(features.layout, Grid) else ""
    return {
        "name": f"encoders.{side}",
        "kind": declared.kind,
        "state": "frozen" if frozen else "trained",
        "source": published.source if frozen else path.name,
        "licence": published.licence,
        "bytes": path.stat().st_size,
        "fingerprint": features.fingerprint,
        "seam": f"{side} -> features [{shape}{features.dim}]",
    }


def _head(towers: TwoTower, side: Side) -> dict[str, Any]:
    runner = towers.head(side)
    assert towers.spec.heads is not None  # or there were no runner
    declared = getattr(towers.spec.heads, side)
    paths = [towers.directory / name for name in (declared.weights, declared.onnx)]
    return {
        "name": f"heads.{side}",
        "kind": "head",
        "state": "trained",
        "source": declared.weights,
        "licence": towers.spec.licence,
        "bytes": sum(path.stat().st_size for path in paths),
        "fingerprint": file_sha256(paths[0]),
        "seam": f"[{runner.cells}, {runner.feature_dim}] -> vector of length 1 [{runner.dim}]",
    }
