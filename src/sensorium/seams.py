"""The checks between neighbouring parts, made when a composition is loaded.

Every mismatch is one sentence that names both parts, both shapes and the file that declares them.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sensorium.errors import SensoriumError, UsageError
from sensorium.projectors.spec import find
from sensorium.prompt import TEMPLATES

if TYPE_CHECKING:
    from sensorium.backbones.spec import BackboneSpec
    from sensorium.backbones.tokenizer import Tokenizer
    from sensorium.composition import Composition
    from sensorium.encoders.base import FeatureSpec
    from sensorium.generators.base import SpeechGenerator
    from sensorium.projectors.runtime import Projector
    from sensorium.projectors.units import UnitProjector

BACKBONE = "backbone"
GENERATOR = "generators.speech"
PROBE = 127
"""Frames of a projector's trial: a prime, so that stacks of different sizes give different numbers of tokens."""
_MAX_HEADER = 8 * 1024 * 1024


def part_name(modality: str) -> str:
    """The name of a frozen encoder in a manifest: "encoders.image"."""
    return f"encoders.{modality}"


def check_backbone(composition: Composition, backbone: BackboneSpec) -> None:
    """The template and the fingerprint of the LLM. Raises UsageError or SensoriumError."""
    check_template(composition, backbone)
    check_fingerprint(composition, BACKBONE, backbone.fingerprint)


def check_template(composition: Composition, backbone: BackboneSpec) -> None:
    """The chat template that the LLM is talked to in. Raises UsageError or SensoriumError."""
    declared = composition.spec.backbone
    where = composition.where("backbone", "template")
    if declared.template not in TEMPLATES:
        raise UsageError(
            f"{where}: chat template {declared.template!r} is unknown; known templates: {', '.join(TEMPLATES)}."
        )
    if backbone.template not in (declared.template, "none", "unknown"):
        raise SensoriumError(
            f"{where}: the composition declares the chat template {declared.template!r}, but the backbone "
            f"{declared.part.file or declared.part.source} "
            f"was tuned with {backbone.template!r}; declare that one."
        )


def check_fingerprint(composition: Composition, part: str, fingerprint: str) -> None:
    """A frozen part must be the one that the trained parts were trained against. Raises SensoriumError."""
    if composition.manifest is None or not (composition.trained_files or composition.output_files):
        return
    manifest = composition.directory / "manifest.json"
    trained = composition.manifest.frozen.get(part)
    if trained is None:
        raise SensoriumError(
            f"{manifest} holds no fingerprint of the frozen part {part!r}; train the composition again."
        )
    if trained != fingerprint:
        raise SensoriumError(
            f"The frozen part {part!r} has fingerprint {fingerprint[:12]}..., but {manifest} says that the projector "
            "was trained "
            f"against {trained[:12]}...; use that part, or train a projector for this one."
        )


def check_projector(
    composition: Composition, modality: str, features: FeatureSpec, projector: Projector, backbone: BackboneSpec
) -> None:
    """Encoder -> projector -> backbone. Raises UsageError or SensoriumError."""
    declared = composition.spec.projectors[modality]  # type: ignore[index]
    encoder = composition.spec.encoders[declared.encoder]  # type: ignore[index]
    where = composition.where("projectors", modality)
    name = f"the projector {modality!r} ({declared.onnx})"
    cells = getattr(features.layout, "cells", None)
    if (projector.cells, projector.feature_dim) != (cells, features.dim):
        raise SensoriumError(
            f"{where}: {name} takes {projector.cells or 'any number'} x {projector.feature_dim} features, but the "
            f"encoder {declared.encoder!r} ({encoder.kind}) gives {cells or 'any number'} x {features.dim}; set the "
            "encoder's options as in training, or train a projector for these."
        )
    if projector.dim != backbone.dim:
        raise SensoriumError(
            f"{where}: {name} gives embeddings of width {projector.dim}, but the backbone "
            f"{composition.spec.backbone.part.file or composition.spec.backbone.part.source} takes width "
            f"{backbone.dim}; train a projector for it."
        )
    frames = PROBE if cells is None else None
    tokens, given = composition.tokens(modality, features, frames), projector.count(frames)
    fewer = find(declared.kind).may_leave_out(declared.options)
    if not (1 <= given <= tokens if fewer else given == tokens):
        raise SensoriumError(
            f"{where}: kind {declared.kind!r} with options {declared.options} means {tokens} tokens"
            f"{f' of {frames} frames' if frames else ''}, but {name} gives {given}; set the options as in training."
        )


