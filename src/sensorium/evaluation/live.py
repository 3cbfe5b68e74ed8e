"""The same wait as `latency`, as a user of push to talk has it: the question comes from a microphone, in real time.

Frames go to the turn manager when a microphone would give them, and the clock runs from the release of the button,
right behind the last word, to the first sound. What a way can do before is done by then: the voice detector, and in a
pause of the speaker the question so far. What needs the whole question is not, for either way.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sensorium.evaluation.latency import LONGEST
from sensorium.media import Audio, load_audio
from sensorium.messages import Message
from sensorium.turns import Discarded, Done, Event, Failed, ModelEngine, Sound, Turns

if TYPE_CHECKING:
    from sensorium.answer import Stream
    from sensorium.model import Model

RATE, FRAME = 16_000, 320
"""Samples a second, and of a frame of the microphone: 20 ms."""
LOUD = 0.02
"""Of the loudest sample: what lies behind the last one above it is no word."""
PATIENCE_S = 60
ENDS = (Discarded, Done, Failed)
"""Events behind which no sound comes."""


class Dictation(ModelEngine):
    """The cascade: what was said is written down, the LLM reads it, and its text is said.

    Args:
        model: loaded.
        transcribe: float32 [samples] at 16 kHz -> text.
        **sampling: as of `Model.chat`.
    """

    def __init__(self, model: Model, transcribe: Callable[[np.ndarray], str], **sampling: Any) -> None:
        super().__init__(model, cascade=True, **sampling)
        self._transcribe = transcribe
        self._texts: dict[str, str] = {}

    def prepare(self, messages: Sequence[Message]) -> None:
        """See `turns.engine.Engine.prepare`."""
        super().prepare(self._written(messages))

    def respond(self, messages: Sequence[Message], speaker: Any, cancel: threading.Event) -> Stream:
        """See `turns.engine.Engine.respond`."""
        return super().respond(self._written(messages), speaker, cancel)

    def _written(self, messages: Sequence[Message]) -> list[Message]:
        return [Message(each.role, [self._text(part) for part in each.content]) for each in messages]

    def _text(self, part: Any) -> Any:
        if not isinstance(part, Audio):
            return part
        if part.sha256 not in self._texts:
            self._texts[part.sha256] = self._transcribe(load_audio(part).samples) or "..."
        return self._texts[part.sha256]


def first_sound_live(
    model: Model, sound: np.ndarray, *, transcribe: Callable[[np.ndarray], str] | None = None
) -> float:
    """Seconds from the end of a question that is spoken now to the first sound of its answer. Takes that long, too.

    Args:
        model: warm, with speech projectors in and out.
        sound: the question, float32 [samples] at 16 kHz, not asked before; what is quiet behind it is cut off.
        transcribe: the cascade's recogniser; None takes the direct way.

    Raises:
        ValueError: nothing is said.
        Exception: whatever ended the answer.
    """
    sound = sound[: int(np.flatnonzero(np.abs(sound) > LOUD * np.abs(sound).max())[-1]) + 1]
    if transcribe is None:
        engine = ModelEngine(model, max_tokens=LONGEST)
    else:
        engine = Dictation(model, transcribe, max_tokens=LONGEST)
    over, heard, failed = threading.Event(), [], []

    def on_event(event: Event) -> None:
        if isinstance(event, Sound):
            heard.append(time.perf_counter())
        if isinstance(event, Failed):
            failed.append(event.error)
        if isinstance(event, (Sound, *ENDS)):
            over.set()

    with Turns(engine, on_event, hold=True) as turns:
        turns.press()
        began = time.perf_counter()
        for at in range(0, len(sound), FRAME):
            frame = sound[at : at + FRAME]
            time.sleep(max(0.0, began + (at + len(frame)) / RATE - time.perf_counter()))
            turns.push(frame)
        released = time.perf_counter()
        turns.release()
        over.wait(PATIENCE_S)
        turns.interrupt()
    if failed:
        raise failed[0]
    if not heard:
        raise ValueError("the answer says nothing; ask something else")
    return heard[0] - released
