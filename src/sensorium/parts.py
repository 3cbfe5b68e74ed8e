"""What `sensorium parts` shows: every part of a composition, where it comes from, and the seam to its neighbours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sensorium import hub
from sensorium.composition import file_sha256
from sensorium.encoders.base import Grid

if TYPE_CHECKING:
    from sensorium.model import Model

LORA_NOTE = "active only in conversations that hold media; without media the backbone runs as published, bit for bit"


def describe_parts(model: Model) -> dict[str, Any]:
    """The composition and its parts as plain values.

    Returns:
        {"model", "directory", "parts": [{"name", "kind", "state", "source", "licence", "bytes", "fingerprint",
        "seam"}]}, with `state` "frozen" or "trained", `bytes` the size of the file in use, and `fingerprint` a full
        sha256.
    """
    composition, spec = model.composition, model.composition.spec
    backbone = model.parts.backbone.get()
    parts = [
        _frozen(
            model,
            ("backbone",),
            f"{spec.backbone.format} {backbone.arch}, run in {spec.backbone.quantization}",
            backbone.fingerprint,
            f"embeddings [n, {backbone.dim}] -> tokens of {backbone.vocab}; {backbone.layers} layers, "
            f"context {backbone.context}, template {spec.backbone.template}",
        )
    ]
    for modality, encoder in spec.encoders.items():
        features = model.parts.features[modality].get()
        layout = f"{features.layout.h}x{features.layout.w}" if isinstance(features.layout, Grid) else "sequence"
        seam = f"{modality} -> features [{layout}, {features.dim}]"
        parts.append(_frozen(model, ("encoders", modality), encoder.kind, features.fingerprint, seam))
    for modality, declared in spec.projectors.items():
        runner = model.parts.projectors[modality].get()
        seam = f"[{runner.cells}, {runner.feature_dim}] -> embeddings [{runner.tokens}, {runner.dim}]"
        parts.append(_trained(model, f"projectors.{modality}", declared.kind, declared.onnx, seam))
    if spec.lora:
        parts.append(_trained(model, "lora", "low-rank change of the backbone", spec.lora.weights, LORA_NOTE))
    return {"model": composition.name, "directory": str(composition.directory), "parts": parts}


def table(described: dict[str, Any]) -> None:
    """Print the parts as a table on standard output."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    grid = Table(title=f"{described['model']}  ({described['directory']})", title_justify="left", expand=False)
    for heading in ("part", "state", "source", "licence", "size", "fingerprint", "seam"):
        grid.add_column(heading, overflow="fold", justify="right" if heading == "size" else "left")
    for part in described["parts"]:
        state = Text(part["state"], style="cyan" if part["state"] == "frozen" else "green")
        what = Text(part["name"], style="bold").append(f"\n{part['kind']}", style="not bold dim")
        size = f"{part['bytes'] / 1e6:.1f} MB"
        row = (part["source"], part["licence"] or "-", size, part["fingerprint"][:12], part["seam"])
        grid.add_row(what, state, *map(Text, row))
    console.print(grid)
    names = [part["name"] for part in described["parts"]]
    if "lora" in names:
        console.print(f"The LoRA is {LORA_NOTE}.")
    elif any(name.startswith("projectors.") for name in names):
        console.print("Only the projectors were trained; the backbone always runs as published, bit for bit.")


def _frozen(model: Model, keys: tuple[str, ...], kind: str, fingerprint: str, seam: str) -> dict[str, Any]:
    part = model.composition.part(*keys)
    size = hub.fetch(part, progress=False).stat().st_size
    return {
        "name": ".".join(keys),
        "kind": kind,
        "state": "frozen",
        "source": part.source,
        "licence": part.licence,
        "bytes": size,
        "fingerprint": fingerprint,
        "seam": seam,
    }


def _trained(model: Model, name: str, kind: str, file: str, seam: str) -> dict[str, Any]:
    path = model.composition.file(file)
    return {
        "name": name,
        "kind": kind,
        "state": "trained",
        "source": file,
        "licence": model.composition.spec.licence,
        "bytes": path.stat().st_size,
        "fingerprint": file_sha256(path),
        "seam": seam,
    }
