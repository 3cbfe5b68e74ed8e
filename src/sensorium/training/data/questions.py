"""Questions and answers about a scene whose contents are known exactly.

Drawn anew each time a scene is seen, so that text varies without storing it. The answer follows from the labels alone;
a question is asked only if the labels decide it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sensorium.training.data.vocabulary import article, countable, plural
from sensorium.training.data.words import word_list

Rng = np.random.Generator


@dataclass(frozen=True)
class QA:
    """One question with its answer; ``task`` names what it tests and ``word`` the noun it is about."""

    task: str
    question: str
    answer: str
    word: str = ""


SCENERY = word_list("photo-scenery")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")
COLLECTIVE = word_list("collective")
BOXES = ("box", "crate", "container")  # what a drawn box may be called


def indefinite(noun: str) -> str:
    """``noun`` as it stands after "there is": "an apple", "food", "scissors"."""
    return f"{article(noun)} {noun}" if countable(noun) == "count" else noun


def sentence(text: str) -> str:
    """First letter upper, full stop."""
    return text[:1].upper() + text[1:] + "."


def listing(parts: Sequence[str], word: str = "and") -> str:
    """ "a, b and c"."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} {word} {parts[-1]}"


@dataclass(frozen=True)
class Vocabulary:
    """What may be asked about.

    Attributes:
        words: every noun a question may name.
        weights: how often each is drawn as an absent word, summing to 1.
        siblings: for a noun, others of the same category: hard negatives.
        compatible: for a noun, words that may be true where it is (so never denied).
    """

    words: tuple[str, ...]
    weights: np.ndarray
    siblings: Mapping[str, tuple[str, ...]]
    compatible: Mapping[str, frozenset[str]]

    @classmethod
    def from_scenes(
        cls,
        objects: Collection[tuple[str, Sequence[str]]],
        compatible: Mapping[str, Collection[str]] | None = None,
        common: Collection[str] = (),
    ) -> Vocabulary:
        """Build from (name, other true words) of every object; ``common`` words are drawn more often."""
        counts: Counter[str] = Counter()
        members: dict[str, set[str]] = {}
        for name, also in objects:
            counts[name] += 1
            counts.update(also)
            for category in also:
                members.setdefault(category, set()).add(name)
        words = tuple(sorted(counts))
        weights = np.array([min(counts[w], 60) ** 0.5 * (3.0 if w in common else 1.0) for w in words])
        siblings: dict[str, set[str]] = {}
        for names in members.values():
            if 2 <= len(names) <= 150:
                for name in names:
                    siblings.setdefault(name, set()).update(names - {name})
        return cls(
            words,
            weights / weights.sum(),
            {k: tuple(sorted(v)) for k, v in siblings.items()},
            {k: frozenset(v) for k, v in (compatible or {}).items()},
        )


