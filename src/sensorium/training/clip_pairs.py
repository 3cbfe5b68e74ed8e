"""Pairs of a picture and a text: captions of scenes drawn from their exact labels, and pairs of one's own from files.

A pair knows which words its text says and which words may be true of its picture. That is what tells a wrong text from
one that only was not written for this picture: in a batch of 500 scenes several show an apple.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sensorium.errors import SensoriumError, UsageError
from sensorium.training.data.questions import indefinite, listing
from sensorium.training.data.vocabulary import countable, plural

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEMPLATES = ("{}", "a picture of {}", "a photo of {}", "an image of {}", "this is {}", "there is {}", "{} in view")
PICTURES = (".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff")
_MAX_LINES = 5_000_000


@dataclass(frozen=True)
class Pair:
    """``picture`` is its place among the pooled features; ``says`` and ``true`` are words, or a text of its own."""

    picture: int
    text: str
    says: frozenset[str]
    true: frozenset[str]


def caption(labels: Mapping[str, Any], rng: np.random.Generator) -> tuple[str, frozenset[str]] | None:
    """A text about a scene and the words that it says, drawn from the labels; None where nothing is named."""
    objects = [o for o in labels["objects"] if o["name"] != "background"]
    if not objects:
        return None
    count = Counter(o["name"] for o in objects)
    first = {o["name"]: o for o in reversed(objects)}
    names = [str(name) for name in rng.permutation(sorted(count))]
    phrases, says = [], set()
    broad = len(names) == 1 and rng.random() < 0.12
    for name in names:
        o = first[name]
        noun = name
        if broad and o["also"]:  # "some fruit" is true too, and is what people search for
            noun = str(o["also"][int(rng.integers(len(o["also"])))])
        says.add(noun)
        colour = o["attributes"].get("color")
        if colour and colour not in noun and rng.random() < 0.7:
            noun = f"{colour} {noun}"
        if count[name] > 1 and countable(name) == "count":
            phrases.append(f"{NUMBERS[count[name]]} {plural(noun)}" if count[name] < len(NUMBERS) else plural(noun))
        else:
            phrases.append(indefinite(noun))
    text = listing(phrases)
    if labels["box"] and rng.random() < 0.7:
        text += f" in {indefinite(labels['box'])}"
    templates = TEMPLATES if rng.random() < 0.6 else TEMPLATES[:2]
    return templates[int(rng.integers(len(templates)))].format(text), frozenset(says)


def true_words(labels: Mapping[str, Any]) -> frozenset[str]:
    """Every word that may be true of a scene, so that no text that says it is wrong."""
    words = {w for o in labels["objects"] for w in (o["name"], *o["also"], *o["never"])}
    return frozenset(words | set(labels["maybe"]))


def scene_pairs(scenes: Sequence[Mapping[str, Any]], captions: int, seed: int) -> list[Pair]:
    """``captions`` pairs of every scene that shows something; the same for the same seed."""
    pairs = []
    for at, labels in enumerate(scenes):
        rng = np.random.default_rng([seed, at, 0xC11])
        true = true_words(labels)
        for _ in range(captions):
            drawn = caption(labels, rng)
            if drawn:
                pairs.append(Pair(at, drawn[0], drawn[1], true))
    return pairs


@dataclass(frozen=True)
class FilePair:
    """A picture file with its text."""

    picture: Path
    text: str


def read_pairs(source: Path) -> list[FilePair]:
    """Pairs of one's own.

    Args:
        source: a JSONL file with lines `{"image": "a.jpg", "text": "an apple"}` (paths count from the file;
            "caption" is taken for "text"), or a folder: a picture `a.jpg` with a text in `a.txt` beside it, else the
            name of the folder that it lies in ("red apple/1.jpg").

    Raises:
        UsageError: there is no such file or folder.
        SensoriumError: a line is no pair, or no pair is found.
    """
    if source.is_dir():
        pairs = _folder(source)
    elif source.is_file():
        pairs = _lines(source)
    else:
        raise UsageError(f"{source} is neither a folder nor a JSONL file; correct data.pairs.")
    if not pairs:
        raise SensoriumError(f"{source} holds no pair of a picture and a text; see docs/clip.md for what is read.")
    return pairs


def _folder(folder: Path) -> list[FilePair]:
    pairs = []
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in PICTURES or not path.is_file() or path.name.startswith("."):
            continue
        beside = path.with_suffix(".txt")
        if beside.is_file():
            text = beside.read_text(encoding="utf-8", errors="replace")[:2000].strip()
        else:
            text = "" if path.parent == folder else path.parent.name.replace("_", " ").strip()
        if text:
            pairs.append(FilePair(path, " ".join(text.split())))
    return pairs


def _lines(file: Path) -> list[FilePair]:
    pairs: list[FilePair] = []
    try:
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                    text = row.get("text", row.get("caption"))
                    if not isinstance(text, str) or not text.strip():
                        raise ValueError("it has no text")
                    pairs.append(FilePair(file.parent / row["image"], " ".join(text.split())[:2000]))
                except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                    raise SensoriumError(
                        f"{file}, line {number}: no pair ({str(error)[:80]}); "
                        'write {"image": "a.jpg", "text": "..."}.'
                    ) from None
                if number > _MAX_LINES:  # every pair is kept in memory
                    raise SensoriumError(f"{file} has more than {_MAX_LINES} lines; split it.")
    except (OSError, UnicodeDecodeError) as error:
        raise SensoriumError(f"{file} cannot be read as UTF-8 text ({error}); correct data.pairs.") from None
    return pairs


class Unsure:
    """Says of every two pairs of a batch whether one's text may be true of the other's picture.

    A pair of one's own has no words: its text is taken as one word, so equal texts are not set against each other.
    """

    def __init__(self, pairs: Sequence[Pair]) -> None:
        place: dict[str, int] = {}
        for pair in pairs:
            for word in pair.says:
                place.setdefault(word, len(place))
        self.words = len(place)
        self._says = [np.fromiter((place[w] for w in pair.says), np.int64) for pair in pairs]
        known: dict[int, np.ndarray] = {}  # pairs of one scene share one set
        for pair in pairs:
            if id(pair.true) not in known:
                known[id(pair.true)] = np.fromiter((place[w] for w in pair.true if w in place), np.int64)
        self._true = [known[id(pair.true)] for pair in pairs]

    def __call__(self, rows: np.ndarray, first: int = 0, count: int | None = None) -> np.ndarray:
        """For pairs ``rows`` [N]: bool [n, 2, N] for the n from ``first`` on, as `contrastive_loss` takes it."""
        own = slice(first, len(rows) if count is None else first + count)
        says, true = np.zeros((2, len(rows), max(1, self.words)), np.float32)
        for at, row in enumerate(rows):
            says[at, self._says[row]] = 1
            true[at, self._true[row]] = 1
        lengths = np.maximum(says.sum(axis=1), 1)  # a text that says nothing is true of nothing
        return np.stack(
            (
                true[own] @ says.T >= lengths[None, :] - 0.5,  # texts that may be true of our pictures
                says[own] @ true.T >= lengths[own, None] - 0.5,  # pictures that our texts may be true of
            ),
            axis=1,
        )
