"""The seam between turns and the model: what is asked of a model, and `Model` behind it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from sensorium.messages import Message
from sensorium.turns.said import Speaker

if TYPE_CHECKING:
    from sensorium.answer import Stream
    from sensorium.model import Model

Sink = Callable[[np.ndarray], None]


class Engine(Protocol):
    """A model as `Turns` sees it. All calls come from one thread, one at a time."""

    @property
    def rate(self) -> int:
        """Samples a second of the sound that speakers give."""

    @property
    def space(self) -> int | None:
        """The unit between two words; None where there is none."""

    def speaker(self, sink: Sink) -> Speaker | None:
        """What says one answer into `sink`; None to show it only."""

    def prepare(self, messages: Sequence[Message]) -> None:
        """This conversation is likely to be answered soon: do what can be done beforehand, and remember it."""

    def respond(self, messages: Sequence[Message], speaker: Any, cancel: threading.Event) -> Stream:
        """The answer, piece by piece. It ends early once `cancel` is set."""


class ModelEngine:
    """A `Model` that listens and speaks.

    Args:
        model: loaded.
        aloud: say the answers.
        cascade: as of `Model.speaker`.
        **sampling: as of `Model.chat`.

    Raises:
        SensoriumError: the voice cannot be loaded.
    """

    def __init__(self, model: Model, *, aloud: bool = True, cascade: bool | None = None, **sampling: Any) -> None:
        self._model, self._aloud, self._cascade, self._sampling = model, aloud, cascade, sampling
        generator = model.parts.generator.get() if aloud else None
        self.rate: int = generator.rate if generator else 0
        self.space: int | None = getattr(generator, "space", None)

    def speaker(self, sink: Sink) -> Speaker | None:
        """See `Engine.speaker`."""
        return self._model.speaker(sink, cascade=self._cascade) if self._aloud else None

    def prepare(self, messages: Sequence[Message]) -> None:
        """Encode what is new and prefill the prompt: `respond` then finds both in the model's caches."""
        self._model.chat(list(messages), max_tokens=1)

    def respond(self, messages: Sequence[Message], speaker: Any, cancel: threading.Event) -> Stream:
        """See `Engine.respond`."""
        return self._model.chat(list(messages), stream=True, speaker=speaker, cancel=cancel, **self._sampling)
