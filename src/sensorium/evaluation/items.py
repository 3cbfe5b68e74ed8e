"""What a suite asks and what it gets back, free of any one model.

A `Subject` is whatever is examined: the composed model, a baseline, a fake in a test. It is handed a picture and a
question and nothing else, so no answer can leak into it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

Task = Literal["yesno", "caption", "count", "choice"]


@dataclass(frozen=True, eq=False)
class EvalItem:
    """One question about one picture, with its truth.

    Attributes:
        id: unique in the suite.
        picture: name of the picture.
        image: anything that `media.load_image` takes.
        task: what is asked for: yes or no, a caption, a number, one of `choices`.
        question: the exact words.
        answer: "yes" or "no", the number, the right choice; empty for captions.
        choices: for `choice`.
        nouns: the main things of the picture, any of which a caption should name.
        meta: facts for rows and subsets: word, closed (a class of the encoder names it), trained (training saw it),
            group and cell (2x2 groups), present, unsure, caption, kind (pictures are shuffled within a kind).
        cluster: what items are independent of each other by; the picture, if empty.
        generate: for yes or no: also let the subject write an answer, not only weigh yes against no.
    """

    id: str
    picture: str
    image: Any
    task: Task
    question: str
    answer: str = ""
    choices: tuple[str, ...] = ()
    nouns: tuple[str, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)
    cluster: str = ""
    generate: bool = True

    @property
    def unit(self) -> str:
        """The cluster, or the picture."""
        return self.cluster or self.picture


@dataclass(frozen=True)
class Outcome:
    """What a subject made of an item.

    Attributes:
        text: what it generated ("" where it was not asked to generate).
        margin: for yes or no: log-odds of "yes", 0 where it cannot tell.
        scores: for a choice: log-probability of each.
    """

    text: str = ""
    margin: float = 0.0
    scores: tuple[float, ...] = ()


class Subject(Protocol):
    """Whatever is examined. `image=None` asks without a picture (blind)."""

    def yes_no_margin(self, image: Any, question: str) -> float:
        """log P(yes) - log P(no) as the next thing said, over their spellings."""

    def answer(self, image: Any, question: str) -> str:
        """A short generated answer, greedy."""

    def caption(self, image: Any) -> str:
        """A generated caption, greedy."""

    def score(self, image: Any, prompt: str, choices: Sequence[str]) -> np.ndarray:
        """Log-probability of each choice as the answer [K], higher is better."""


def examine(subject: Subject, item: EvalItem, image: Any) -> Outcome:
    """Ask one item, about `image` (its own picture, another one, or None)."""
    if item.task == "yesno":
        text = subject.answer(image, item.question) if item.generate else ""
        return Outcome(text, float(subject.yes_no_margin(image, item.question)))
    if item.task == "count":
        return Outcome(subject.answer(image, item.question))
    if item.task == "caption":
        return Outcome(subject.caption(image))
    return Outcome(scores=tuple(float(s) for s in subject.score(image, item.question, item.choices)))
