"""What a clip run writes: ``composition.yaml``, both heads with their ONNX twins, trained towers, and the manifest."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from sensorium import hub
from sensorium.composition import FILE, MANIFEST, file_sha256
from sensorium.encoders.base import FeatureSpec, Grid
from sensorium.training.clip_recipe import ClipRecipe
from sensorium.training.export import export_projector, save_tensors
from sensorium.training.towers import Tower
from sensorium.two_tower import SIDES, Side, TwoTower


def write_two_tower(
    directory: Path,
    plan: ClipRecipe,
    base: TwoTower,
    features: Mapping[Side, FeatureSpec],
    heads: Mapping[Side, nn.Module],
    trained: Mapping[Side, Tower],
    scale: float,
    **facts: Any,
) -> None:
    """Write a two-tower composition.

    Args:
        directory: where to.
        plan: the recipe.
        base: the composition that the run began from.
        features: the seams of its encoders.
        heads: both heads.
        trained: the towers that learnt. Their weights are written in float32: what a few hundred small steps changed
            would be lost in half precision's steps.
        scale: of the cosines; its inverse is the temperature.
        **facts: further keys of the manifest ("data", "run").
    """
    directory.mkdir(parents=True, exist_ok=True)
    layout = features["image"].layout
    assert isinstance(layout, Grid)
    export_projector(heads["image"], layout.cells, features["image"].dim, directory, "image")
    export_projector(heads["text"], 1, features["text"].dim, directory, "text")
    files = [f"{side}.{ending}" for side in SIDES for ending in ("onnx", "safetensors")]
    spec = base.spec.model_dump(mode="json", exclude_defaults=True)
    spec["name"] = plan.name
    state: dict[str, dict[str, str]] = {"frozen": {}, "trained": {}, "began": {}}
    for side in SIDES:
        spec["encoders"][side]["part"]["source"] = base.part(side).source  # a path of one's own, made absolute
        own, before = f"{side}-tower.safetensors", getattr(base.spec.encoders, side).trained
        name, fingerprint = f"encoders.{side}", features[side].fingerprint
        if side in trained:
            weights = trained[side].published()
            save_tensors({key: torch.from_numpy(each) for key, each in weights.items()}, directory / own, torch.float32)
            encoder: Any = base.image_encoder.get() if side == "image" else base.text_encoder.get()
            state["began"][name], state["trained"][name] = fingerprint, encoder.fingerprint_of(weights)
        elif before:  # by an earlier run; frozen in this one
            shutil.copyfile(base.directory / before, directory / own)
            state["trained"][name] = fingerprint
        else:
            state["frozen"][name] = fingerprint
            continue
        spec["encoders"][side]["trained"] = own
        files.append(own)
    tokenizer = base.spec.encoders.text.tokenizer
    if tokenizer and not base.part("text").sha256:
        spec["encoders"]["text"]["tokenizer"] = str((base.directory / tokenizer).absolute())
    spec["heads"] = {side: {"weights": f"{side}.safetensors", "onnx": f"{side}.onnx"} for side in SIDES}
    spec["temperature"] = round(1 / scale, 6)
    manifest = {
        "schema": 1,
        "recipe": plan.model_dump(mode="json"),
        **facts,
        **{key: value for key, value in state.items() if value or key == "frozen"},
        "files": {name: file_sha256(directory / name) for name in files},
    }
    with hub.atomic_write(directory / FILE, "w") as file:
        file.write(yaml.safe_dump(spec, sort_keys=False))
    with hub.atomic_write(directory / MANIFEST, "w") as file:
        file.write(json.dumps(manifest, indent=1) + "\n")
