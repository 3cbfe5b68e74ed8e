"""Probabilities of labels for a picture, read from the LLM itself.

A label is scored as a whole answer to a question about the picture: the mean log-probability of its tokens, minus a
part of the same without the picture. The second term is what the label would get anyway, because it is a frequent word
(Holtzman et al. 2021, "Surface form competition", arXiv 2104.08315, subtract all of it). A softmax over the scores,
with a temperature fitted on photographs that are used for nothing else, makes them probabilities.
`benchmarks/classify.py` compares the alternatives and fits both numbers.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sensorium.arguments import shown
from sensorium.errors import UsageError
from sensorium.media import load_image
from sensorium.messages import Message

if TYPE_CHECKING:
    from sensorium.model import Model

PROMPT = "What is in this picture?"
PRIOR_WEIGHT = 0.5
"""How much of the blind score is subtracted: 0 ignores it, 1 is the pointwise mutual information."""
TEMPERATURE = 0.35
"""Divides the scores before the softmax."""
LONGEST_LABEL = 200
"""Characters of a label."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_DETERMINERS = _words(
    "a an the some no any this that these those my your his her its our their one two three four five six seven eight "
    "nine ten many several few both all each every another nothing something nobody somebody someone it he she they "
    "there yes"
)
_PREPOSITIONS = _words(
    "of on in with without at for from to by under over near beside behind between inside outside into through and or"
)
_MASS = _words(
    "air art baggage beer bread broccoli butter cheese clothing coffee corn cotton cutlery electricity equipment "
    "fabric fire fog food fruit fur furniture garlic gold grass hair hay honey ice jewellery jewelry juice leather "
    "lightning luggage lava meat metal milk mist money moss mud music nature oil paper pasta plastic rain rice rubbish "
    "salt sand seaweed silver smoke snow soil soup spaghetti spinach steam steel straw sugar sunlight sunshine tea "
    "text traffic trash vegetation water weather wheat wildlife wine wood wool"
)
_PLURALS = _words("people men women children feet teeth mice geese cattle police")
_NAMES = _words("earth jupiter mars mercury neptune pluto santa saturn uranus venus")  # also in the lexicon
_SINGULARS = _words("atlas bias canvas christmas gas lens mattress yes")
# Control characters, and the separators of lines and paragraphs (Unicode general categories).
_UNWRITABLE = ("Cc", "Zl", "Zp")


def check_labels(labels: Iterable[str]) -> list[str]:
    """The labels, stripped. Raises UsageError for what is no label, fewer than two, or one that stands twice.

    Labels that differ in case or white space alone are one label.
    """
    if isinstance(labels, (str, bytes)) or not isinstance(labels, Iterable):
        raise UsageError(f'the labels are {shown(labels)}; give a list of texts, such as ["cat", "dog"].')
    cleaned = [_cleaned(label) for label in labels]
    if len(cleaned) < 2:
        was = "were" if not cleaned else "was"
        raise UsageError(
            f"{len(cleaned)} label{'s' if not cleaned else ''} {was} given; give at least two to choose between."
        )
    first: dict[str, str] = {}
    for label in cleaned:
        same = first.setdefault(" ".join(label.casefold().split()), label)
        if same != label:
            raise UsageError(f"the labels {same!r} and {label!r} differ in case or spaces alone; give one of them.")
    if len(first) < len(cleaned):
        twice = next(label for label in cleaned if cleaned.count(label) > 1)
        raise UsageError(f"the label {twice!r} was given twice; give it once.")
    return cleaned


def _cleaned(label: object) -> str:
    if not isinstance(label, str):
        raise UsageError(f"a label is {shown(label)}; give every label as a text.")
    label = label.strip()
    if not label:
        raise UsageError("a label is empty; write what it stands for.")
    if len(label) > LONGEST_LABEL:
        raise UsageError(
            f"the label that starts with {label[:30]!r} has {len(label)} characters; use at most {LONGEST_LABEL}."
        )
    if any("\ud800" <= character <= "\udfff" for character in label):
        raise UsageError(f"the label {label!r} is not valid Unicode (it holds a lone surrogate); pass it as UTF-8.")
    if any(unicodedata.category(character) in _UNWRITABLE for character in label):
        raise UsageError(f"the label {label!r} holds control characters or line breaks; write it on one line.")
    return label


def classify(
    model: Model,
    image: Any,
    labels: Iterable[str],
    *,
    prompt: str = PROMPT,
    prior_weight: float = PRIOR_WEIGHT,
    temperature: float = TEMPERATURE,
) -> list[tuple[str, float]]:
    """Probabilities of `labels` for one picture, given that one of them is right.

    Args:
        model: the composed model.
        image: anything `load_image` takes.
        labels: at least two different texts, such as "cat" or "a red apple".
        prompt: the question that the labels answer.
        prior_weight: see `PRIOR_WEIGHT`.
        temperature: see `TEMPERATURE`; above 0.

    Returns:
        (label, probability), highest first; the probabilities sum to 1.

    Raises:
        UsageError: the labels are no texts, too few, too long, empty or repeated.
        SensoriumError: the picture cannot be read.
    """
    cleaned = check_labels(labels)
    question = [Message("user", [load_image(image), prompt])]
    answers = [as_answer(label) for label in cleaned]
    scores = model.score(question, answers).mean
    if prior_weight:
        scores = scores - prior_weight * model.score(question, answers, blind=True).mean
    scores = scores / temperature
    probabilities = np.exp(scores - scores.max())
    probabilities /= probabilities.sum()
    order = np.argsort(-probabilities, kind="stable")
    return [(cleaned[i], float(probabilities[i])) for i in order]


def as_answer(label: str) -> str:
    """A label as the model would say it: "A cat.", "An old boat.", "Scissors.", "Green grass.", "Paris.", "My dog.".

    A label with capitals is taken for a name and keeps them, unless it is one common noun of the lexicon: "Cat" is
    "cat", and "Turkey" is the bird. All others begin with one. An article is put before the name of one thing alone:
    not before a name with capitals, a plural, a mass noun, or a phrase that begins with a determiner or a preposition.
    A full stop ends it.
    """
    if label == label.capitalize() and _common(label.lower()):
        label = label.lower()
    words = label.lower().rstrip(".!?").split() or [""]
    named = label != label.lower()
    end = next((at for at, word in enumerate(words) if at and word in _PREPOSITIONS), len(words))
    head = words[end - 1]  # what it is about: "cup" of "cup of tea"
    if not (named or words[0] in _DETERMINERS or words[0] in _PREPOSITIONS or head in _MASS or _plural(head)):
        label = f"{'an' if words[0][:1] in tuple('aeiou') else 'a'} {label}"
    said = label if named else label[:1].upper() + label[1:]
    return said + ("" if said.endswith((".", "!", "?")) else ".")


def _common(word: str) -> bool:
    """Whether a word in lower case is a common noun, or the plural of one."""
    return not {word, word.removesuffix("s"), word.removesuffix("es")}.isdisjoint(_lexicon() - _NAMES)


@cache
def _lexicon() -> frozenset[str]:
    """The nouns of things that can be seen, of one word; a plain file, for training's reader of it is training's."""
    text = (Path(__file__).parents[1] / "training" / "data" / "lexicon.txt").read_text(encoding="utf-8")
    spelt = (word.strip(" +-") for word in re.split(r"[:<,=\n]", re.sub("(?m)^#.*", "", text)))
    return frozenset(word for word in spelt if word and " " not in word)


def _plural(word: str) -> bool:
    return word in _PLURALS or (word.endswith("s") and not word.endswith(("ss", "us", "is")) and word not in _SINGULARS)
