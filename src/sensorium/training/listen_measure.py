"""How well a projector lets the LLM listen, on voices that training never hears: questions right, tokens wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sensorium.evaluation.intervals import rate
from sensorium.evaluation.speech_metrics import error_rate
from sensorium.training.backbone import Backbone
from sensorium.training.data import spoken_questions
from sensorium.training.listen_heard import Heard
from sensorium.training.listen_prompt import ListenPrompt, Reply
from sensorium.training.objectives.align import TokenRows
from sensorium.training.objectives.cross_entropy import cross_entropy
from sensorium.training.objectives.forward import hidden_states
from sensorium.training.rows import Rows

ROWS = 8
Project = Callable[[Tensor, Tensor], Tensor]
"""Features [1, frames, dim] and their length -> embeddings [1, positions, dim]."""


class ListenTest:
    """The questions (of the split "dev") and sentences of a store's test shard, and what the LLM makes of them.

    Args:
        heard: of the test shard (`ListenStore.test`).
        llm, prompt: the frozen LLM, and how spoken messages are laid out.
        encode: the tokenizer's.
    """

    def __init__(self, heard: Heard, llm: Backbone, prompt: ListenPrompt, encode: Callable[[str], list[int]]) -> None:
        self.heard, self.llm, self.prompt, self.encode = heard, llm, prompt, encode
        self.questions = {each.question: each for each in spoken_questions.questions("dev")}
        self.asked = [i for i, each in enumerate(heard.utterances) if each.text in self.questions]
        self.sentences = [i for i, each in enumerate(heard.utterances) if each.source == "test sentences"]

    def subset(self, size: int) -> list[int]:
        """So many spoken questions, spread over voices and questions."""
        order = np.random.default_rng(0).permutation(len(self.asked))
        return [self.asked[int(i)] for i in order[:size]]

    @torch.no_grad()
    def spoken(self, project: Project, numbers: Sequence[int], shift: int = 0) -> list[bool]:
        """Whether each spoken question is answered right; with a shift, what is heard is another question's sound
        while the choices stay: how often one is right without having heard the question."""
        sounds = [numbers[(i + shift) % len(numbers)] for i in range(len(numbers))]
        embeds = []
        for number in sounds:
            batch = self.heard.whole([number])
            embeds.append(project(batch.features, batch.lengths)[0])
        right: dict[int, bool] = {}
        for some in self._grouped(range(len(numbers)), lambda i: len(embeds[i])):
            replies = [self._choices(numbers[i]) for i in some]
            together = torch.stack([embeds[i] for i in some])
            found = self._answers(together, self.prompt.rows(together.shape[1], replies))
            right.update((i, self._is_right(numbers[i], best)) for i, best in zip(some, found))
        return [right[i] for i in range(len(numbers))]

    @torch.no_grad()
    def read(self) -> dict[str, bool]:
        """Whether each question, as a text in the same layout, is answered right."""
        first = {self.heard.utterances[i].text: i for i in self.asked}
        numbers = list(first.values())
        right: dict[str, bool] = {}
        for at in range(0, len(numbers), ROWS):
            some = numbers[at : at + ROWS]
            said = [self.heard.tokens[i] for i in some]
            found = self._answers(None, self.prompt.twin(said, [self._choices(i) for i in some]))
            right.update((self.heard.utterances[i].text, self._is_right(i, best)) for i, best in zip(some, found))
        return right

    @torch.no_grad()
    def token_errors(self, project: Project, rows: TokenRows, numbers: Sequence[int]) -> float:
        """Edits by which the nearest tokens of sentences differ from what was said, for each token said."""
        pairs = []
        for i in numbers:
            batch = self.heard.whole([i])
            pairs.append((self.heard.tokens[i], rows.heard(project(batch.features, batch.lengths).float())[0]))
        return error_rate(pairs)

    def _choices(self, number: int) -> list[Reply]:
        question = self.questions[self.heard.utterances[number].text]
        return [Reply(tuple(self.encode(choice))) for choice in question.choices]

    def _is_right(self, number: int, best: int) -> bool:
        question = self.questions[self.heard.utterances[number].text]
        return question.choices[best] == question.answer

    @staticmethod
    def _grouped(numbers: Sequence[int], key: Callable[[int], int]) -> Iterator[list[int]]:
        for wanted in sorted({key(i) for i in numbers}):
            group = [i for i in numbers if key(i) == wanted]
            yield from (group[at : at + ROWS] for at in range(0, len(group), ROWS))

    def _answers(self, embeds: Tensor | None, rows: Rows) -> list[int]:
        """The most probable branch of each row, its end included."""
        row, position, target, _ = rows.targets()
        hidden = hidden_states(self.llm, embeds, rows)[row, position]
        losses = cross_entropy(self.llm, hidden, torch.from_numpy(target))
        branch = rows.branch[row, position + 1]
        scores = np.full((len(rows.ids), int(branch.max()) + 1), -np.inf)
        scores[row, branch] = 0.0
        np.add.at(scores, (row, branch), -losses.numpy())
        return [int(each) for each in scores[:, 1:].argmax(axis=1)]


def share(right: Sequence[bool], questions: Sequence[str] | None = None) -> dict[str, Any]:
    """How many of how many are right, with a 95 % interval in which a question counts once, whoever says it."""
    found = rate(right, questions)
    return {"share": round(found.value, 4), "interval": [round(found.low, 4), round(found.high, 4)], "n": found.n}
