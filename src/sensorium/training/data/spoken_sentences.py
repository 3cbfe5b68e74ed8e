"""What is said aloud to a projector that learns to listen: short questions, commands, sentences and phrases.

Sources: example sentences, definitions and names of WordNet, templates about common nouns, the training half of
`spoken_questions`, sentences with the names that questions are about, and phrases of random words, which a listener
cannot guess. A text is in the test half by its digest.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from sensorium.training.data import spoken, spoken_questions

MIXTURES: dict[str, dict[str, float]] = {
    "broad": {
        "examples": 0.34,
        "definitions": 0.14,
        "things": 0.14,
        "about": 0.14,
        "phrases": 0.12,
        "questions": 0.12,
    },
    "words": {"lists": 0.55, "common": 0.25, "things": 0.20},
    "names": {"named": 0.4, "entries": 0.35, "examples": 0.25},
}
"""How often each source is drawn. A word must be heard some twenty times before it is known in another sentence, so
there is a mixture that is rich in words and poor in sentences; and one of rare words, people and places."""
COMMON = 9000
"""Words of the vocabulary: the most frequent ones that are one token."""

_ABOUT = (
    "What is {a}?", "Tell me about {b}.", "What do you know about {b}?", "Why do people like {b}?", "Describe {a}.",
    "How big is {a}?", "How do you make {a}?", "Where can I find {a}?", "What does {a} look like?", "Is {a} expensive?",
    "Write a sentence about {a}.", "Give me an example of {a}.", "Why is {a} important?", "What is {a} used for?",
    "Can you explain what {a} is?", "I want to learn about {b}.", "Please tell me a story about {a}.",
    "Do you like {b}?", "How much does {a} cost?", "What is the difference between {a} and {c}?", "Name {a}.",
    "Which is better, {a} or {c}?", "Write a poem about {b}.", "What color is {a}?", "Who invented {b}?",
    "Where does {a} come from?", "What can I do with {a}?", "Is {a} the same as {c}?", "I have {a} and {c}.",
    "What should I do if I lose {a}?", "What is the history of {b}?", "How old is {a}?", "I bought {a} yesterday.",
    "What is the best {n} in the world?", "Did you see the {n}?", "The {n} is next to the {m}.", "Where is my {n}?",
    "My friend has {a}.", "There is {a} in the {m}.", "Have you ever seen {a}?", "How does {a} work?",
)  # fmt: skip
_THING = (
    "I am thinking of {x}.", "The word is {x}.", "We talked about {x}.", "Please say {x}.", "She said {x} again.",
    "Tell me more about {x}.", "I never heard of {x}.", "They were talking about {x}.", "Do you know {x}?",
    "{x} is what I mean.", "It is {x} and not {y}.", "First {x}, then {y}.", "What about {x}?", "Think of {x} and {y}.",
    "How do you spell {x}?", "Use {x} in a sentence.", "Not {x}, but {y}.", "Give me a sentence with {x}.",
)  # fmt: skip
_NAMED = (
    "Where is {x}?", "Who was {x}?", "Tell me about {x}.", "What is {x} famous for?", "I have read about {x}.",
    "Have you ever been to {x}?", "What do you know about {x}?", "{x} and {y} have nothing in common.",
    "Is {x} near {y}?", "We left {x} in the morning.", "When was that, before {x} or after {x}?", "I like {x}.",
    "They came from {x}.", "{x} is a name that everybody knows.", "Did you say {x} or {y}?", "This is about {x}.",
)  # fmt: skip
_LEADS = ("Say", "It is", "The", "Now", "What about", "Not", "First", "And", "Is it", "Of", "With", "For", "In", "To")


@dataclass(frozen=True)
class Said:
    """A text and the source that it comes from."""

    text: str
    source: str


class Sentences:
    """Draws texts.

    Args:
        encode: the tokenizer's, by which words are common or rare.
    """

    def __init__(self, encode: Callable[[str], list[int]]) -> None:
        self.encode = encode
        self.sources: dict[str, Callable[[np.random.Generator], str]] = {
            "examples": self._example,
            "definitions": self._definition,
            "phrases": self._phrase,
            "about": self._noun,
            "questions": self._question,
            "things": self._thing,
            "lists": self._list,
            "common": lambda rng: self._phrase(rng, 3000),
            "named": self._name,
            "entries": self._entry,
        }

    def draw(self, rng: np.random.Generator, split: spoken_questions.Split = "train", mixture: str = "broad") -> Said:
        """One text of a half; there are two, so "dev" and "test" are the same one. What measures has its own place
        (`spoken_questions.questions`): a text that holds one of those questions is never drawn."""
        shares = MIXTURES[mixture]
        while True:
            source = str(rng.choice(np.array(list(shares)), p=list(shares.values())))
            text = self.sources[source](rng)
            if spoken_questions.repeats_a_test(text):
                continue
            if source == "questions" or (held_out(text) == (split != "train")):
                return Said(text, source)

    @cached_property
    def words(self) -> list[str]:
        """The common words, the most frequent first: byte-pair merges are numbered in the order of frequency."""
        ids = {word: self.encode(f" {word}") for word in spoken.words() if len(word) > 1 or word in "aI"}
        single = sorted((found[0], word) for word, found in ids.items() if len(found) == 1 and not word.isupper())
        return [word for _, word in single[:COMMON]]

    @cached_property
    def nouns(self) -> list[str]:
        """The common words that WordNet has as nouns."""
        known = set(spoken.nouns())
        return [word for word in self.words[:6000] if word in known and len(word) > 2]

    @cached_property
    def examples(self) -> list[str]:
        """WordNet's example sentences of three to twelve words."""
        quoted = (text for gloss in spoken.glosses() for text in re.findall(r'"([^"]+)"', gloss))
        return list(dict.fromkeys(text.strip() for text in quoted if _plain(text)))

    @cached_property
    def definitions(self) -> list[str]:
        """WordNet's definitions of three to twelve words, up to the first semicolon."""
        first = (gloss.partition(";")[0].strip() for gloss in spoken.glosses())
        return list(dict.fromkeys(text for text in first if _plain(text)))

    @cached_property
    def entries(self) -> list[str]:
        """WordNet's terms with what they mean, "A mandible is the jaw in vertebrates": three to twelve words."""
        means = ((name, text) for name, text in spoken.entries() if re.fullmatch("[a-z' ]{3,}", name))
        told = (f"{spoken_questions.article(name)} {name} is {text}" for name, text in means)
        return [text for text in told if _plain(text)]

    @cached_property
    def names(self) -> list[str]:
        """People and places."""
        return spoken.names()

    @cached_property
    def _asked(self) -> list[str]:
        return [each.question for each in spoken_questions.questions("train", phrasings=3, all_families=True)]

    @cached_property
    def _things(self) -> list[str]:
        return spoken_questions.things()

    def _example(self, rng: np.random.Generator) -> str:
        text = _one(self.examples, rng)
        return text[:1].upper() + text[1:].rstrip(".?!") + ("?" if text.endswith("?") else ".")

    def _definition(self, rng: np.random.Generator) -> str:
        return spoken_questions.capital(_one(self.definitions, rng)) + "."

    def _list(self, rng: np.random.Generator) -> str:
        named = [_one(self._things, rng) for _ in range(int(rng.integers(2, 6)))]
        text = f"{_one(_LEADS, rng)} {', '.join(named)}"
        return text if rng.random() < 0.5 else text.replace(",", "") + "?."[int(rng.integers(2))]

    def _phrase(self, rng: np.random.Generator, most: int = COMMON) -> str:
        size = int(rng.integers(2, 7))
        chances = 1 / (1500 + np.arange(len(self.words[:most])))
        picked = rng.choice(len(chances), size=size, p=chances / chances.sum())
        text = " ".join(self.words[int(i)] for i in picked)
        return (text[:1].upper() + text[1:] + ".") if rng.random() < 0.5 else text

    def _noun(self, rng: np.random.Generator) -> str:
        n, m = _one(self.nouns, rng), _one(self.nouns, rng)
        a, c = f"{spoken_questions.article(n)} {n}", f"{spoken_questions.article(m)} {m}"
        b = f"the {n}" if rng.random() < 0.5 else n
        return spoken_questions.capital(_one(_ABOUT, rng).format(n=n, m=m, a=a, b=b, c=c))

    def _question(self, rng: np.random.Generator) -> str:
        return _one(self._asked, rng)

    def _thing(self, rng: np.random.Generator) -> str:
        x, y = _one(self._things, rng), _one(self._things, rng)
        return spoken_questions.capital(_one(_THING, rng).format(x=x, y=y))

    def _name(self, rng: np.random.Generator) -> str:
        x, y = _one(self.names, rng), _one(self.names, rng)
        return _one(_NAMED, rng).format(x=x, y=y)

    def _entry(self, rng: np.random.Generator) -> str:
        return spoken_questions.capital(_one(self.entries, rng)) + "."


def _one(pool: Sequence[str], rng: np.random.Generator) -> str:
    return pool[int(rng.integers(len(pool)))]


def _plain(text: str) -> bool:
    """Whether a text is three to twelve words and nothing else."""
    return bool(re.fullmatch(r"[A-Za-z ,'?!.]+", text)) and 3 <= len(re.findall(r"[A-Za-z']+", text)) <= 12


def held_out(text: str) -> bool:
    """Whether a text is of the test half: one in fifty."""
    return hashlib.sha256(f"said:{text.lower()}".encode()).digest()[0] % 50 == 0
