"""From a caption, a title or a file name to the nouns that a picture shows.

The rules are hand-made and were checked against contact sheets of the pictures; what they get wrong stands in
``corrections.txt``. A text whose first noun phrase does not end in a noun of the lexicon names nothing.
"""

from __future__ import annotations

import fnmatch
import functools
import re
from importlib import resources
from itertools import pairwise

from sensorium.training.data import vocabulary
from sensorium.training.data.sources import Raw
from sensorium.training.data.words import word_list

_LINK = re.compile(  # what ends the first noun phrase
    r"\b(?:with|without|in|inside|on|onto|of|by|from|for|that|which|wearing|holding|playing|riding|eating|and|or|is|to|"
    r"has|resembles|covered|worn|under|near|at|making|dancing|used|lets|facing|reading|walking|showing|behind|against|"
    r"con|e|di|da|del|della|ai|al|alla)\b"
)
_SHOWS = re.compile(r"\b(?:with|in|inside|on|and|wearing|holding|playing|riding|eating|dancing|reading|con|e)\b")
_MEASURE = re.compile(
    r"^(?:an? |some |the |two |very |small |large |big |little )*(?:pair|bunch|cluster|cup|head|glass|string|quarter|"
    r"plant|tube|slice|piece|loaf|bowl|plate|model|baby|couple|stack|bar|ball)s? of "
)
_COLOURS = frozenset(
    {"red", "green", "blue", "yellow", "orange", "purple", "pink", "brown", "black", "white", "grey", "gray", "silver"}
)
_DOING = re.compile(r"^(man|woman|person|men|women|people|boy|girl)\b(?: \w+)? \w+ing\b")
_WITH_VERB = {
    "biking": "bicycle",
    "surfing": "surfboard+sea",
    "golfing": "golf club",
    "swimming": "water",
    "climbing": "rock",
    "handball": "ball",
    "polo": "ball+water",
}


@functools.lru_cache(maxsize=1)
def corrections() -> tuple[list[tuple[str, str]], dict[str, str]]:
    """("source key-pattern", replacement) pairs and the table of foreign words, both made by hand."""
    fixes, foreign = [], {}
    for line in resources.files(__package__).joinpath("corrections.txt").read_text(encoding="utf-8").splitlines():
        line = line.partition("#")[0].strip()
        if line.startswith("~"):
            for pair in line[1:].split(","):
                word, _, english = pair.partition("=")
                foreign[word.strip()] = english.strip()
        elif line:
            pattern, _, replacement = line.partition("=>")
            fixes.append((pattern.strip(), replacement.strip()))
    return fixes, foreign


def correction(source: str, key: str) -> str | None:
    """The hand-made name for a picture, "-" to drop it, None when there is no correction; case does not count."""
    asked = f"{source} {key}".lower()
    for pattern, replacement in corrections()[0]:
        if fnmatch.fnmatchcase(asked, pattern.lower()):
            return replacement
    return None


def names_in(text: str) -> tuple[str | None, list[str]]:
    """(name, contained) from a caption or title: "A girl in a wheelchair." -> ("girl", ["wheelchair"]).

    The name is the noun that ends the first noun phrase. None when that phrase ends in an unknown word.
    """
    foreign = corrections()[1]
    text = " ".join(vocabulary.tokens(re.split(r"[.!?;:(—–]", text.strip(), maxsplit=1)[0]))
    translated = False
    for word, english in foreign.items():
        if word in text:
            text, changed = re.subn(rf"\b{re.escape(word)}\b", english, text)
            translated = translated or changed > 0
    doing = _DOING.match(text)
    if doing:
        things = [m.name for m in vocabulary.find_nouns(text[doing.end(1) :])]
        things += [thing for verb, shown in _WITH_VERB.items() if verb in text for thing in shown.split("+")]
        who = vocabulary.spellings().get(doing[1], doing[1])
        return who, [t for t in dict.fromkeys(things) if t not in (who, "mountain") or "climbing" in text]
    whole = vocabulary.find_nouns(text)
    if len(whole) == 1 and whole[0].start == 0 and whole[0].end == len(text.split()):
        return whole[0].name, []
    measure = _MEASURE.match(text)
    if measure:
        text = text[measure.end() :]
    link = _LINK.search(text)
    head = text[: link.start()] if link and text[: link.start()].strip() else text
    words = head.split()
    matches = vocabulary.find_nouns(words)
    if not matches:
        return None, []
    last = matches[-1]
    if translated and matches[0].start == 0:  # Romance noun phrases begin with their noun
        return matches[0].name, []
    trailing = [w for w in words[last.end :] if w not in word_list("trailing") and not w.endswith("ing") and len(w) > 1]
    if trailing:
        return None, []
    if last.name in ("head", "face") and len(matches) > 1:
        last, extra = matches[-2], [last.name]  # "dog head" shows a dog
    else:
        extra = []
    contains = list(extra)
    if link and _SHOWS.match(text[link.start() :]):
        contains += [m.name for m in vocabulary.find_nouns(text[link.start() :])]
    return last.name, [c for c in dict.fromkeys(contains) if c != last.name]


def name_of(source: str, raw: Raw) -> tuple[str, list[str], str] | None:
    """(name, contained nouns, text it came from) of a raw picture, or None when no word of it can be trusted."""
    fixed = correction(source, raw.key)
    if fixed == "-":
        return None
    if fixed:
        words = [part.strip() for part in fixed.split("+")]
        name, *more = [vocabulary.spellings().get(word, word) for word in words]
        return name, more, raw.texts[-1] or name
    for text in raw.texts:
        found, contains = names_in(text)
        if found:
            return found, contains, text
    hints = [h for h in raw.hints if h.lower() in vocabulary.spellings()]
    specific = {vocabulary.spellings()[h.lower()] for h in hints}
    specific -= {up for name in specific for up in vocabulary.ancestors(name)}
    if source == "openclipart" and len(specific) == 1:
        name = specific.pop()
        if name in word_list("broad") or (not vocabulary.kinds_of(name) and name not in word_list("vague")):
            return name, [], raw.texts[-1]
    return None


def colour_of(text: str, name: str) -> dict[str, str]:
    words = vocabulary.tokens(text)[:6]
    for first, second in pairwise(words):
        if first in _COLOURS and second in name.split():
            return {"color": {"gray": "grey"}.get(first, first)}
    return {}
