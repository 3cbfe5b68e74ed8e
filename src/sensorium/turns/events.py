"""What a conversation reports while it runs, so that a command line or a server can pass it on."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from sensorium.messages import Message


@dataclass(frozen=True)
class Event:
    """`turn` counts what the user says, from 1; the answer to it has the same number."""

    turn: int


@dataclass(frozen=True)
class SpeechStarted(Event):
    """The user began to speak; `at` is the sample of the input (16 kHz) at which the voice begins."""

    at: int


@dataclass(frozen=True)
class SpeechStopped(Event):
    """The user has stopped; `at` is the sample of the input behind the voice."""

    at: int


@dataclass(frozen=True)
class Committed(Event):
    """The user's message stands in the history and is being answered.

    `begin` and `end` are the samples of the input that it holds; both 0 for a typed message.
    """

    message: Message
    begin: int = 0
    end: int = 0


@dataclass(frozen=True)
class Discarded(Event):
    """What was recorded holds no speech, or a typed message took its place."""


@dataclass(frozen=True)
class Text(Event):
    """The next piece of the answer."""

    piece: str


@dataclass(frozen=True)
class Sound(Event):
    """The next sound of the answer: float32 [n] at `rate` samples a second, as soon as it is there."""

    samples: np.ndarray = field(repr=False, compare=False)
    rate: int


@dataclass(frozen=True)
class Done(Event):
    """The answer is generated; all its `Text` and `Sound` have come. `reason` is `Answer.finish_reason`."""

    text: str
    reason: str


@dataclass(frozen=True)
class Played(Event):
    """The last sample of the answer was played; the history holds the whole of it."""


@dataclass(frozen=True)
class Interrupted(Event):
    """The answer was cut short; neither text nor sound of it will come.

    `text` is what the history holds of it: the words whose sound was played, `samples` in all.
    """

    text: str
    samples: int


@dataclass(frozen=True)
class Failed(Event):
    """The answer could not be made; the message that it was to answer is not in the history."""

    error: Exception = field(compare=False)
