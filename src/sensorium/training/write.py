"""What a run leaves behind: a composition directory that `sensorium ask --model DIR` takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from sensorium import hub
from sensorium.composition import FILE, MANIFEST, Composition, file_sha256
from sensorium.encoders.base import FeatureSpec
from sensorium.training.llama import Llama
from sensorium.training.recipe import Recipe


def write_composition(
    plan: Recipe,
    base: Composition,
    features: FeatureSpec,
    projector: nn.Module,
    llm: Llama,
    directory: Path,
    frozen: dict[str, str],
    **facts: Any,
) -> None:
    """Write ``composition.yaml``, the trained tensors, the ONNX twin and the manifest.

    Args:
        plan: the recipe, kept in the manifest.
        base: the composition whose frozen parts were used.
        features: the encoder's seam.
        projector, llm: what was trained.
        directory: where to.
        frozen: fingerprint of every frozen part.
        **facts: further keys of the manifest ("data", "run", "metrics").

    Raises:
        SensoriumError: a file cannot be written.
    """
    from sensorium.training.export import export_projector, save_tensors

    directory.mkdir(parents=True, exist_ok=True)
    export_projector(projector, features.layout.cells, features.dim, directory)  # type: ignore[union-attr]
    files = ["image.onnx", "image.safetensors"]
    spec = base.spec.model_dump(mode="json", exclude_defaults=True)
    spec["backbone"]["part"]["source"] = base.part("backbone").source  # a path of one's own, made absolute
    if base.spec.backbone.part.source.startswith("file:") and not base.spec.backbone.part.file:
        spec["backbone"]["part"]["sha256"] = frozen["backbone"]  # what was measured
    if plan.backbone:
        spec["name"] = plan.name  # what it stands on is no longer what the base is called after
    for name in base.spec.encoders:
        spec["encoders"][name]["part"]["source"] = base.part("encoders", name).source
    declared = {"kind": plan.projector.kind, "encoder": "image", "weights": "image.safetensors", "onnx": "image.onnx"}
    learnt = getattr(projector, "learnt", 0)
    options = {**plan.projector.options, **({"learnt": learnt} if learnt else {})}
    spec["projectors"] = {"image": {**declared, "options": options}}
    spec.pop("lora", None)
    if plan.lora:
        save_tensors(llm.lora_state(), directory / "lora.safetensors")
        spec["lora"] = {"weights": "lora.safetensors", "active": "media"}
        files.append("lora.safetensors")
    manifest = {
        "schema": 1,
        "recipe": plan.model_dump(mode="json"),
        **facts,
        "frozen": frozen,
        "files": {name: file_sha256(directory / name) for name in files},
    }
    with hub.atomic_write(directory / FILE, "w") as text:
        text.write(yaml.safe_dump(spec, sort_keys=False))
    with hub.atomic_write(directory / MANIFEST, "w") as text:
        text.write(json.dumps(manifest, indent=1) + "\n")
