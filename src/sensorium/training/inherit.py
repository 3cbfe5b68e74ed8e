"""A composition written anew around what a run has trained: what the run did not touch goes along as it was."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from sensorium import hub
from sensorium.composition import FILE, MANIFEST, Composition, file_sha256
from sensorium.seams import BACKBONE, GENERATOR

SPOKEN = {"projectors": "listen", "output_projectors": "speech"}
"""Sections whose part for speech has an entry in the manifest of its own, by which run it learnt."""


def declared(base: Composition) -> dict[str, Any]:
    """``composition.yaml`` as plain values, with paths of one's own made absolute."""
    spec = base.spec.model_dump(mode="json", exclude_defaults=True)
    source = base.part(BACKBONE).source if base.spec.backbone.format == "gguf" else base.folder().source
    spec["backbone"]["part"]["source"] = source
    for section in ("encoders", "generators"):
        for name, part in spec.get(section, {}).items():
            if part.get("part"):
                part["part"]["source"] = base.part(section, name).source
    return spec


def without_speech(spec: dict[str, Any]) -> None:
    """Leave out what was trained to hear and speak with another LLM."""
    for section in ("encoders", "projectors"):
        spec.get(section, {}).pop("speech", None)
    for section in ("generators", "output_projectors"):
        spec.pop(section, None)


def keep(base: Composition, spec: Mapping[str, Any], but: Iterable[str], directory: Path) -> list[str]:
    """Copy the trained files that ``spec`` names, ``but`` those that the run writes; their names."""
    parts = [part for section in SPOKEN for part in spec.get(section, {}).values()]
    parts += [spec[name] for name in ("lora", "new_tokens") if spec.get(name)]
    named = [part[key] for part in parts for key in ("onnx", "weights") if key in part]
    kept = [name for name in dict.fromkeys(named) if name not in set(but)]
    for name in kept:
        shutil.copy2(base.file(name), directory / name)
    return kept


def entries(base: Composition, spec: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Of the base's manifest: how the parts for speech that ``spec`` names learnt, and against which frozen parts."""
    if base.manifest is None:
        return {}, {}
    before = base.manifest.model_dump(mode="json", by_alias=True)
    kept = [section for section in SPOKEN if "speech" in spec.get(section, {})]
    parts = {"projectors": "encoders.speech", "output_projectors": GENERATOR}
    told = {SPOKEN[section]: before[SPOKEN[section]] for section in kept if SPOKEN[section] in before}
    known = base.manifest.frozen
    return told, {parts[section]: known[parts[section]] for section in kept if parts[section] in known}


def save(directory: Path, spec: Mapping[str, Any], manifest: Mapping[str, Any], files: Iterable[str]) -> None:
    """Write both files, the manifest with the digests of ``files``. Raises SensoriumError when that cannot be done."""
    digests = {name: file_sha256(directory / name) for name in files}
    with hub.atomic_write(directory / FILE, "w") as text:
        text.write(yaml.safe_dump(dict(spec), sort_keys=False))
    with hub.atomic_write(directory / MANIFEST, "w") as text:
        text.write(json.dumps({**manifest, "files": digests}, indent=1) + "\n")


def write_beside(
    base: Composition,
    directory: Path,
    files: Iterable[str],
    changes: Mapping[str, Mapping[str, Any]],
    frozen: Mapping[str, str],
    facts: Mapping[str, Any],
) -> None:
    """The base composition with what a run has trained beside all that it has.

    Args:
        base: what the run began from.
        directory: where to; ``files`` lie there already.
        files: names of what was trained.
        changes: sections of ``composition.yaml`` -> parts that are new in them, by name.
        frozen: fingerprints of the frozen parts that the run saw.
        facts: further keys of the manifest.
    """
    spec = declared(base)
    for section, parts in changes.items():
        spec.setdefault(section, {}).update(parts)
    kept = keep(base, spec, files, directory)
    before: dict[str, Any] = base.manifest.model_dump(mode="json", by_alias=True) if base.manifest else {"schema": 1}
    manifest = {**before, **facts, "frozen": {**before.get("frozen", {}), **frozen}}
    save(directory, spec, manifest, [*kept, *files])
