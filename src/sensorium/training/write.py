"""What a run leaves behind: a composition directory that `sensorium ask --model DIR` takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from sensorium.composition import Composition
from sensorium.training.backbone import Backbone
from sensorium.training.frozen import Frozen
from sensorium.training.inherit import declared, entries, keep, save, without_speech
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
    spec = declared(base)
    if plan.backbone or plan.trains_backbone:
        spec["name"] = plan.name  # what it stands on is no longer what the base is called after
        without_speech(spec)
    if plan.trains_backbone:
        from sensorium.training.hf_write import write_backbone

        facts["backbone"] = {"trained": True, "from": fingerprints["backbone"]}
        fingerprints["backbone"] = write_backbone(llm, frozen.weights, directory / TRAINED_BACKBONE)
        licence = base.spec.backbone.part.licence
        spec["backbone"] |= {"part": {"source": f"file:{TRAINED_BACKBONE}", "licence": licence}, "format": "hf"}
    elif base.spec.backbone.format == "gguf" and measured(base):
        spec["backbone"]["part"]["sha256"] = fingerprints["backbone"]
    ours = {"kind": plan.projector.kind, "encoder": "image", "weights": "image.safetensors", "onnx": "image.onnx"}
    learnt = getattr(projector, "learnt", 0)
    options = {**plan.projector.options, **({"learnt": learnt} if learnt else {})}
    spec.setdefault("projectors", {})["image"] = {**ours, "options": options}
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
    kept, (told, known) = keep(base, spec, files, directory), entries(base, spec)
    manifest = {
        "schema": 1,
        "recipe": plan.model_dump(mode="json"),
        **facts,
        **told,
        "frozen": {**known, **fingerprints},
    }
    save(directory, spec, manifest, [*files, *kept])


def measured(base: Composition) -> bool:
    """Whether the LLM is a file of one's own, whose fingerprint was taken and not declared."""
    part = base.spec.backbone.part
    return part.source.startswith("file:") and not part.file
