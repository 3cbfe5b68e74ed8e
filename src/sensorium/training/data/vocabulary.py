"""Names of visible things: how a person says them, what else is true of them, and what must not be denied.

Three hand-made tables stand beside this file:

* ``lexicon.txt``   nouns with synonyms, under the categories that are true of them (is-a);
* ``together.txt``  things that a picture of one may well show or be mistaken for (never denied);
* ``imagenet.json`` a common name for each of the 1000 classes of the image encoder's own classifier.

The is-a table is written by hand: WordNet's senses put a lion under "cat".
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib import resources

from sensorium.training.data.words import word_list

_VOWEL_SOUND = re.compile(r"^(?:[aeio]|u(?!ni|ku|sb|k\b|fo\b|ti)|hour|mp3|suv\b|x-ray)", re.IGNORECASE)
_IRREGULAR = {
    "men": "man",
    "women": "woman",
    "mice": "mouse",
    "geese": "goose",
    "feet": "foot",
    "knives": "knife",
    "wolves": "wolf",
    "loaves": "loaf",
    "leaves": "leaf",
    "calves": "calf",
    "shelves": "shelf",
    "cacti": "cactus",
    "oxen": "ox",
    "potatoes": "potato",
    "tomatoes": "tomato",
    "mangoes": "mango",
    "dice": "dice",
    "babies": "baby",
}


@dataclass
class Noun:
    """One entry of the lexicon: ``name`` as usually said, other spellings, and the categories directly above it."""

    name: str
    synonyms: list[str] = field(default_factory=list)
    parents: list[str] = field(default_factory=list)
    spoken: bool = True  # False: a grouping such as "kitchenware" that no natural question names


def _read(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


@functools.lru_cache(maxsize=1)
def lexicon() -> dict[str, Noun]:
    """All nouns by their usual name, in the order of the file."""
    nouns: dict[str, Noun] = {}

    def add(spelling: str, parent: str | None, spoken: bool = True) -> Noun:
        names = [part.strip() for part in spelling.split("=") if part.strip()]
        noun = nouns.setdefault(names[0], Noun(names[0], spoken=spoken))
        noun.synonyms += [n for n in names[1:] if n not in noun.synonyms]
        if parent and parent not in noun.parents and parent != names[0]:
            noun.parents.append(parent)
        return noun

    for line in _read("lexicon.txt").splitlines():
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        head, _, members = line.partition(":")
        category, _, parents = head.partition("<")
        noun = add(category.strip().lstrip("+-"), None, spoken=not category.startswith("-"))
        noun.spoken = not category.startswith("-")
        for parent in parents.split(","):
            if parent.strip():
                add(parent.strip().lstrip("-"), None)
                add(noun.name, parent.strip().lstrip("-"))
        for member in members.split(","):
            if member.strip():
                add(member.strip(), noun.name)
    for group in ("feline", "reptilian"):
        if group in nouns:
            nouns[group].spoken = False
    return nouns


@functools.lru_cache(maxsize=1)
def spellings() -> dict[str, str]:
    """Every known spelling (synonyms and plain plurals included) -> the usual name."""
    table: dict[str, str] = {}
    for noun in lexicon().values():
        if noun.spoken:
            for spelling in (noun.name, *noun.synonyms):
                table.setdefault(spelling, noun.name)
    for spelling, name in list(table.items()):
        table.setdefault(plural(spelling), name)
    return table


def plural(noun: str) -> str:
    """The plain English plural: "berry" -> "berries", "box" -> "boxes"."""
    for many, one in _IRREGULAR.items():
        if noun == one or noun.endswith((" " + one, one) if one in ("man", "woman") else " " + one):
            return noun[: -len(one)] + many
    if re.search(r"(?:[sx]|ch|sh)$", noun):
        return noun + "es"
    if re.search(r"[^aeiou]y$", noun):
        return noun[:-1] + "ies"
    return noun + "s"


def singular(word: str) -> str:
    """The singular of a word that the lexicon may know only so; the word itself when in doubt."""
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if word.endswith("men"):
        return word[:-3] + "man"
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if re.search(r"(?:[sx]|ch|sh)es$", word):
        return word[:-2]
    if word.endswith("s") and not word.endswith(("ss", "us", "is")) and len(word) > 3:
        return word[:-1]
    return word


def countable(name: str) -> str:
    """ "count", "mass" ("some bread") or "plural" ("a pair of scissors", "some grapes")."""
    if name in word_list("plural"):
        return "plural"
    return "mass" if name in word_list("mass") else "count"


def article(name: str) -> str:
    """The indefinite article as said before ``name``: "a", "an" or "some"."""
    if countable(name) != "count":
        return "some"
    return "an" if _VOWEL_SOUND.match(name) else "a"


def ancestors(name: str) -> list[str]:
    """Every category true of ``name``, nearest first; groupings that nobody says are left out."""
    nouns, seen, queue = lexicon(), [], [name]
    while queue:
        for parent in nouns[queue.pop(0)].parents if queue and queue[0] in nouns else (queue.pop(0), ())[1]:
            if parent not in seen:
                seen.append(parent)
                queue.append(parent)
    return [word for word in seen if nouns[word].spoken and word != name]


def also(name: str) -> list[str]:
    """Other words true of a picture of ``name``: synonyms first, then categories, nearest first."""
    noun = lexicon().get(name)
    words = list(noun.synonyms) if noun else []
    for word in ancestors(name):
        words += [word, *lexicon()[word].synonyms]
    return list(dict.fromkeys(w for w in words if w != name))


def true_of(name: str) -> set[str]:
    """The name with every synonym and category: what "is there a ... ?" must answer yes to."""
    return {name, *also(name)}


@functools.lru_cache(maxsize=1)
def _together() -> tuple[dict[str, frozenset[str]], dict[str, frozenset[str]]]:
    confused: dict[str, set[str]] = {}
    parts: dict[str, set[str]] = {}
    for line in _read("together.txt").splitlines():
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        if ">" in line:
            whole, _, rest = line.partition(">")
            for name in whole.split(","):
                parts.setdefault(name.strip(), set()).update(w.strip() for w in rest.split(","))
        else:
            clique = {w.strip() for w in line.split(",")}
            for word in clique:
                confused.setdefault(word, set()).update(clique - {word})
    return {k: frozenset(v) for k, v in confused.items()}, {k: frozenset(v) for k, v in parts.items()}


@functools.cache
def not_deniable(name: str) -> frozenset[str]:
    """Words that may be true of a picture of ``name``, so that "is there a W?" must not be taught the answer no.

    These are its true words, its sub-kinds (a "dog" may be a beagle), look-alikes and likely parts or surroundings of
    any of them, with the kinds of each, all synonyms included.
    """
    confused, parts = _together()
    words = set(true_of(name)) | kinds_of(name)
    for word in list(true_of(name)) + list(kinds_of(name)):
        words |= confused.get(word, frozenset())
    for word in true_of(name):
        for part in parts.get(word, ()):
            words |= {part} | (kinds_of(part) if len(kinds_of(part)) <= 12 else frozenset())
    if "person" in words:
        words |= kinds_of("worker")  # who somebody is by trade seldom shows
        if not {"male", "female"} & set(lexicon()[name].parents if name in lexicon() else ()) and name not in (
            "man",
            "woman",
        ):
            words |= {"man", "woman", "boy", "girl", "child"}
    for word in list(words):
        usual = spellings().get(word)
        if usual:
            words |= {usual, *lexicon()[usual].synonyms}
    # the look-alike's own categories may be true as well (a toadstool taken for a mushroom may pass as a plant)
    return frozenset(words)


@functools.cache
def kinds_of(name: str) -> frozenset[str]:
    """Every noun below ``name`` in the is-a table."""
    return frozenset(n for n in lexicon() if name in ancestors(n))


def may_cooccur(first: str, second: str) -> bool:
    """True when a picture named ``first`` may truly show ``second`` (or the other way round): symmetric."""
    return second in not_deniable(first) or first in not_deniable(second)


@dataclass(frozen=True)
class Match:
    """A lexicon noun found in a text: the usual ``name``, the ``said`` spelling, and its token range."""

    name: str
    said: str
    start: int
    end: int


def tokens(text: str) -> list[str]:
    """Lower-case words; camel case, underscores and punctuation separate, inner hyphens and apostrophes stay."""
    text = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text).lower().replace("’", "'")
    return re.findall(r"[a-zà-ÿ0-9]+(?:[-'][a-zà-ÿ0-9]+)*", re.sub(r"[_/.,;:!?()]", " ", text))


def find_nouns(text: str | Sequence[str]) -> list[Match]:
    """All known nouns in the text, left to right, the longest spelling first at each place."""
    words = tokens(text) if isinstance(text, str) else list(text)
    table, found, at = spellings(), [], 0
    while at < len(words):
        for size in range(min(4, len(words) - at), 0, -1):
            said = " ".join(words[at : at + size])
            options: Iterable[str] = (
                said,
                said.replace("-", " "),
                " ".join([*words[at : at + size - 1], singular(words[at + size - 1])]),
            )
            name = next((table[o] for o in options if o in table), None)
            if name:
                found.append(Match(name, said, at, at + size))
                at += size
                break
        else:
            at += 1
    return found


@dataclass(frozen=True)
class ClassName:
    """One class of the image encoder: its index, a common short name and the other words true of it."""

    index: int
    name: str
    also: tuple[str, ...]


@functools.lru_cache(maxsize=1)
def imagenet() -> tuple[ClassName, ...]:
    """The 1000 ImageNet classes in the classifier's order."""
    return tuple(ClassName(row["index"], row["name"], tuple(row["also"])) for row in json.loads(_read("imagenet.json")))