def balanced(asker: Asker, scenes: Sequence[Mapping[str, Any]], rng: Rng) -> Asker:
    """An asker whose words are denied as often as they are affirmed.

    "Is there an animal?" is true of a quarter of all scenes, so without this a model learns that animals are there, not
    to look. The weight of an absent word is its rate among affirmed words over its chance to be deniable.
    """
    vocabulary = asker.vocabulary
    place = {word: i for i, word in enumerate(vocabulary.words)}
    affirmed = np.full(len(place), 0.3)
    with_objects = [scene for scene in scenes if scene["objects"]]
    for scene in with_objects:
        for _ in range(3):
            qa = asker.presence(scene, rng, yes=True)
            if qa and qa.word in place:
                affirmed[place[qa.word]] += 1
    few = with_objects[:: max(1, len(with_objects) // 150)]
    true = [asker.true_words(scene) for scene in few]
    deniable = np.array([sum(asker.deniable(w, s, t) for s, t in zip(few, true)) for w in vocabulary.words]) / max(
        len(few), 1
    )
    weights = affirmed / np.maximum(deniable, 0.05)
    return Asker(replace(vocabulary, weights=weights / weights.sum()))


class Asker:
    """Draws questions for scenes given as plain metadata.

    A scene is what ``Scene.labels`` gives: ``kind``, ``box``, ``photo`` (the background is a photograph), ``maybe``
    (words that the background may make true) and ``objects``, each with ``name``, ``also``, ``never``, ``attributes``,
    ``x``, ``y``, ``w``, ``h``, ``inside``.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary

    def true_words(self, scene: Mapping[str, Any]) -> set[str]:
        """Every word that the labels say is true of the scene."""
        words = {w for o in scene["objects"] for w in (o["name"], *o["also"])}
        return words | ({scene["box"]} if scene["box"] else set())

    def deniable(self, word: str, scene: Mapping[str, Any], true: set[str]) -> bool:
        """Whether the labels decide that ``word`` is absent."""
        if word in true or (scene["photo"] and word in SCENERY) or (scene["box"] and word in BOXES):
            return False
        if word in scene.get("maybe", ()):
            return False
        compatible = self.vocabulary.compatible
        for o in scene["objects"]:
            if word in o["never"] or word in compatible.get(o["name"], ()):
                return False
            head, asked = o["name"].split()[-1], word.split()[-1]
            if head == asked or word in o["name"].split() or o["name"] in word.split():
                return False
        return True

    def absent(self, scene: Mapping[str, Any], rng: Rng, true: set[str], hard: float = 0.3) -> str | None:
        """A word that is not true of the scene; with probability ``hard`` a sibling of something that is there."""
        vocabulary = self.vocabulary
        for _ in range(12):
            word = ""
            if scene["objects"] and rng.random() < hard:
                name = scene["objects"][int(rng.integers(len(scene["objects"])))]["name"]
                siblings = vocabulary.siblings.get(name, ())
                if siblings:
                    word = siblings[int(rng.integers(len(siblings)))]
            word = word or vocabulary.words[int(rng.choice(len(vocabulary.words), p=vocabulary.weights))]
            if self.deniable(word, scene, true):
                return word
        return None

    def twin(self, scene: Mapping[str, Any]) -> str:
        """Words that say what the labels know: what a model that reads text is told in the picture's place."""
        objects = sorted(scene["objects"], key=lambda o: o["x"])
        if not objects:
            return "(A picture of nothing in particular.)"
        said = listing([_phrase(o) for o in objects])
        where = f" in {indefinite(scene['box'])}" if scene["box"] else ""
        order = ", from left to right" if len(objects) > 1 else ""
        return f"(A picture of {said}{where}{order}.)"

    # One method a task; each returns None when the labels do not decide it -------------------------------------------

    def presence(self, scene: Mapping[str, Any], rng: Rng, yes: bool | None = None) -> QA | None:
        """Is there an X? Half yes, half no."""
        true = self.true_words(scene)
        yes = bool(rng.random() < 0.5) if yes is None else yes
        if yes and scene["objects"]:
            o = scene["objects"][int(rng.integers(len(scene["objects"])))]
            word = o["name"] if rng.random() < 0.5 or not o["also"] else o["also"][int(rng.integers(len(o["also"])))]
        elif not yes:
            word = self.absent(scene, rng, true) or ""
        else:
            return None
        if not word:
            return None
        inside = scene["kind"] == "box" and rng.random() < 0.6
        forms: tuple[str, ...] = (
            "Is there {} in this picture? Answer yes or no.",
            "Is there {} in this picture? Answer yes or no.",
            "Is there {} in this picture? Answer yes or no.",
            "Is there {} in this picture?",
            "Does this picture show {}?",
            "Is there {} in the picture?",
            "Can you see {}?",
        )
        if inside:
            box = scene["box"]
            forms = (f"Is there {{}} in the {box}?", f"Does this {box} contain {{}}? Answer yes or no.")
        question = forms[int(rng.integers(len(forms)))].format(indefinite(word))
        if countable(word) == "plural":
            question = question.replace("Is there", "Are there")
        return QA("yesno", question, "Yes." if yes else "No.", word)

    def describe(self, scene: Mapping[str, Any], rng: Rng) -> QA | None:
        """One sentence about everything."""
        objects = sorted(scene["objects"], key=lambda o: o["x"])
        if not objects:
            return None
        phrases = [_phrase(o) for o in objects]
        names = [o["name"] for o in objects]
        if scene["kind"] == "count" or len(set(names)) == 1 < len(names):
            groups = Counter(names)
            said = [f"{NUMBERS[n]} {plural(name)}" if n > 1 else indefinite(name) for name, n in groups.most_common()]
            text = listing(said)
        elif scene["box"]:
            text = f"{indefinite(scene['box'])} with {listing(phrases)} in it"
        elif len(objects) == 2 and objects[1]["x"] - objects[0]["x"] > 0.2:
            text = f"{phrases[0]} on the left and {phrases[1]} on the right"
        else:
            text = listing(phrases)
        forms = ("Describe this picture.", "What does this picture show?", "Describe the picture in one sentence.",
                 "What do you see in this picture?")  # fmt: skip
        return QA("describe", forms[int(rng.integers(len(forms)))], sentence(text), names[0])

    def what(self, scene: Mapping[str, Any], rng: Rng) -> QA | None:
        """Name the one thing, or the one thing of a category."""
        names = {o["name"] for o in scene["objects"]}
        if len(names) == 1:
            o = scene["objects"][0]
            kinds = [c for c in o["also"] if c in ("animal", "bird", "fruit", "vegetable", "vehicle", "flower", "food")]
            if kinds and rng.random() < 0.4:
                return QA("what", f"What {kinds[0]} is this?", sentence(indefinite(o["name"])), o["name"])
            forms = ("What is in this picture?", "What is this?", "What object is shown here?")
            return QA("what", forms[int(rng.integers(3))], sentence(indefinite(o["name"])), o["name"])
        return None

    def which(self, scene: Mapping[str, Any], rng: Rng) -> QA | None:
        """Pick the word that is there among words that are not."""
        if not scene["objects"]:
            return None
        true = self.true_words(scene)
        o = scene["objects"][int(rng.integers(len(scene["objects"])))]
        wrong = [w for w in (self.absent(scene, rng, true) for _ in range(int(rng.integers(1, 4)))) if w]
        if not wrong:
            return None
        options = [indefinite(w) for w in sorted({*wrong, o["name"]})]  # a set's order differs between processes
        rng.shuffle(options)
        question = f"Which of these is in the picture: {listing(options, 'or')}?"
        return QA("which", question, sentence(indefinite(o["name"])), o["name"])

    def count(self, scene: Mapping[str, Any], rng: Rng) -> QA | None:
        """How many X are there? Only of what was placed: a photograph of an apple may show three."""
        if not scene["objects"] or scene["kind"] == "photo":
            return None
        names = Counter(o["name"] for o in scene["objects"])
        name = sorted(names)[int(rng.integers(len(names)))]
        if countable(name) != "count" or name in COLLECTIVE:
            return None
        if not _only(name, scene):
            return None
        forms = ("How many {} are there?", "How many {} are in this picture? Answer with a number.")
        return QA("count", forms[int(rng.integers(2))].format(plural(name)), f"{names[name]}.", name)

    def colour(self, scene: Mapping[str, Any], rng: Rng) -> QA | None:
        """What colour is the X? Only where the catalogue is certain (see also ``Scene.labels`` on grey pictures)."""
        names = Counter(o["name"] for o in scene["objects"])
        coloured = [o for o in scene["objects"] if o["attributes"].get("color") and names[o["name"]] == 1]
        coloured = [o for o in coloured if _only(o["name"], scene)]
        if not coloured:
            return None
        o = coloured[int(rng.integers(len(coloured)))]
        return QA("colour", f"What color is the {o['name']}?", sentence(o["attributes"]["color"]), o["name"])

    def side(self, scene: Mapping[str, Any], rng: Rng) -> QA | None:
        """Left or right, of each other or of the picture."""
        objects = sorted(scene["objects"], key=lambda o: o["x"])
        names = Counter(o["name"] for o in objects)
        if len(objects) == 1:
            o = objects[0]
            if abs(o["x"] - 0.5) < 0.15:
                return None
            side = "left" if o["x"] < 0.5 else "right"
            return QA("side", f"Is the {o['name']} on the left or on the right?", sentence(side), o["name"])
        unique = [o for o in objects if names[o["name"]] == 1 and _only(o["name"], scene)]
        if len(unique) < 2 or unique[-1]["x"] - unique[0]["x"] < 0.2:
            return None
        first, last = unique[0], unique[-1]
        draw = rng.random()
        if draw < 0.4:
            a, b = (first, last) if rng.random() < 0.5 else (last, first)
            side = "left" if a is first else "right"
            return QA("side", f"Is the {a['name']} left or right of the {b['name']}?", sentence(side), a["name"])
        if draw < 0.7 and len(objects) == 2:
            o, side = (first, "left") if rng.random() < 0.5 else (last, "right")
            return QA("side", f"What is on the {side}?", sentence(indefinite(o["name"])), o["name"])
        a, b = (first, last) if rng.random() < 0.5 else (last, first)
        answer = "Yes." if a is first else "No."
        return QA("side", f"Is the {a['name']} to the left of the {b['name']}? Answer yes or no.", answer, a["name"])

    def ask(self, scene: Mapping[str, Any], rng: Rng, n: int, mix: Mapping[str, float] | None = None) -> list[QA]:
        """``n`` different questions; a yes/no pair always has one yes and one no, so the answer follows the picture."""
        tasks: dict[str, Callable[[Mapping[str, Any], Rng], QA | None]] = {
            "describe": self.describe, "what": self.what, "which": self.which, "count": self.count,
            "colour": self.colour, "side": self.side,
        }  # fmt: skip
        mix = mix or {
            "yesno": 0.55,
            "describe": 0.14,
            "what": 0.08,
            "which": 0.06,
            "count": 0.06,
            "colour": 0.03,
            "side": 0.08,
        }
        kinds = list(mix)
        weights = np.array([mix[k] for k in kinds])
        chosen: list[QA] = []
        seen: set[str] = set()
        if not scene["objects"]:  # a bare background: the labels decide only what is not there
            n, kinds, weights = min(n, 4), ["yesno"], np.ones(1)

        def add(qa: QA | None) -> None:
            if qa is not None and qa.question not in seen:
                seen.add(qa.question)
                chosen.append(qa)

        for _ in range(4 * n):
            if len(chosen) >= n:
                break
            task = kinds[int(rng.choice(len(kinds), p=weights / weights.sum()))]
            if task == "yesno":
                pair = [self.presence(scene, rng, yes=True), self.presence(scene, rng, yes=False)]
                if scene["objects"] and any(qa is None or qa.question in seen for qa in pair):
                    continue  # half a pair would make an answer likelier whatever the picture shows
                if rng.random() < 0.5:  # the last pair may be cut
                    pair.reverse()
                for qa in pair:
                    add(qa)
            else:
                add(tasks[task](scene, rng))
        return chosen[:n]


def _only(name: str, scene: Mapping[str, Any]) -> bool:
    """Whether "the X" means objects of this name alone: nothing else is one too, nor may the background show one."""
    if name in scene.get("maybe", ()) or (scene["photo"] and scene["kind"] != "photo" and name in SCENERY):
        return False
    if scene["box"] and name in BOXES:
        return False
    return not any(name in (*o["also"], *o["never"]) for o in scene["objects"] if o["name"] != name)


def _phrase(o: Mapping[str, Any]) -> str:
    colour = o["attributes"].get("color")
    name = o["name"]
    return indefinite(f"{colour} {name}" if colour and colour not in name else name)
