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
            f"{spec.backbone.format} {backbone.arch}, run {_engine(model)}",
            backbone.fingerprint,
            f"embeddings [n, {backbone.dim}] -> tokens; vocabulary {backbone.vocab}, {backbone.layers} layers, "
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
        parts.append(_trained(model, f"projectors.{modality}", declared.kind, [declared.weights, declared.onnx], seam))
    if spec.lora:
        parts.append(
            _trained(model, "lora", "low-rank change of the backbone", [spec.lora.weights], "active: with media")
        )
    if spec.new_tokens:
        count = len(spec.new_tokens.names)
        seam = f"{count} rows behind the vocabulary of {backbone.vocab}; active: with media"
        parts.append(_trained(model, "new_tokens", "tokens of its own", [spec.new_tokens.weights], seam))
    return {"model": composition.name, "directory": str(composition.directory), "parts": parts}


def table(described: dict[str, Any]) -> None:
    """Print the parts as a table on standard output; it fits 80 columns."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    grid = Table(box=box.SIMPLE_HEAD, show_lines=True, show_header=False, padding=(0, 1), pad_edge=False)
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for part in described["parts"]:
        style = "cyan" if part["state"] == "frozen" else "green"
        left = Text(part["name"], style="bold").append(f"\n{part['state']}", style=f"not bold {style}")
        left.append(f"\n{part['bytes'] / 1e6:.1f} MB", style="not bold")
        right = Text(f"{part['kind']}, from {part['source']}\n{part['seam']}\n")
        right.append(f"{part['licence'] or 'no licence given'}, fingerprint {part['fingerprint'][:12]}", style="dim")
        grid.add_row(left, right)
    console.print(f"[bold]{described['model']}[/]  {described['directory']}", soft_wrap=True)
    console.print(grid)
    names = [part["name"] for part in described["parts"]]
    changes = [what for name, what in (("lora", "LoRA is"), ("new_tokens", "new tokens are")) if name in names]
    for what in changes:
        console.print(f"The {what} {LORA_NOTE}.")
    if not changes and any(name.startswith("projectors.") for name in names):
        console.print("Only the projectors were trained; the backbone always runs as published, bit for bit.")


def _frozen(model: Model, keys: tuple[str, ...], kind: str, fingerprint: str, seam: str) -> dict[str, Any]:
    composition = model.composition
    if keys == ("backbone",):
        part: hub.Part | hub.Folder = (
            composition.folder() if composition.spec.backbone.format == "hf" else composition.part(*keys)
        )
        path = composition.backbone_path(progress=False)
    else:
        part = composition.part(*keys)
        path = hub.fetch(part, progress=False)
    files = path.glob("*.safetensors") if path.is_dir() else [path]
    size = sum(file.stat().st_size for file in files)
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


def _engine(model: Model) -> str:
    declared = model.composition.spec.backbone
    if model.parts.runs_on.get() == "onnx":
        return f"in {declared.quantization}"
    return f"by torch (device {declared.device}, dtype {declared.dtype})"


def _trained(model: Model, name: str, kind: str, files: list[str], seam: str) -> dict[str, Any]:
    paths = [model.composition.file(file) for file in files]
    return {
        "name": name,
        "kind": kind,
        "state": "trained",
        "source": files[0],
        "licence": model.composition.spec.licence,
        "bytes": sum(path.stat().st_size for path in paths),
        "fingerprint": file_sha256(paths[0]),
        "seam": seam,
    }
