"""What a suite asks and what it gets back, free of any one model.

A `Subject` is whatever is examined: the composed model, a baseline, a fake in a test. It is handed `Question`s, which
hold a picture and words and nothing else, so no answer can leak into it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

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


@dataclass(frozen=True, eq=False)
class Question:
    """What a subject is told of an item; attributes as there. `image=None` asks without a picture (blind)."""

    task: Task
    image: Any
    text: str
    choices: tuple[str, ...] = ()
    generate: bool = True


class Subject(Protocol):
    """Whatever is examined."""

    def examine(self, questions: Sequence[Question]) -> list[Outcome]:
        """One outcome per question, each as if it were asked alone; questions about one picture stand together.

        yesno: `margin`, log P(yes) - log P(no) as the next thing said, over their spellings; with `generate` also the
        greedy answer in `text`, at least up to its first yes or no. count: a short greedy answer. caption: a greedy
        caption. choice: `scores`, the log-probability of each choice as the answer.
        """
