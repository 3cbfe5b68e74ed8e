"""Who is examined: a composed model, and the cascade that passes the encoder's labels on as words."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sensorium.evaluation.items import Outcome, Question
from sensorium.evaluation.metrics import parse_yes_no
from sensorium.media import load_image
from sensorium.prompt import Message, Slot, render

if TYPE_CHECKING:
    from sensorium.backbones.engine import Engine, Segment
    from sensorium.model import Model

YES, NO = ("yes", "Yes", " yes", " Yes"), ("no", "No", " no", " No")


ANSWER_TOKENS, CAPTION_TOKENS = 12, 48
BATCH = 16
"""Texts that are generated together: on two cores, 16 take the time of 4 generated one by one."""
_NEAR = 1024
"""The spellings of yes and no are looked for among so many likeliest tokens; most often all are there."""


def decided(text: str) -> bool:
    """Whether an unfinished answer has said yes or no. Its last word may go on, so it does not count: "No" may become
    "Nothing"."""
    return parse_yes_no(re.sub(r"[\w']+$", "", text)) is not None


class _Speaker:
    """Reads yes/no margins, answers, captions and scores off an engine. Subclasses lay the prompt out."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self._tokenizer = model.parts.tokenizer.get()
        self._yes, self._no = (self._first_tokens(words) for words in (YES, NO))

    def prompt(self, image: Any, text: str) -> tuple[Engine, list[Segment]]:
        """The engine and what it is given."""
        raise NotImplementedError

    def examine(self, questions: Sequence[Question]) -> list[Outcome]:
        """See `items.Subject`. The prefix cache keeps what questions about one picture have in common."""
        outcomes: dict[int, Outcome] = {}
        spoken: dict[tuple[int, bool], list[int]] = defaultdict(list)  # by limit on tokens and whether yes/no is asked
        opened: dict[int, Any] = {}
        prompts = []
        for at, question in enumerate(questions):
            if question.image is not None and id(question.image) not in opened:
                opened[id(question.image)] = load_image(question.image)
            engine, prompt = self.prompt(opened.get(id(question.image)), question.text)
            prompts.append((engine, prompt))
            if question.task == "choice":
                ids = [self._tokenizer.encode(choice) for choice in question.choices]
                outcomes[at] = Outcome(scores=tuple(float(score) for score in engine.score(prompt, ids)))
            elif question.task == "yesno" and not question.generate:
                outcomes[at] = Outcome(margin=self._margin(engine, prompt))
            else:
                limit = CAPTION_TOKENS if question.task == "caption" else ANSWER_TOKENS
                spoken[limit, question.task == "yesno"].append(at)
        for (limit, yes_no), places in spoken.items():
            # Of like length together: a batch's keys and values take the room of its longest prompt.
            places.sort(key=lambda at: prompts[at][0].prompt_length(prompts[at][1]))
            for start in range(0, len(places), BATCH):
                some = places[start : start + BATCH]
                told = self._speak([prompts[at] for at in some], limit, yes_no)
                outcomes.update(zip(some, told, strict=True))
        return [outcomes[at] for at in range(len(questions))]

    def _margin(self, engine: Engine, prompt: list[Segment]) -> float:
        logprobs = np.asarray(engine.next_logprobs(prompt), np.float64)
        return float(np.logaddexp.reduce(logprobs[self._yes]) - np.logaddexp.reduce(logprobs[self._no]))

    def _speak(self, prompts: Sequence[tuple[Engine, list[Segment]]], limit: int, yes_no: bool) -> list[Outcome]:
        """Greedy texts. Of yes/no questions also the margin; they end when every answer has said yes or no."""
        from sensorium.backbones.engine import SamplingParams

        engine = prompts[0][0]
        params = SamplingParams(max_tokens=limit, stop_ids=self._tokenizer.eos_ids, logprobs=_NEAR if yes_no else 0)
        ends, streams = self._tokenizer.eos_ids, [self._tokenizer.stream() for _ in prompts]
        texts, margins = [""] * len(prompts), [0.0] * len(prompts)
        going = set(range(len(prompts)))
        first = True
        for steps in engine.generate_batch([prompt for _, prompt in prompts], params):
            for at, step in enumerate(steps):
                if step is None:
                    continue
                if yes_no and first:
                    margins[at] = self._margin_of(dict(step.top), engine, prompts[at][1])
                if step.token not in ends:
                    texts[at] += streams[at].push(step.token)
                if step.finish or (yes_no and decided(texts[at])):
                    going.discard(at)
            first = False
            if not going:
                break
        return [Outcome((t + s.flush()).strip(), m) for t, s, m in zip(texts, streams, margins)]

    def _margin_of(self, top: dict[int, float], engine: Engine, prompt: list[Segment]) -> float:
        """The margin from the likeliest tokens where they hold all spellings; else from all."""
        if not all(token in top for token in (*self._yes, *self._no)):
            return self._margin(engine, prompt)
        yes, no = (np.array([top[token] for token in tokens]) for tokens in (self._yes, self._no))
        return float(np.logaddexp.reduce(yes) - np.logaddexp.reduce(no))

    def _first_tokens(self, words: Sequence[str]) -> list[int]:
        return sorted({self._tokenizer.encode(word)[0] for word in words})


class ModelSubject(_Speaker):
    """The composed model. Without a picture it stays the same, LoRA included; only the picture's tokens go."""

    def prompt(self, image: Any, text: str) -> tuple[Engine, list[Segment]]:
        """The conversation that `Model.ask` lays out."""
        from sensorium.backbones.engine import Segment

        if image is not None:
            prepared = self.model.prepare([Message("user", [load_image(image), text])])
            return prepared.engine, prepared.segments
        template = self.model.composition.spec.backbone.template
        blind = render([Message("user", [Slot(), text])], self._tokenizer, 0, template=template)
        return self.model.parts.media.get(), [Segment(ids=tuple(blind.ids()))]


class CascadeSubject(_Speaker):
    """The same encoder's `k` most probable labels as words, then the same LLM as published: no projector, no LoRA.

    It is what a projector must beat: labels say what there is, but not where, how many or of which colour.
    """

    def __init__(self, model: Model, k: int = 5) -> None:
        super().__init__(model)
        self.k = k
        self._said: dict[str, str] = {}

    def prompt(self, image: Any, text: str) -> tuple[Engine, list[Segment]]:
        """The labels in a sentence, then the question, as a conversation without media."""
        from sensorium.backbones.engine import Segment

        said = "" if image is None else f"This picture shows: {self.labels(image)}.\n"
        template = self.model.composition.spec.backbone.template
        rendered = render([Message("user", said + text)], self._tokenizer, template=template)
        return self.model.parts.bare.get(), [Segment(ids=tuple(rendered.ids()))]

    def labels(self, image: Any) -> str:
        """The `k` most probable class names, the most probable first."""
        from sensorium.encoders.imagenet import class_names

        picture = load_image(image)
        if picture.sha256 not in self._said:
            encoder: Any = self.model.parts.encoders["image"].get()
            best = np.argsort(-np.asarray(encoder.logits([picture.pixels]))[0], kind="stable")[: self.k]
            self._said[picture.sha256] = ", ".join(class_names()[i] for i in best)
        return self._said[picture.sha256]
