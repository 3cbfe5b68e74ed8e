"""Test scenes with exact labels, composed of cut-outs that training never showed.

The objects are the test half of the catalogue (a style and a tenth of the nouns that training holds out), on drawn
grounds and on photographs of scenery of the evaluation's own. The layouts are the suite's own, so that each row varies
one thing: which noun, how many, which side.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sensorium.evaluation.items import EvalItem
from sensorium.evaluation.photos import CAPTION, Photo

if TYPE_CHECKING:
    from PIL import Image

    from sensorium.training.data.questions import Asker
    from sensorium.training.data.scenes import Item, Placed, Pool, Scene

SEED = 20_261_121
SIDES = ("Left.", "Right.")


@dataclass(frozen=True)
class Sizes:
    """How many pictures of each kind."""

    single: int = 150
    several: int = 60
    groups: int = 60
    count: int = 100
    side: int = 100
    side_groups: int = 50


@dataclass(frozen=True)
class Drawn:
    """A finished scene: its name, its picture as PNG and its labels."""

    name: str
    data: bytes
    scene: Scene


def scene_items(
    catalogue: Sequence[Item],
    trained: Collection[str],
    sizes: Sizes = Sizes(),
    seed: int = SEED,
    grounds: Sequence[Item] = (),
) -> list[EvalItem]:
    """All questions about test scenes; the same seed gives the same pictures and words.

    Args:
        catalogue: pictures of the test split only.
        trained: nouns that training names, for the rows on unseen words.
        sizes: pictures of each kind.
        seed: of everything random.
        grounds: photographs to put objects on (`ground_items`), beside the test split's own and drawn grounds.
    """
    from sensorium.training.data.questions import Asker, Vocabulary
    from sensorium.training.data.scenes import Pool

    pool = Pool([*catalogue, *grounds])
    objects = [item for name in pool.names for item in pool.by_name[name]]
    asker = Asker(Vocabulary.from_scenes([(i.name, i.also) for i in objects]))
    maker = _Maker(pool, asker, frozenset(trained), np.random.default_rng([seed, 1]))
    return [
        *maker.single(sizes.single),
        *maker.several(sizes.several),
        *maker.groups(sizes.groups),
        *maker.count(sizes.count),
        *maker.side(sizes.side),
        *maker.side_groups(sizes.side_groups),
    ]


def ground_items(photographs: Sequence[Photo], files: Mapping[str, Path]) -> list[Item]:
    """Photographs as grounds: whatever their labels leave possible is never denied of a scene on them."""
    from sensorium.training.data.scenes import Item
    from sensorium.training.data.vocabulary import not_deniable
    from sensorium.training.data.words import word_list

    items = []
    for photo in photographs:
        if photo.id in files:
            possible = frozenset().union(*(not_deniable(word) for word in (*photo.present, *photo.unsure)))
            never = tuple(sorted(possible | set(photo.unsure) | word_list("unnoticed")))
            items.append(
                Item(
                    str(files[photo.id]),
                    "background",
                    photo.nouns[0],
                    "a",
                    also=photo.present,
                    never=never,
                    source=photo.part,
                    style="photo",
                    split="test",
                )
            )
    return items


@cache
def _encoder_names() -> frozenset[str]:
    from sensorium.encoders.imagenet import class_synonyms

    names = {name.lower() for names in class_synonyms() for name in names}
    return frozenset(names | {name.split()[-1] for name in names})


def encoder_knows(noun: str) -> bool:
    """Whether an ImageNet class is called so, or is a kind of it by its last word ("tabby cat" is a cat)."""
    return noun.lower() in _encoder_names() or noun.lower().split()[-1] in _encoder_names()


class _Maker:
    """Draws scenes of each kind and asks about them."""

    def __init__(self, pool: Pool, asker: Asker, trained: frozenset[str], rng: np.random.Generator) -> None:
        self.pool, self.asker, self.trained, self.rng = pool, asker, trained, rng

    def single(self, n: int) -> Iterator[EvalItem]:
        """One object: two yes/no questions and a caption."""
        drawn = [self._draw(f"single-{i}", [self._item()]) for i in range(n)]
        yield from self._presence(drawn, "scene")
        for scene in drawn:
            yield self._caption(scene, "scene")

    def several(self, n: int) -> Iterator[EvalItem]:
        """Two objects: two yes/no questions and a caption that should name both."""
        drawn = [self._draw(f"several-{i}", self._two()) for i in range(n)]
        yield from self._presence(drawn, "scene-several")
        for scene in drawn:
            yield self._caption(scene, "scene-several")

    def groups(self, n: int) -> Iterator[EvalItem]:
        """2x2 groups: two pictures of one broad kind, a noun each."""
        for number in range(n):
            pair = self._rivals()
            names = [item.name for item in pair]
            scenes = [self._draw(f"group-{number}-{i}", [item], names) for i, item in enumerate(pair)]
            for i, q in product(range(2), range(2)):
                word, facts = pair[q].name, {"group": f"scenes-{number}", "cell": (i, q)}
                yield self._yes_no(scenes[i], word, i == q, "scene-group", facts)

    def count(self, n: int) -> Iterator[EvalItem]:
        """One to five of the same thing."""
        from sensorium.training.data.questions import COLLECTIVE
        from sensorium.training.data.vocabulary import countable, plural

        done = 0
        while done < n:
            item = self._item()
            if countable(item.name) != "count" or item.name in COLLECTIVE:
                continue
            number = done % 5 + 1
            scene = self._draw(f"count-{done}", [item] * number)
            question = f"How many {plural(item.name)} are in this picture? Answer with a number."
            yield EvalItem(
                scene.name,
                scene.name,
                scene.data,
                "count",
                question,
                str(number),
                meta=self._facts(item.name, "scene-count"),
            )
            done += 1

    def side(self, n: int) -> Iterator[EvalItem]:
        """Two different things side by side: left or right of the other?"""
        for number in range(n):
            pair = self._two()
            scene = self._beside(f"side-{number}", pair, seed=number)
            asked = number % 2
            question = f"Is the {pair[asked].name} left or right of the {pair[1 - asked].name}?"
            facts = self._facts(pair[asked].name, "scene-side")
            yield EvalItem(scene.name, scene.name, scene.data, "choice", question, SIDES[asked], SIDES, meta=facts)

    def side_groups(self, n: int) -> Iterator[EvalItem]:
        """2x2 groups: the same two things, exchanged; "is A to the left of B?" and the reverse."""
        for number in range(n):
            pair = self._two()
            orders = (pair, pair[::-1])
            scenes = [
                self._beside(f"sides-{number}-{i}", order, seed=10_000 + number) for i, order in enumerate(orders)
            ]
            for i, q in product(range(2), range(2)):
                a, b = orders[q]
                question = f"Is the {a.name} to the left of the {b.name}? Answer yes or no."
                facts = {**self._facts(a.name, "scene-side-group"), "group": f"sides-{number}", "cell": (i, q)}
                name = f"{scenes[i].name}/{q}"
                truth, cluster = "yes" if i == q else "no", f"sides-{number}"
                yield EvalItem(
                    name,
                    scenes[i].name,
                    scenes[i].data,
                    "yesno",
                    question,
                    truth,
                    meta=facts,
                    cluster=cluster,
                    generate=False,
                )

    # What is drawn ----------------------------------------------------------------------------------------------------

    def _item(self) -> Item:
        return self.pool.item(self.rng)

    def _two(self) -> list[Item]:
        """Two things of which neither could be called the other."""
        while True:
            one, other = self._item(), self._item()
            if self._denies(one, other.name) and self._denies(other, one.name):
                return [one, other]

    def _rivals(self) -> list[Item]:
        """Two things of one broad kind, of which neither could be called the other."""
        for _ in range(200):
            one, other = self._two()
            if set(one.also) & set(other.also):
                return [one, other]
        return self._two()

    def _denies(self, item: Item, word: str) -> bool:
        """Whether a picture of `item` certainly shows no `word`."""
        from sensorium.training.data.scenes import Placed, Scene

        labels = Scene(np.zeros((1, 1, 3), np.uint8), (Placed(item, 0.5, 0.5, 1.0, 1.0),), "single").labels()
        return self.asker.deniable(word, labels, self.asker.true_words(labels))

    def _grounds(self, words: Collection[str]) -> list[Item]:
        """Photographs that certainly show none of the words, so that what is placed is all there is of them."""
        return [ground for ground in self.pool.backgrounds if all(self._lacks(ground, word) for word in words)]

    def _lacks(self, ground: Item, word: str) -> bool:
        from sensorium.training.data.scenes import Scene

        labels = Scene(np.zeros((1, 1, 3), np.uint8), (), "empty", ground=ground).labels()
        return self.asker.deniable(word, labels, set())

    def _draw(self, name: str, items: Sequence[Item], words: Collection[str] = ()) -> Drawn:
        """A scene of `items`; `words` will be asked about it besides their names."""
        from sensorium.training.data import scenes

        canvas, ground = scenes.background(self.rng, self._grounds({item.name for item in items}.union(words)))
        canvas = canvas.copy()
        places = scenes.places_for(self.rng, len(items))
        tilt = 5.0 if len(items) > 1 else 12.0
        placed = tuple(
            scenes.paste(canvas, item, x, y, min(max(size, 0.12), 0.9), self.rng, tilt=tilt)
            for item, (x, y, size) in zip(items, places)
        )
        return _drawn(name, scenes.degrade(canvas, self.rng), placed, ground)

    def _beside(self, name: str, pair: Sequence[Item], seed: int) -> Drawn:
        """Left and right at the same places and on the same background for the same seed, whatever the order."""
        from sensorium.training.data import scenes

        rng = np.random.default_rng([SEED, seed])
        canvas, ground = scenes.background(rng, self._grounds({item.name for item in pair}))
        canvas = canvas.copy()
        placed = tuple(scenes.paste(canvas, item, x, 0.5, 0.44, rng, tilt=0.0) for item, x in zip(pair, (0.25, 0.75)))
        return _drawn(name, canvas, placed, ground)

    # What is asked ----------------------------------------------------------------------------------------------------

    def _presence(self, drawn: Sequence[Drawn], kind: str) -> Iterator[EvalItem]:
        """A yes and a no question about each scene; every word is asked as often with no as with yes, or nearly so."""
        yes = []
        for scene in drawn:
            item = scene.scene.objects[int(self.rng.integers(len(scene.scene.objects)))].item
            broad = [word for word in item.also if word in self.asker.vocabulary.words]
            yes.append(str(self.rng.choice(broad)) if broad and self.rng.random() < 0.25 else item.name)
            yield self._yes_no(scene, yes[-1], True, kind)
        left = list(self.rng.permutation(yes))
        for scene in drawn:
            labels = scene.scene.labels()
            true = self.asker.true_words(labels)
            siblings = {s for o in scene.scene.objects for s in self.asker.vocabulary.siblings.get(o.item.name, ())}
            fit = [i for i, word in enumerate(left) if self.asker.deniable(str(word), labels, true)]
            if not fit:
                continue
            hard = [i for i in fit if left[i] in siblings]
            yield self._yes_no(scene, str(left.pop((hard or fit)[0])), False, kind)

    def _yes_no(
        self, scene: Drawn, word: str, truth: bool, kind: str, more: Mapping[str, Any] | None = None
    ) -> EvalItem:
        from sensorium.training.data.questions import indefinite
        from sensorium.training.data.vocabulary import countable

        verb = "Are" if countable(word) == "plural" else "Is"
        question = f"{verb} there {indefinite(word)} in this picture? Answer yes or no."
        facts = {**self._facts(word, kind), **(more or {})}
        name = f"{scene.name}/{'yes' if truth else 'no'}-{word}"
        said, group = "yes" if truth else "no", str(facts.get("group", ""))
        return EvalItem(
            name, scene.name, scene.data, "yesno", question, said, meta=facts, cluster=group, generate=kind == "scene"
        )

    def _caption(self, scene: Drawn, kind: str) -> EvalItem:
        names = tuple(dict.fromkeys(o.item.name for o in scene.scene.objects))
        also = {o.item.name: tuple(o.item.also) for o in scene.scene.objects}
        facts = {**self._facts(names[0], kind), "also": also}
        return EvalItem(f"{scene.name}/caption", scene.name, scene.data, "caption", CAPTION, nouns=names, meta=facts)

    def _facts(self, word: str, kind: str) -> dict[str, Any]:
        return {"kind": kind, "word": word, "closed": encoder_knows(word), "trained": word in self.trained}


def _drawn(name: str, canvas: Image.Image, placed: tuple[Placed, ...], ground: Item | None) -> Drawn:
    from sensorium.training.data.scenes import Scene

    image = canvas.convert("RGB")
    data = io.BytesIO()
    image.save(data, "PNG", compress_level=1)
    kind = "single" if len(placed) == 1 else "several"
    return Drawn(name, data.getvalue(), Scene(np.asarray(image), placed, kind, ground=ground))
