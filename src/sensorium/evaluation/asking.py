"""Asks subjects what a suite wants to know: every question once, picture by picture, many at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from sensorium.evaluation.items import EvalItem, Outcome, Question, Subject, Task

AT_ONCE = 96
"""Questions handed over together: enough to fill a subject's batches, few enough for its caches and a smooth bar."""


@dataclass(frozen=True)
class Asked:
    """One question to one subject about one picture, or without one. Equal ones are asked once, whatever the column:
    the caption of another picture, say, is that picture's own."""

    subject: Subject
    picture: str | None
    task: Task
    text: str
    choices: tuple[str, ...]
    generate: bool
    image: Any = field(compare=False)

    @classmethod
    def of(cls, subject: Subject, item: EvalItem, shown: EvalItem | None) -> Asked:
        """What `item` asks, about the picture of `shown`; None shows nothing."""
        picture, image = (shown.picture, shown.image) if shown else (None, None)
        return cls(subject, picture, item.task, item.question, item.choices, item.generate, image)

    def question(self) -> Question:
        """What the subject gets to know."""
        return Question(self.task, self.image, self.text, self.choices, self.generate)


def ask(asked: Iterable[Asked], progress: Callable[[int, int], None] | None = None) -> dict[Asked, Outcome]:
    """The outcome of each different question; `progress` is called with (done, all)."""
    grouped: dict[tuple[Subject, str | None], dict[Asked, None]] = {}
    for each in asked:
        grouped.setdefault((each.subject, each.picture), {})[each] = None
    by_subject: dict[Subject, list[Asked]] = {}
    for (subject, _), group in grouped.items():
        by_subject.setdefault(subject, []).extend(group)
    total = sum(map(len, by_subject.values()))
    answered: dict[Asked, Outcome] = {}
    for subject, all_of_it in by_subject.items():
        for start in range(0, len(all_of_it), AT_ONCE):
            some = all_of_it[start : start + AT_ONCE]
            answered.update(zip(some, subject.examine([each.question() for each in some]), strict=True))
            if progress:
                progress(len(answered), total)
    return answered
