"""`sensorium features`: fills what a recipe trains on, tells what the caches hold, and makes room."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sensorium import console, hub
from sensorium.errors import UsageError
from sensorium.training import feature_upkeep as upkeep
from sensorium.training.data.formats.reader import Reader
from sensorium.training.data.formats.readers import open_set
from sensorium.training.data.formats.sample import MediaRef, Sample
from sensorium.training.features import EncoderPart, FeatureCache
from sensorium.training.kinds import PICTURES, kind_of
from sensorium.training.scene_store import StorePlan, build

SHOWN = 10  # broken media that are named one by one


@dataclass
class Wanted:
    """What a recipe needs: stores of scenes, data sets whose pictures its encoder sees, by number format, and pictures
    of no set."""

    part: EncoderPart
    scenes: list[StorePlan] = field(default_factory=list)
    sets: list[tuple[str, Reader]] = field(default_factory=list)
    media: list[MediaRef] = field(default_factory=list)


def fill_recipe(
    recipe: Path, overrides: Sequence[str] = (), *, engine: str = "local", workers: int | None = None
) -> list[Path]:
    """Compute the frozen features of all that a recipe trains on, of either kind.

    Args:
        recipe, overrides: the recipe.
        engine, workers: where; see `engines.spread`.

    Returns:
        The directories that hold them.

    Raises:
        UsageError: the recipe is wrong, or of a kind that sees no pictures.
        KeyboardInterrupt: interrupted; what is done is kept, and a sentence said so.
    """
    try:
        kind = kind_of(recipe, overrides)
        if kind not in (PICTURES, "clip"):
            raise UsageError(
                f"{recipe} is of kind {kind}, and features are cached of pictures alone; its training keeps its own."
            )
        wanted = _of_clip(recipe, overrides) if kind == "clip" else _of_stages(recipe, overrides)
        directories = []
        for plan in wanted.scenes:
            with console.counting("Composing and encoding scenes") as report:
                directories.append(build(plan, workers, report, engine))
        for dtype in dict.fromkeys(dtype for dtype, _ in wanted.sets):
            readers = [reader for kept, reader in wanted.sets if kept == dtype]
            directories.append(_fill_sets(readers, wanted.part, dtype, engine, workers))
        if wanted.media:
            directories.append(_fill_media(wanted.media, wanted.part, "fp16", engine, workers))
        return list(dict.fromkeys(directories))
    except KeyboardInterrupt:
        console.complain("Interrupted; all finished shards are kept, and the same command goes on from there.")
        raise


def _fill_sets(readers: Sequence[Reader], part: EncoderPart, dtype: str, engine: str, workers: int | None) -> Path:
    """Records that are no samples are left to training and to `sensorium data check`, which say so."""
    samples = (sample for reader in readers for sample in reader.samples())
    media = [medium for sample in samples if isinstance(sample, Sample) for medium in sample.media]
    return _fill_media(media, part, dtype, engine, workers)


def _fill_media(media: Sequence[MediaRef], part: EncoderPart, dtype: str, engine: str, workers: int | None) -> Path:
    with FeatureCache.of(part, dtype) as cache, console.counting("Encoding pictures") as report:
        filled = cache.fill(media, part, workers, report, engine)
    reasons = list(filled.broken.values())
    for reason in reasons[:SHOWN]:
        console.complain(reason)
    if len(reasons) > SHOWN:
        console.complain(f"{len(reasons) - SHOWN} more media are broken; `sensorium data check` names them.")
    return cache.directory


def _of_stages(recipe: Path, overrides: Sequence[str]) -> Wanted:
    from sensorium.training.frozen import obtain
    from sensorium.training.recipe import load_recipe

    plan = load_recipe(recipe, overrides)
    frozen = obtain(plan)
    declared: Any = frozen.composition.spec.encoders["image"]
    wanted = Wanted(EncoderPart(declared.kind, frozen.encoder, declared.options))
    wanted.scenes = list(filter(None, frozen.stores))
    wanted.sets = [
        (stage.data.features, open_set(one.path, one.kind, media=Path(one.media) if one.media else None))
        for stage in plan.plan()
        for one in stage.data.sets
    ]
    return wanted


def _of_clip(recipe: Path, overrides: Sequence[str]) -> Wanted:
    from sensorium.training.clip_material import scene_plan
    from sensorium.training.clip_pairs import read_pairs
    from sensorium.training.clip_run import read_recipe
    from sensorium.two_tower import TwoTower

    plan = read_recipe(recipe, overrides)
    towers = TwoTower(plan.composition)
    declared, (weights, _) = towers.spec.encoders.image, towers.fetch("image")
    wanted = Wanted(EncoderPart(declared.kind, weights, declared.options))
    if plan.data.scenes:
        wanted.scenes.append(scene_plan(plan, towers, towers.image_encoder.get().spec))
    if plan.data.pairs and "image" not in plan.unfreeze:
        wanted.media = [MediaRef(str(each.picture), each.picture) for each in read_pairs(Path(plan.data.pairs))]
    return wanted


def describe(root: Path | None = None) -> dict[str, Any]:
    """What the cache of features holds, ready for JSON: sizes in bytes, when each was used last."""
    root = root or hub.cache_dir("features")
    spaces: dict[Path, dict[str, Any]] = {}
    for unit in upkeep.units(root):
        media = unit.kind == "media"
        place = unit.path.parent if media else unit.path
        entry = spaces.setdefault(
            place, {"kind": unit.kind, "directory": str(place), "bytes": 0, "files": 0, "used": 0.0}
        )
        entry["bytes"] += unit.size
        entry["files"] += 1 if media else len(list(place.glob("*.npy")))
        entry["used"] = max(entry["used"], unit.used)
        if media and "encoder" not in entry:
            entry |= _space(unit.path)
    for place in (root / "pictures", root / "texts"):  # of two-tower recipes
        sizes = [file.stat().st_size for file in place.glob("*.npy")]
        if sizes:
            spaces[place] = {
                "kind": place.name, "directory": str(place), "bytes": sum(sizes), "files": len(sizes),
                "used": place.stat().st_mtime,
            }  # fmt: skip
    return {"limit": upkeep.bound(), "directory": str(root), "held": list(spaces.values())}


def table(held: dict[str, Any]) -> str:
    """`describe` for people."""
    lines = []
    for entry in held["held"]:
        days = max(0.0, time.time() - entry["used"]) / 86400
        what = f"{entry['dtype']}, encoder {entry['encoder'][:12]}" if "encoder" in entry else ""
        lines.append(
            f"{entry['kind']:<8}  {upkeep.human(entry['bytes']):>8}  {entry['files']:>6} files  used {days:.0f} days "
            f"ago  {Path(entry['directory']).name}  {what}".rstrip()
        )
    if "freed" in held:
        lines.append(f"{upkeep.human(held['freed'])} freed")
    total = sum(entry["bytes"] for entry in held["held"])
    lines.append(f"{upkeep.human(total)} in {held['directory']}; media may take {upkeep.human(held['limit'])}")
    return "\n".join(lines) + "\n"


def prune(size: str) -> int:
    """Leave at most so much ("20GB") of media features and scenes, least recently used first; gives the bytes freed."""
    root = hub.cache_dir("features")
    limit = upkeep.parse_size(size)
    upkeep.remove_stale(root)
    return upkeep.evict(root, limit, scenes=True)


def _space(shard: Path) -> dict[str, Any]:
    """What a shard says of its space: encoder, dtype, dim, cells."""
    try:
        with shard.open("rb") as file:
            header = json.loads(file.read(min(int.from_bytes(file.read(8), "little"), 1 << 16)))
        return dict(json.loads(header["__metadata__"]["space"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
