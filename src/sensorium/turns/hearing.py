"""The user's side of a conversation: sound in, signals out, and the message cut out of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np

from sensorium.media.audio import Audio
from sensorium.messages import Message
from sensorium.turns.activity import FRAME, RATE, Activity, ActivityOptions, Detector, Signal, samples
from sensorium.turns.recording import Recording

AHEAD = 30 * RATE
"""Samples of a message after which, and after each further so many, `Signal.LONG` says so: what the speech encoder
takes at once has come."""


class Hearing:
    """One stream of sound.

    Args:
        detector: makes a voice detector for a stream.
        options: of the voice activity.
        hold: only the caller says when a message is over.

    Attributes:
        at: samples of the stream so far, whole frames.
        speaking: a message has begun.
        voice: samples of the stream at which the voice in it begins, and behind its end.
    """

    def __init__(self, detector: Callable[[], Detector], options: ActivityOptions, hold: bool) -> None:
        self.at = 0
        self._make, self._options, self._hold = detector, options, hold
        self.restart()

    def restart(self) -> None:
        """Hear as if nothing had been said: sound that came before belongs to no message any more."""
        self._rest = np.zeros(0, np.float32)
        self._detect: Detector | None = None
        self._next(Recording(self.at))

    def _next(self, recording: Recording) -> None:
        self._recording = recording
        self._activity = Activity(self._options, start=self.at, hold=self._hold)
        self._first: int | None = None
        self._ahead, self._draft = AHEAD, 0

    @property
    def speaking(self) -> bool:
        return self._first is not None

    @property
    def voice(self) -> tuple[int, int]:
        return self._activity.begun if self._first is None else self._first, self._activity.ended

    def frames(self, sound: np.ndarray, *, last: bool = False) -> np.ndarray:
        """The frames float32 [n, FRAME] that are whole now; `last` fills the rest of the sound up with silence."""
        joined = np.concatenate([self._rest, sound])
        if last:
            joined = np.pad(joined, (0, -len(joined) % FRAME))
        whole = len(joined) // FRAME * FRAME
        self._rest = joined[whole:]
        return joined[:whole].reshape(-1, FRAME)

    def hear(self, frame: np.ndarray) -> Signal:
        """Take one frame in. At `PAUSED` and `LONG` there is a `draft`, at `ENDED` a message to `take`."""
        self.at += FRAME
        self._recording.add(frame)
        self._detect = self._detect or self._make()
        signal = self._activity.push(self._detect(frame))
        if signal is Signal.BEGUN:
            self._first = self._activity.begun
        if self._first is None:
            kept = samples(self._options.preroll_s) + samples(self._options.onset_s) + FRAME
            self._recording.forget(self.at - kept)
        elif signal is Signal.PAUSED:
            self._draft = self._end()
        elif signal is Signal.NOTHING and self.at - self._begin() >= self._ahead:
            self._draft = self._begin() + self._ahead
            self._ahead += AHEAD
            return Signal.LONG
        return signal

    def draft(self) -> Message:
        """The message as it stands. If the pause was its end, the very same is taken later."""
        return self._message(self._draft)

    def take(self) -> tuple[Message, int, int]:
        """The message, and the samples of the stream that it holds; the next one begins."""
        begin, end = self._begin(), self._end()
        message = self._message(end)
        if self._hold:
            self.restart()
        else:  # the detector hears on, and what lies behind this message may be the beginning of the next
            rest = Recording(end)
            rest.add(self._recording.cut(end, self._recording.end))
            self._next(rest)
        return message, begin, end

    def _begin(self) -> int:
        return max(self._recording.begin, (self._first or 0) - samples(self._options.preroll_s))

    def _end(self) -> int:
        return min(self._recording.end, self._activity.ended + samples(self._options.tail_s))

    def _message(self, end: int) -> Message:
        sound = self._recording.cut(self._begin(), end)
        digest = hashlib.sha256(f"{sound.shape};{RATE}".encode() + sound.tobytes()).hexdigest()
        return Message("user", [Audio(sound, RATE, digest, "speech")])
