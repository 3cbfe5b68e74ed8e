"""Questions to ask aloud that have one right answer among two to four: for training, and to measure what is understood.

There are three splits. "train" and "dev" are halves of one table with the same families of questions: what a question
is about (a country, an animal, a word) is in one half alone, by a digest, in whatever family it stands. Training looks
at "dev" to choose. "test" is a table of its own, with other families too, about nothing that the first asks about or
answers; its families were chosen by what the LLM reads, and nothing is ever chosen by what is heard of them.

A choice never repeats what was asked about, so that who understood nothing is right as often as chance: wrong choices
are right answers of other questions of the family.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np

Split = Literal["train", "dev", "test"]
TABLE = Path(__file__).with_name("spoken_questions.txt")
TEST_TABLE = Path(__file__).with_name("spoken_questions_test.txt")
CHOICES = 4
DEV_SHARE = 3  # one in so many things of `TABLE` is in the development half
UNSURE = ("colour", "kind", "which", "size")
"""Families that SmolLM2-135M answers no better than 60 % right when it reads them: good to hear, not to measure by."""
UNSURE_IN_TEST = (
    "past", "job", "place", "use", "made", "wear", "body", "number", "sum", "next", "first", "animal", "sport", "sound",
    "famous",
)  # fmt: skip
"""Families of `TEST_TABLE` of which it reads less than 60 % right, in the layout of training or of the scorecard."""


@dataclass(frozen=True)
class Family:
    """A family of questions: phrasings with {x} for what is asked about, and (thing, answer)."""

    name: str
    phrasings: tuple[str, ...]
    items: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class SpokenQuestion:
    """A question, its choices in an order without meaning, the right one, and which family it is of."""

    question: str
    choices: tuple[str, ...]
    answer: str
    family: str


_MEASURED: tuple[Split, ...] = ("dev", "test")


def held_out(thing: str) -> bool:
    """Whether questions about a thing are in the development half; of an article in front, nothing depends."""
    bare = thing.lower().removeprefix("the ").removeprefix("a ").removeprefix("an ")
    return hashlib.sha256(f"spoken:{bare}".encode()).digest()[0] % DEV_SHARE == 0


def questions(split: Split, phrasings: int | None = 1, *, all_families: bool = False) -> list[SpokenQuestion]:
    """The questions of a split, in a fixed order, each thing in so many phrasings (as far as its family has them).

    Args:
        split: "train"; "dev", to choose by; "test", for results alone.
        phrasings: at most so many for each thing; None is all.
        all_families: with those that the LLM itself is unsure of (`UNSURE`, `UNSURE_IN_TEST`).
    """
    found = []
    fresh = split == "test"
    for family in read(TEST_TABLE if fresh else TABLE):
        if family.name in (UNSURE_IN_TEST if fresh else UNSURE) and not all_families:
            continue
        items = [(x, answer) for x, answer in family.items if fresh or held_out(x) == (split == "dev")]
        for x, answer in items:
            rng = _rng(f"{family.name}:{x}:{answer}")
            for k in rng.permutation(len(family.phrasings))[:phrasings]:
                made = _question(family, family.phrasings[int(k)], x, answer, items, rng)
                if made is not None:
                    found.append(made)
    return found


def things() -> list[str]:
    """Everything that is asked about or answered in "train" and "dev": what a training vocabulary should know. What is
    a question as a whole is none of it, nor is anything of "test"."""
    return sorted({word for family in read() for item in family.items for word in item if not _asks(word)})


def repeats_a_test(text: str) -> bool:
    """Whether a text holds a question of "dev" or "test" as a whole, in any of its phrasings ("the opposite of winter"
    is not that of win)."""
    lower = text.lower()
    return any(question in lower and re.search(rf"{re.escape(question)}(?!\w)", lower) for question in _tests())


@cache
def _tests() -> tuple[str, ...]:
    asked = [each for split in _MEASURED for each in questions(split, None, all_families=True)]
    return tuple(each.question.lower().rstrip("?.") for each in asked)


def _asks(thing: str) -> bool:
    return thing.split()[0] in ("What", "Which", "Who")


@cache
def read(table: Path = TABLE) -> tuple[Family, ...]:
    """The families of a table."""
    heads: list[tuple[str, list[str]]] = []
    for line in table.read_text(encoding="utf-8").splitlines():
        if line.startswith("="):
            heads.append((line[1:].strip(), []))
        elif line and not line.startswith("#"):
            heads[-1][1].append(line)
    made: dict[str, Family] = {}
    for head, lines in heads:
        name, _, rest = head.partition(": ")
        rest, _, of = rest.partition(" @ ")
        several = rest.endswith("*")
        phrasings = tuple(each.strip() for each in rest.removesuffix("*").split("|"))
        pairs = [line.partition(": ")[::2] for line in lines]
        items = made[of].items if of in made else tuple(pairs)
        if several:
            items = tuple((x.strip(), answer) for answer, xs in pairs for x in xs.split(","))
        elif of == name:  # the larger one is the answer; what it is compared with takes its turn
            items = tuple((small.strip(), large) for large, smalls in pairs for small in smalls.split(","))
        made[name] = Family(name, phrasings, items)
    return tuple(made.values())


def _question(
    family: Family, phrasing: str, x: str, answer: str, items: list[tuple[str, str]], rng: np.random.Generator
) -> SpokenQuestion | None:
    others = sorted({other for _, other in items if other != answer and other.lower() not in x.lower()})
    fields = {"x": x, "a": article(x), "named": named(x)}
    if family.name == "kind":
        choices = [answer, *(others[int(i)] for i in rng.permutation(len(others))[:1])]
        rng.shuffle(choices)
        fields["options"] = " or ".join(f"{article(choice)} {choice}" for choice in choices)
    elif family.name == "which":
        wrong = [thing for thing, kind in items if kind != answer]
        choices = [x, wrong[int(rng.integers(len(wrong)))]]
        rng.shuffle(choices)
        fields.update(a=article(answer), kind=answer, first=named(choices[0]), second=named(choices[1]))
        answer = x
    elif family.name == "size":
        choices = [x, answer]
        rng.shuffle(choices)
        fields.update(x=choices[0], a=article(choices[0]), answer2=choices[1], b=article(choices[1]))
    else:
        others = [other for other in others if other.lower() != x.lower()]
        choices = [answer, *(others[int(i)] for i in rng.permutation(len(others))[: CHOICES - 1])]
        rng.shuffle(choices)
    text = phrasing.format(**fields)
    if len(choices) < 2:
        return None
    return SpokenQuestion(capital(text), tuple(capital(c) + "." for c in choices), capital(answer) + ".", family.name)


def article(noun: str) -> str:
    """a or an."""
    return "an" if noun[0].lower() in "aeio" else "a"


def capital(text: str) -> str:
    """With a capital letter in front."""
    return text[:1].upper() + text[1:]


def named(thing: str) -> str:
    """A thing with its article, where it has one."""
    bare = thing[0].isupper() or thing in {"red", "blue", "green", "yellow", "purple", "pink", "brown", "tea", "coffee",
                                          "milk", "juice", "beer", "wine", "water", "lemonade"}  # fmt: skip
    return thing if bare else f"{article(thing)} {thing}"


def _rng(text: str) -> np.random.Generator:
    return np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big"))
