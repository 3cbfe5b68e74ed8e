"""What a run leaves behind: a composition directory that `sensorium ask --model DIR` takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from sensorium import hub
from sensorium.composition import FILE, MANIFEST, file_sha256
from sensorium.training.backbone import Backbone
from sensorium.training.frozen import Frozen
from sensorium.training.recipe import Recipe

TRAINED_BACKBONE = "backbone"
"""The directory of a language model that was trained whole, beside ``composition.yaml``."""


def write_composition(
    plan: Recipe, frozen: Frozen, projector: nn.Module, llm: Backbone, directory: Path, **facts: Any
) -> None:
    """Write ``composition.yaml``, the trained tensors, the ONNX twin and the manifest.

    Args:
        plan: the recipe, kept in the manifest.
        frozen: the frozen parts that were used.
        projector, llm: what was trained.
        directory: where to.
        **facts: further keys of the manifest ("data", "run", "metrics").

    Raises:
        SensoriumError: a file cannot be written.
    """
    from sensorium.training.export import export_projector, save_tensors

    base, features, fingerprints = frozen.composition, frozen.features, dict(frozen.fingerprints)
    directory.mkdir(parents=True, exist_ok=True)
    export_projector(projector, features.layout.cells, features.dim, directory)  # type: ignore[union-attr]
    files = ["image.onnx", "image.safetensors"]
    spec = base.spec.model_dump(mode="json", exclude_defaults=True)
    if plan.trains_backbone:
        from sensorium.training.hf_write import write_backbone

        facts["backbone"] = {"trained": True, "from": fingerprints["backbone"]}
        fingerprints["backbone"] = write_backbone(llm, frozen.weights, directory / TRAINED_BACKBONE)
        licence = base.spec.backbone.part.licence
        spec["backbone"] |= {"part": {"source": f"file:{TRAINED_BACKBONE}", "licence": licence}, "format": "hf"}
    elif base.spec.backbone.format == "hf":
        spec["backbone"]["part"]["source"] = base.folder().source
    else:
        spec["backbone"]["part"]["source"] = base.part("backbone").source  # a path of one's own, made absolute
        if base.spec.backbone.part.source.startswith("file:") and not base.spec.backbone.part.file:
            spec["backbone"]["part"]["sha256"] = fingerprints["backbone"]  # what was measured
    if plan.backbone or plan.trains_backbone:
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
    spec.pop("new_tokens", None)
    if llm.new_tokens is not None:
        save_tensors(llm.new_tokens.saved(), directory / "tokens.safetensors", torch.float32)
        spec["new_tokens"] = {"weights": "tokens.safetensors", "names": list(llm.new_tokens.names)}
        files.append("tokens.safetensors")
    manifest = {
        "schema": 1,
        "recipe": plan.model_dump(mode="json"),
        **facts,
        "frozen": fingerprints,
        "files": {name: file_sha256(directory / name) for name in files},
    }
    with hub.atomic_write(directory / FILE, "w") as text:
        text.write(yaml.safe_dump(spec, sort_keys=False))
    with hub.atomic_write(directory / MANIFEST, "w") as text:
        text.write(json.dumps(manifest, indent=1) + "\n")
