"""The turn manager: idle -> listening -> answering -> idle, and back to listening when the user speaks in between.

Sound of the user comes in (`push`), events go out (`on_event`), and a thread of the manager's own asks the model. While
the user still speaks, in every pause and at every full window of the encoder, the message as it stands is handed to
`Engine.prepare`: when the pause turns out to be the end, exactly this message is committed, so that the model finds
it encoded. Time is counted in samples; no clock decides anything.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable
from contextlib import closing
from enum import Enum
from functools import partial

import numpy as np

from sensorium.errors import UsageError
from sensorium.messages import Message
from sensorium.turns.activity import ActivityOptions, Detector, Signal, Silero
from sensorium.turns.engine import Engine
from sensorium.turns.events import (
    Committed,
    Discarded,
    Done,
    Event,
    Failed,
    Interrupted,
    Played,
    Sound,
    SpeechStarted,
    SpeechStopped,
    Text,
)
from sensorium.turns.hearing import Hearing
from sensorium.turns.said import Said


class State(Enum):
    """What a conversation is doing."""

    IDLE = "idle"
    LISTENING = "listening"
    """The user speaks, or holds the button."""
    ANSWERING = "answering"
    """The answer is generated or played."""


@functools.cache
def _network() -> Silero:
    return Silero()


def _silero() -> Detector:
    return _network().stream()


class _Answer:
    """An answer under way."""

    def __init__(self, turn: int, messages: list[Message]) -> None:
        self.turn, self.messages, self.said = turn, messages, Said()
        self.cancel = threading.Event()
        self.played = 0


class Turns:
    """One conversation.

    Args:
        engine: the model; see `engine.ModelEngine`.
        on_event: takes each event, in order. It is called in the thread of `push` or in the manager's own, never in
            both at once; it must return soon, and of the manager it may call `played` alone.
        detector: makes a voice detector for a stream; None for Silero's, which all conversations share.
        options: of the voice activity.
        hold: push to talk: `press` and `release` say when the user speaks, and not the voice alone.
        messages: the conversation so far.
        remembered: messages of the history that are kept at most, sound and all, besides a system message before them.

    Attributes:
        state: what the conversation is doing.
        messages: the history. An answer joins it when it was played or interrupted.

    All methods may be called from any thread. One thread runs until `close`.
    """

    def __init__(
        self,
        engine: Engine,
        on_event: Callable[[Event], None],
        *,
        detector: Callable[[], Detector] | None = None,
        options: ActivityOptions | None = None,
        hold: bool = False,
        messages: Iterable[Message] = (),
        remembered: int = 12,
    ) -> None:
        if remembered < 1:
            raise UsageError(f"remembered is {remembered}; give the number of messages to keep, 1 or more.")
        self.state = State.IDLE
        self.messages = list(messages)
        self._engine, self._on_event = engine, on_event
        self._hearing = Hearing(detector or _silero, options or ActivityOptions(), hold)
        self._hold, self._held, self._remembered = hold, False, remembered
        self._turn = 0
        self._answer: _Answer | None = None
        self._changed = threading.Condition(threading.RLock())
        self._asked: _Answer | None = None
        self._prepared: list[Message] | None = None
        self._busy = self._closed = False
        self._worker = threading.Thread(target=self._work, name="turns", daemon=True)
        self._worker.start()

    # The user ---------------------------------------------------------------------------------------------------------

    def push(self, sound: np.ndarray) -> None:
        """The next samples of the microphone, mono at 16 kHz, float32 [n] within -1 to 1, any n.

        With `hold`, samples that come while the button is not pressed are dropped.
        """
        if not isinstance(sound, np.ndarray) or sound.dtype != np.float32 or sound.ndim != 1:
            raise UsageError("the microphone gave no float32 array [n]; give mono samples at 16 kHz.")
        with self._changed:
            if self._closed or (self._hold and not self._held):
                return
            for frame in self._hearing.frames(sound):
                self._hear(frame)
                if self._hold and not self._held:  # the message became too long, so it was committed
                    return

    def press(self) -> None:
        """Push to talk: the user begins to speak. An answer under way is interrupted."""
        with self._changed:
            if not self._hold:
                raise UsageError("press is for push to talk; make the manager with hold=True.")
            if self._closed or self._held:
                return
            self._hearing.restart()
            self._begin()
            self._held = True

    def release(self) -> None:
        """Push to talk: the user has finished. Speech is committed; without speech nothing is."""
        with self._changed:
            if not self._held:
                return
            for frame in self._hearing.frames(np.zeros(0, np.float32), last=True):
                self._hear(frame)
            if self._held:
                self._end()

    def say(self, text: str) -> None:
        """A typed message, answered at once. An answer under way is interrupted; what is being recorded is dropped."""
        message = Message("user", text)
        with self._changed:
            if self._closed:
                return
            self.interrupt()
            if self.state is State.LISTENING:
                self._emit(Discarded(self._turn))
            self._held = False
            self._hearing.restart()
            self._turn += 1
            self._commit(message)

    def played(self, turn: int, count: int) -> None:
        """So many samples of the answer to this turn were played by now. Late reports of older answers are ignored."""
        with self._changed:
            answer = self._answer
            if answer is None or answer.turn != turn:
                return
            answer.played = max(answer.played, min(count, answer.said.samples))
            self._settle(answer)

    def interrupt(self) -> None:
        """Cut the answer under way, if there is one: the history keeps what was played."""
        with self._changed:
            answer, self._answer = self._answer, None
            if answer is None:
                return
            answer.cancel.set()
            self._asked = None
            heard = answer.said.heard(answer.played)
            self._remember(heard)
            self._enter(State.IDLE)
            self._emit(Interrupted(answer.turn, heard, answer.played))

    # The end ----------------------------------------------------------------------------------------------------------

    def wait(self, timeout: float | None = None, *, played: bool = True) -> bool:
        """Until no answer is under way (`played=False`: until all is generated); False if that took too long."""
        with self._changed:
            return self._changed.wait_for(
                lambda: not (self._busy or self._asked or self._prepared or (played and self._answer)), timeout
            )

    def close(self) -> None:
        """End the conversation: an answer under way is cancelled, and the thread ends. Nothing is reported any more."""
        with self._changed:
            self._closed = True
            if self._answer:
                self._answer.cancel.set()
            self._answer = self._asked = self._prepared = None
            self._changed.notify_all()
        if threading.current_thread() is not self._worker:
            self._worker.join()

    def __enter__(self) -> Turns:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Hearing ----------------------------------------------------------------------------------------------------------

    def _hear(self, frame: np.ndarray) -> None:
        signal = self._hearing.hear(frame)
        if signal is Signal.BEGUN:
            if not self._hold:
                self._begin()
            self._emit(SpeechStarted(self._turn, self._hearing.voice[0]))
        elif signal in (Signal.PAUSED, Signal.LONG):
            self._prepared = self._told([*self.messages, self._hearing.draft()])
            self._changed.notify_all()
        elif signal is Signal.ENDED:
            self._end()

    def _begin(self) -> None:
        self.interrupt()
        self._turn += 1
        self._enter(State.LISTENING)

    def _end(self) -> None:
        self._held = False
        if not self._hearing.speaking:
            self._hearing.restart()
            self._enter(State.IDLE)
            self._emit(Discarded(self._turn))
            return
        self._emit(SpeechStopped(self._turn, self._hearing.voice[1]))
        self._commit(*self._hearing.take())

    # Answering --------------------------------------------------------------------------------------------------------

    def _commit(self, message: Message, begin: int = 0, end: int = 0) -> None:
        self.messages = self._told([*self.messages, message])
        self._prepared = None  # the answer itself comes now
        self._asked = self._answer = _Answer(self._turn, list(self.messages))
        self._enter(State.ANSWERING)
        self._emit(Committed(self._turn, message, begin, end))

    def _told(self, messages: list[Message]) -> list[Message]:
        """What is kept of a conversation: a system message, and the latest, which begin with the user's.

        Half goes at once, so that the next turns begin like this one and the model's prefix cache holds.
        """
        system = [message for message in messages[:1] if message.role == "system"]
        latest = messages[len(system) :]
        if len(latest) > self._remembered:
            latest = latest[-((self._remembered + 1) // 2) :]
        while latest[0].role != "user":
            latest = latest[1:]
        return [*system, *latest]

    def _remember(self, text: str) -> None:
        if text.strip():
            self.messages.append(Message("assistant", text))

    def _settle(self, answer: _Answer) -> None:
        """The answer joins the history once all of it was generated and played."""
        if answer is self._answer and answer.said.complete and answer.played >= answer.said.samples:
            self._answer = None
            self._remember(answer.said.text)
            self._enter(State.IDLE)
            self._emit(Played(answer.turn))

    def _enter(self, state: State) -> None:
        self.state = state
        self._changed.notify_all()

    def _emit(self, event: Event) -> None:
        if not self._closed:
            self._on_event(event)

    # The thread -------------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._closed or self._asked or self._prepared)
                if self._closed:
                    return
                answer, self._asked = self._asked, None
                prepared, self._prepared = self._prepared, None
                self._busy = True
            if answer:
                self._respond(answer)
            elif prepared:
                try:
                    self._engine.prepare(prepared)
                except Exception:
                    pass  # nobody has asked yet; if it comes to that, the answer fails with the same error and says so

    def _respond(self, answer: _Answer) -> None:
        try:
            speaker = self._engine.speaker(partial(self._sound, answer))
            answer.said = Said(speaker, self._engine.space)
            stream = self._engine.respond(answer.messages, speaker, answer.cancel)
            with closing(stream):
                for piece in stream:
                    self._text(answer, piece)
                    if answer.cancel.is_set():  # now, and not when the voice has said the rest
                        return
                self._finish(answer, stream.answer.finish_reason)
        except Exception as error:
            self._fail(answer, error)

    def _text(self, answer: _Answer, piece: str) -> None:
        with self._changed:
            if answer is self._answer:
                answer.said.read(piece)
                self._emit(Text(answer.turn, piece))

    def _sound(self, answer: _Answer, sound: np.ndarray) -> None:
        with self._changed:
            if answer is self._answer:
                answer.said.sound(len(sound))
                self._emit(Sound(answer.turn, sound, self._engine.rate))

    def _finish(self, answer: _Answer, reason: str) -> None:
        with self._changed:
            if answer is self._answer:
                answer.said.finish()
                self._emit(Done(answer.turn, answer.said.text, reason))
                self._settle(answer)

    def _fail(self, answer: _Answer, error: Exception) -> None:
        with self._changed:
            if answer is self._answer:
                self._answer = None
                self.messages.pop()
                self._enter(State.IDLE)
                self._emit(Failed(answer.turn, error))
