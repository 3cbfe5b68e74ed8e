"""Who is examined: a composed model, and the cascade that passes the encoder's labels on as words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sensorium.media import load_image
from sensorium.prompt import Message, Slot, render

if TYPE_CHECKING:
    from sensorium.backbones.engine import Engine, Segment
    from sensorium.model import Model

YES, NO = ("yes", "Yes", " yes", " Yes"), ("no", "No", " no", " No")
CAPTION = "Describe this picture."


class _Speaker:
    """Reads yes/no margins, answers, captions and scores off an engine. Subclasses lay the prompt out."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self._tokenizer = model.parts.tokenizer.get()
        self._yes, self._no = (self._first_tokens(words) for words in (YES, NO))

    def prompt(self, image: Any, text: str) -> tuple[Engine, list[Segment]]:
        """The engine and what it is given."""
        raise NotImplementedError

    def yes_no_margin(self, image: Any, question: str) -> float:
        """See `items.Subject`."""
        engine, prompt = self.prompt(image, question)
        logprobs = np.asarray(engine.next_logprobs(prompt), np.float64)
        return float(np.logaddexp.reduce(logprobs[self._yes]) - np.logaddexp.reduce(logprobs[self._no]))

    def answer(self, image: Any, question: str) -> str:
        """See `items.Subject`."""
        return self._generate(image, question, 12)

    def caption(self, image: Any) -> str:
        """See `items.Subject`."""
        return self._generate(image, CAPTION, 48)

    def score(self, image: Any, prompt: str, choices: Sequence[str]) -> np.ndarray:
        """See `items.Subject`."""
        engine, segments = self.prompt(image, prompt)
        return np.asarray(engine.score(segments, [self._tokenizer.encode(choice) for choice in choices]), np.float64)

    def _generate(self, image: Any, text: str, limit: int) -> str:
        from sensorium.backbones.engine import SamplingParams

        engine, prompt = self.prompt(image, text)
        params = SamplingParams(max_tokens=limit, stop_ids=self._tokenizer.eos_ids)
        stream, ends = self._tokenizer.stream(), self._tokenizer.eos_ids
        pieces = [stream.push(step.token) for step in engine.generate(prompt, params) if step.token not in ends]
        return ("".join(pieces) + stream.flush()).strip()

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
