"""Lay samples out for training: one picture, several questions, one row.

Questions about the same picture share its tokens: each question is a branch that sees the picture and itself, never
another question, and its positions go on from the picture's end. The result equals training on every question alone
(tested), for a fraction of the tokens. Branches come from ``prompt.render``, so training and inference share one
layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sensorium.errors import SensoriumError
from sensorium.prompt import IGNORE, Message, Slot, Tokens, render


@dataclass(frozen=True)
class Branch:
    """The part of one conversation behind the shared picture: ids and labels, one per position.

    ``focus`` is the weight of the answer's first token in the loss: a yes or a no is decided there, and what follows it
    (a full stop, the end marker) is learnt in minutes and would drown it.
    """

    ids: tuple[int, ...]
    labels: tuple[int, ...]
    focus: float = 1.0


@dataclass(frozen=True)
class Layout:
    """What every conversation about one picture begins with.

    Attributes:
        before: ids before the picture.
        media: positions that the picture takes.
    """

    before: tuple[int, ...]
    media: int

    @property
    def length(self) -> int:
        """Shared positions."""
        return len(self.before) + self.media


def split_conversation(
    messages: Sequence[Message], tokenizer: Tokens, media_tokens: int, template: str = "chatml"
) -> tuple[Layout, Branch]:
    """Render one conversation with one picture and cut it behind the picture.

    Raises:
        SensoriumError: the conversation holds no picture or more than one, or no answer.
    """
    rendered = render(messages, tokenizer, media_tokens, template=template, generate=False)
    places = rendered.media_positions()
    if len(places) != 1:
        raise SensoriumError(f"a training sample holds {len(places)} pictures; this layout takes exactly one.")
    start, end = places[0]
    ids, labels = rendered.ids(), rendered.labels()
    return Layout(tuple(ids[:start]), end - start), Branch(tuple(ids[end:]), tuple(labels[end:]))


def question_branch(
    question: str, answer: str, tokenizer: Tokens, media_tokens: int, focus: float = 1.0, template: str = "chatml"
) -> tuple[Layout, Branch]:
    """The usual sample: a picture and a question, then the answer."""
    turns = [Message("user", [Slot(), question]), Message("assistant", answer)]
    layout, branch = split_conversation(turns, tokenizer, media_tokens, template)
    # the newline after the answer's end marker teaches nothing and is never generated
    last = max(i for i, label in enumerate(branch.labels) if label != IGNORE)
    return layout, Branch(branch.ids[: last + 1], branch.labels[: last + 1], focus)


@dataclass(frozen=True)
class Rows:
    """A batch, all arrays [B, length].

    Attributes:
        ids: token ids, 0 at picture and padding positions.
        positions: rotary positions.
        branch: 0 for the shared part, 1.. for the questions, -1 for padding.
        labels: the id to be predicted *at* this position from the one before it (not yet shifted).
        media: (start, end) of the picture in every row.
        weights: weight in the loss of each position's label.
    """

    ids: np.ndarray
    positions: np.ndarray
    branch: np.ndarray
    labels: np.ndarray
    media: tuple[int, int]
    weights: np.ndarray

    def mask(self) -> np.ndarray:
        """Boolean [B, length, length]: may position i attend to j? Causal, own branch or shared part."""
        length = self.branch.shape[1]
        own = self.branch[:, :, None] == self.branch[:, None, :]
        shared = (self.branch == 0)[:, None, :]
        causal = np.tril(np.ones((length, length), bool))
        return (own | shared) & causal  # padding sees padding: no row of the softmax is empty

    def targets(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(row, position that predicts, id, weight) of every target; the position before it is in the same branch."""
        rows, places = np.nonzero(self.labels != IGNORE)
        return rows, places - 1, self.labels[rows, places], self.weights[rows, places]


def fitting(layout: Layout, branches: Sequence[Branch], length: int) -> list[Branch]:
    """The branches that fit a row of ``length``, in order; a shorter one may follow one that does not fit.

    Raises:
        SensoriumError: not even the first one fits.
    """
    at, kept = layout.length, []
    for number, branch in enumerate(branches):
        if at + len(branch.ids) <= length:
            kept.append(branch)
            at += len(branch.ids)
        elif number == 0:
            raise SensoriumError(
                f"A sample of {at + len(branch.ids)} tokens does not fit rows of {length}; raise train.row_tokens."
            )
    return kept


def pack(layout: Layout | Sequence[Layout], samples: Sequence[Sequence[Branch]], length: int) -> Rows:
    """Place each picture's branches in a row of ``length``; those that do not fit are left out, the first must fit.

    Args:
        layout: what every row begins with, or one for each row; then none may hold media.
        samples: the branches of each row.
        length: positions of a row.
    """
    layouts = [layout] * len(samples) if isinstance(layout, Layout) else list(layout)
    if any(each.media for each in layouts) and not isinstance(layout, Layout):
        raise ValueError("rows with media share one layout")
    ids = np.zeros((len(samples), length), np.int64)
    positions = np.zeros((len(samples), length), np.int64)
    branch_of = np.full((len(samples), length), -1, np.int64)
    labels = np.full((len(samples), length), IGNORE, np.int64)
    weights = np.ones((len(samples), length), np.float32)
    for row, (own, branches) in enumerate(zip(layouts, samples)):
        shared = own.length
        ids[row, : len(own.before)] = own.before
        positions[row, :shared] = np.arange(shared)
        branch_of[row, :shared] = 0
        at = shared
        for number, branch in enumerate(fitting(own, branches, length), start=1):
            size = len(branch.ids)
            ids[row, at : at + size] = branch.ids
            labels[row, at : at + size] = branch.labels
            positions[row, at : at + size] = shared + np.arange(size)
            branch_of[row, at : at + size] = number
            weights[row, at + next(i for i, label in enumerate(branch.labels) if label != IGNORE)] = branch.focus
            at += size
    media = (len(layout.before), layout.length) if isinstance(layout, Layout) else (0, 0)
    return Rows(ids, positions, branch_of, labels, media, weights)
