"""What `sensorium parts` shows: every part of a composition, where it comes from, and the seam to its neighbours."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution
from typing import TYPE_CHECKING, Any, TypeVar

from sensorium import generators, hub
from sensorium.composition import file_sha256
from sensorium.encoders.base import Grid
from sensorium.errors import SensoriumError
from sensorium.projectors.spec import find

if TYPE_CHECKING:
    from sensorium.model import Model

LORA_NOTE = "active only in conversations that hold pictures; in others the backbone runs as published, bit for bit"
T = TypeVar("T")


def describe_parts(model: Model) -> dict[str, Any]:
    """The composition and its parts as plain values.

    Returns:
        {"model", "directory", "parts": [{"name", "kind", "state", "source", "licence", "bytes", "fingerprint",
        "seam"}]}, with `state` "frozen" or "trained", `bytes` the size of the file in use, and `fingerprint` a full
        sha256. Of a part that cannot be used here (its extra is not installed, ...) the seam says why.
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
        parts.append(_frozen(model, ("encoders", modality), encoder.kind, *_encoder_seam(model, modality)))
    for modality, projector in spec.projectors.items():
        name, files = f"projectors.{modality}", [projector.weights, projector.onnx]
        parts.append(_trained(model, name, projector.kind, files, _projector_seam(model, modality)))
    if spec.lora:
        parts.append(
            _trained(model, "lora", "low-rank change of the backbone", [spec.lora.weights], "active: with pictures")
        )
    if spec.new_tokens:
        count = len(spec.new_tokens.names)
        seam = f"{count} rows behind the vocabulary of {backbone.vocab}; active: with pictures"
        parts.append(_trained(model, "new_tokens", "tokens of its own", [spec.new_tokens.weights], seam))
    for spoken, output in spec.output_projectors.items():
        name, files = f"output_projectors.{spoken}", [output.weights, output.onnx]
        parts.append(_trained(model, name, output.kind, files, _output_seam(model)))
    parts += [_generator(model, spoken) for spoken in spec.generators]
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


def _usable(describe: Callable[[], T], otherwise: Callable[[str], T]) -> T:
    """What `describe` gives; where the part cannot be used, what `otherwise` makes of the reason."""
    try:
        return describe()
    except SensoriumError as error:
        return otherwise(f"cannot be used here: {error}")


def _encoder_seam(model: Model, modality: str) -> tuple[str, str]:
    """The fingerprint and the seam."""

    def describe() -> tuple[str, str]:
        features = model.parts.features[modality].get()
        grid = features.layout
        layout = f"{grid.h}x{grid.w}" if isinstance(grid, Grid) else "frames"
        rate = f" at {features.rate_hz:g} Hz" if features.rate_hz else ""
        return features.fingerprint, f"{modality} -> features [{layout}, {features.dim}]{rate}"

    return _usable(describe, lambda why: (_listed(model, f"encoders.{modality}"), why))


def _projector_seam(model: Model, modality: str) -> str:
    runner = model.parts.projectors[modality].get()
    if runner.cells is not None:
        return f"[{runner.cells}, {runner.feature_dim}] -> embeddings [{runner.tokens}, {runner.dim}]"
    declared = model.composition.spec.projectors[modality]  # type: ignore[index]
    stack = find(declared.kind).filled(declared.options)["stack"]
    return f"[frames, {runner.feature_dim}] -> embeddings [ceil(frames / {stack}), {runner.dim}]"


def _output_seam(model: Model) -> str:
    def describe() -> str:
        runner = model.parts.output.get()
        assert runner is not None
        return f"hidden states [tokens, {runner.dim}] -> up to {runner.upsample} of {runner.units} units a token"

    return _usable(describe, lambda why: why)


def _generator(model: Model, spoken: str) -> dict[str, Any]:
    """A generator that has a file is a part like any other; else it is an installed Python package."""
    declared, name = model.composition.spec.generators[spoken], f"generators.{spoken}"  # type: ignore[index]

    def describe() -> tuple[str, str]:
        voice = model.parts.generator.get()
        return voice.units.fingerprint, f"{len(voice.units)} units -> {spoken} at {voice.rate / 1000:g} kHz"

    fingerprint, seam = _usable(describe, lambda why: (_listed(model, name), why))
    if declared.part:
        return _frozen(model, ("generators", spoken), declared.kind, fingerprint, seam)
    package = generators.PACKAGES[declared.kind]
    facts = {"source": f"pypi:{package}", "licence": "", "bytes": 0}
    with contextlib.suppress(PackageNotFoundError):
        held = distribution(package)
        size = sum(file.size or 0 for file in held.files or ())
        facts = {"source": f"pypi:{package}=={held.version}", "licence": held.metadata["License"] or "", "bytes": size}
    return {"name": name, "kind": declared.kind, "state": "frozen", **facts, "fingerprint": fingerprint, "seam": seam}


def _listed(model: Model, part: str) -> str:
    """The fingerprint that the manifest has of a frozen part."""
    return model.composition.manifest.frozen.get(part, "") if model.composition.manifest else ""


def _frozen(model: Model, keys: tuple[str, ...], kind: str, fingerprint: str, seam: str) -> dict[str, Any]:
    composition = model.composition
    if keys == ("backbone",):
        part: hub.Part | hub.Folder = (
            composition.folder() if composition.spec.backbone.format == "hf" else composition.part(*keys)
        )
        path = composition.backbone_path(progress=False)
        files = path.glob("*.safetensors") if path.is_dir() else [path]
        size = sum(file.stat().st_size for file in files)
    else:
        part = held = composition.part(*keys)
        size = _usable(lambda: hub.fetch(held, progress=False).stat().st_size, lambda why: held.size or 0)
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