def check_output(
    composition: Composition, output: str, projector: UnitProjector, generator: SpeechGenerator, backbone: BackboneSpec
) -> None:
    """Backbone -> output projector -> generator. Raises SensoriumError."""
    declared = composition.spec.output_projectors[output]  # type: ignore[index]
    where, name = composition.where("output_projectors", output), f"the output projector {output!r} ({declared.onnx})"
    if projector.dim != backbone.dim:
        raise SensoriumError(
            f"{where}: {name} takes hidden states of width {projector.dim}, but the backbone "
            f"{composition.spec.backbone.part.file or composition.spec.backbone.part.source} gives width "
            f"{backbone.dim}; train a projector for it."
        )
    if projector.units != len(generator.units):
        kind = composition.spec.generators[declared.generator].kind  # type: ignore[index]
        raise SensoriumError(
            f"{where}: {name} gives {projector.units} units, but the generator {declared.generator!r} ({kind}) takes "
            f"{len(generator.units)}; train a projector for it."
        )
    check_fingerprint(composition, GENERATOR, generator.units.fingerprint)


def check_lora(composition: Composition, backbone: BackboneSpec) -> None:
    """The shapes of the LoRA against the backbone, from the file's header alone. Raises SensoriumError."""
    if composition.spec.lora is None:
        return
    path = composition.file(composition.spec.lora.weights)
    shapes = safetensors_shapes(path)
    attention, keys = backbone.heads * backbone.head_dim, backbone.kv_heads * backbone.head_dim
    sizes = {  # name: (in, out)
        "q_proj": (backbone.dim, attention),
        "k_proj": (backbone.dim, keys),
        "v_proj": (backbone.dim, keys),
        "o_proj": (attention, backbone.dim),
        "gate_proj": (backbone.dim, backbone.ffn),
        "up_proj": (backbone.dim, backbone.ffn),
        "down_proj": (backbone.ffn, backbone.dim),
    }
    where, who = composition.where("lora"), f"the LoRA ({path.name})"
    for name, shape in shapes.items():
        words = name.split(".")
        side = words[3][-1] if len(words) == 4 and words[3] in ("lora_A", "lora_B") else ""
        if not side or words[0] != "layers" or not words[1].isdigit() or words[2] not in sizes:
            raise SensoriumError(
                f"{where}: {who} holds a tensor {name!r}, which is no LoRA weight of a llama-like backbone."
            )
        if int(words[1]) >= backbone.layers:
            raise SensoriumError(
                f"{where}: {who} changes layer {words[1]}, but the backbone has {backbone.layers} layers."
            )
        wanted = sizes[words[2]][0 if side == "A" else 1]
        if len(shape) != 2 or shape[1 if side == "A" else 0] != wanted:
            given = "x".join(map(str, shape))
            form = f"r x {wanted}" if side == "A" else f"{wanted} x r"
            raise SensoriumError(
                f"{where}: {who} has {name} of shape {given}, but the backbone {words[2]} needs {form}."
            )
        other = shapes.get(name[:-1] + ("B" if side == "A" else "A"))
        if other is None or (other[1] != shape[0] if side == "A" else other[0] != shape[1]):
            raise SensoriumError(f"{where}: {who} has no matching partner for {name}; train it again.")


def check_new_tokens(composition: Composition, backbone: BackboneSpec, tokenizer: Tokenizer) -> None:
    """The names of new tokens against the backbone's own, and the shapes of their rows, from the file's header alone.

    Args:
        tokenizer: the backbone's, without new tokens.

    Raises:
        UsageError: a name is a token already, or no conversation could ever use the tokens.
        SensoriumError: the file is missing or fits no such backbone or so many names.
    """
    from sensorium.backbones.new_tokens import known_name, misfit

    declared = composition.spec.new_tokens
    if declared is None:
        return
    where = composition.where("new_tokens")
    if "image" not in composition.spec.projectors:
        raise UsageError(
            f"{where}: new tokens serve conversations that hold pictures, and no projector is declared, so they could "
            "never be used; declare a projector, or leave new_tokens out."
        )
    known = known_name(tokenizer, declared.names)
    if known is not None:
        raise UsageError(
            f"{composition.where('new_tokens', 'names')}: {known!r} is a token of the backbone already; "
            "train the new tokens under other names."
        )
    path = composition.file(declared.weights)
    problem = misfit(safetensors_shapes(path), backbone, len(declared.names))
    if problem:
        raise SensoriumError(f"{where}: the new tokens ({path.name}) {problem}; train them for this backbone.")


def safetensors_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes in a safetensors file, without reading its tensors. Raises SensoriumError for any other file."""
    problem = SensoriumError(f"{path} is not a safetensors file; train or fetch the composition again.")
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _MAX_HEADER:
                raise problem
            header: Any = json.loads(file.read(length))
    except (OSError, struct.error, ValueError, RecursionError):
        raise problem from None
    if not isinstance(header, Mapping):
        raise problem
    shapes = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        shape = entry.get("shape") if isinstance(entry, Mapping) else None
        if not isinstance(shape, list) or not all(isinstance(n, int) for n in shape):
            raise problem
        shapes[str(name)] = tuple(shape)
    return shapes
