"""What a recipe of kind `clip` learns from: drawn, read and encoded, all of it kept in the cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sensorium.composition import file_sha256
from sensorium.encoders.base import FeatureSpec, Grid
from sensorium.errors import SensoriumError, UsageError
from sensorium.training.clip_features import encode_pictures, encode_texts, pooled_scenes, readable
from sensorium.training.clip_pairs import Pair, read_pairs, scene_pairs
from sensorium.training.clip_recipe import ClipRecipe
from sensorium.training.features import EncoderPart
from sensorium.training.scene_store import SceneStore, StorePlan, build, draw, pool_of
from sensorium.two_tower import TwoTower

if TYPE_CHECKING:
    from sensorium.training.clip_sides import Pixels

Say = Callable[[str], None]


@dataclass(frozen=True)
class Material:
    """What a run learns from.

    Attributes:
        pictures: float16 [N, 2 * dim], pooled; None where the image tower learns.
        texts: every text once.
        vectors: float16 [texts, dim]; None where the text tower learns.
        pairs, places: the pairs, and where each one's text stands among the texts.
        image, text: the encoders' seams as the run found them.
        facts: digests of the data, as checkpoint and manifest hold them.
        plan, files: the scenes and the picture files, in the order of the pictures.
    """

    pictures: np.ndarray | None
    texts: list[str]
    vectors: np.ndarray | None
    pairs: list[Pair]
    places: np.ndarray
    image: FeatureSpec
    text: FeatureSpec
    facts: dict[str, Any]
    plan: StorePlan | None
    files: list[Path]

    def pixels(self, prepare: Callable[[np.ndarray], np.ndarray]) -> Pixels:
        """The pictures themselves, for a tower that learns."""
        from sensorium.training.clip_sides import Pixels

        if self.plan is None:
            return Pixels(None, 0, self.files, prepare)
        plan, pool = self.plan, pool_of(self.plan)
        return Pixels(lambda at: draw(plan, pool, at).pixels, plan.scenes, self.files, prepare)


def gather(plan: ClipRecipe, towers: TwoTower, say: Say) -> Material:
    """Draw, read and encode what the recipe names; all of it is kept in the cache.

    Pictures of a tower that learns are not encoded, only looked at once: whether they can be read.
    """
    encoder, sentences = towers.image_encoder.get(), towers.text_encoder.get()
    blocks: list[np.ndarray] = []
    pairs: list[Pair] = []
    facts: dict[str, Any] = {}
    frozen = "image" not in plan.unfreeze
    scenes, files = None, []
    if plan.data.scenes:
        scenes = scene_plan(plan, towers, encoder.spec)
        facts["catalogue_sha256"] = file_sha256(scenes.catalogue)
        # built where the tower learns, too: it holds what each scene shows
        store = SceneStore(build(scenes, report=counting(say, "Composing and encoding scenes")), plan.data.scenes)
        if frozen:
            blocks.append(pooled_scenes(store, counting(say, "Pooling scenes")))
        pairs += scene_pairs([store[i][1] for i in range(len(store))], plan.data.captions, plan.data.seed)
    if plan.data.pairs:
        found = read_pairs(Path(plan.data.pairs))
        files = [pair.picture for pair in found]
        if frozen:
            declared, (weights, _) = towers.spec.encoders.image, towers.fetch("image")
            part = EncoderPart(declared.kind, weights, declared.options)
            rows, good = encode_pictures(files, part, encoder.spec, counting(say, "Encoding pictures"))
            blocks.append(rows)
        else:
            good = readable(files, counting(say, "Looking at pictures"))
        if not good.all():
            say(f"{int((~good).sum())} of {len(good)} pictures of {plan.data.pairs} cannot be read and are left out.")
        own = [
            Pair(plan.data.scenes + at, pair.text, frozenset({f"={pair.text}"}), frozenset({f"={pair.text}"}))
            for at, pair in enumerate(found)
            if good[at]
        ]
        pairs += own * plan.data.repeat_pairs
        facts["pairs"] = len(own)
    if len(pairs) < 2 * plan.train.processes:
        raise SensoriumError(
            f"The recipe's data give {len(pairs)} pairs, too few to set one against another; give more."
        )
    texts = sorted({pair.text for pair in pairs})
    place = {text: at for at, text in enumerate(texts)}
    encoded = None
    if "text" not in plan.unfreeze:
        encoded = encode_texts(texts, sentences, counting(say, "Encoding texts"))
    pictures = None
    if frozen:
        pictures = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
    facts |= {"scenes": plan.data.scenes, "texts": len(texts)}
    places = np.array([place[pair.text] for pair in pairs])
    return Material(
        pictures, texts, encoded, pairs, places, encoder.spec, sentences.spec, facts, scenes, files
    )  # fmt: skip


def scene_plan(plan: ClipRecipe, towers: TwoTower, features: FeatureSpec) -> StorePlan:
    """The store of the scenes that the recipe names."""
    from sensorium.training.data.catalogue import registry_catalogue

    catalogue = Path(plan.data.catalogue) if plan.data.catalogue else registry_catalogue()
    if not catalogue.is_file():
        raise SensoriumError(f"The catalogue {catalogue} does not exist or is no file; correct data.catalogue.")
    declared = towers.spec.encoders.image
    weights, _ = towers.fetch("image")
    if not isinstance(features.layout, Grid):
        raise UsageError(f"{towers.path}: the encoder {declared.kind} gives no grid; use another for pictures.")
    return StorePlan(
        catalogue, plan.data.scenes, plan.data.seed, {str(k): v for k, v in plan.data.mix.items()},
        declared.kind, weights, declared.options, features.fingerprint,
    )  # fmt: skip


def counting(say: Say, label: str) -> Callable[[int, int], None]:
    """A sentence at each tenth of a long job."""
    state = {"tenth": -1}

    def report(done: int, total: int) -> None:
        tenth = done * 10 // max(total, 1)
        if -1 < state["tenth"] < tenth and total >= 1000:  # the first call says what was there already
            say(f"{label}: {done} of {total}")
        state["tenth"] = tenth

    return report
