"""Voice activity on a stream: when somebody begins to speak, pauses, and has stopped.

`Silero` gives the probability of speech frame by frame, from the network that faster-whisper brings (Silero VAD,
MIT), with its memory carried on from frame to frame. `Activity` turns probabilities into signals by the rules of
Silero's own `get_speech_timestamps`: a threshold to begin, a lower one to go on, and a hangover before the end.
Time is counted in samples, so the same sound gives the same signals however fast and in whatever pieces it comes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from enum import Enum
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from sensorium.errors import SensoriumError, UsageError, install
from sensorium.sessions import session

RATE = 16_000
FRAME = 512
"""Samples that are judged together: 32 ms."""

Detector = Callable[[np.ndarray], float]
"""The probability of speech in the next frame of a stream, float32 [512]; remembers the frames before."""

_CONTEXT = 64
_STATE = (1, 1, 128)
_PACKAGE = "faster_whisper"


class Silero:
    """The network, loaded once; `stream()` gives a `Detector` for one stream.

    Raises:
        SensoriumError: faster-whisper is not installed, or brings no such network.
    """

    def __init__(self) -> None:
        path = _weights()
        try:
            self._session: Any = session(path, threads=1)  # a quarter of a millisecond a frame
        except Exception as error:
            reason = (str(error).splitlines() or [""])[0][:120]
            raise SensoriumError(f"{path} is no network that ONNX Runtime can load ({reason}); reinstall it.") from None
        names = [value.name for value in self._session.get_inputs()]
        if names != ["input", "h", "c"]:
            raise SensoriumError(f"The voice detector of this faster-whisper takes {', '.join(names)}; update it.")

    def stream(self) -> Detector:
        """A detector that has heard nothing yet."""
        h, c = np.zeros(_STATE, np.float32), np.zeros(_STATE, np.float32)
        before = np.zeros(_CONTEXT, np.float32)

        def detect(frame: np.ndarray) -> float:
            nonlocal h, c, before
            # One frame a call, always: a batch would round differently, and results would depend on chunk sizes.
            probability, h, c = self._session.run(
                None, {"input": np.concatenate([before, frame])[None].astype(np.float32), "h": h, "c": c}
            )
            before = frame[-_CONTEXT:]
            return float(probability.reshape(-1)[0])

        return detect


def _weights() -> Path:
    """The file, found without importing the package, which would load Whisper's runtime with it."""
    spec = find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise SensoriumError(f"Listening needs faster-whisper, which is not installed; {install('speech')}.")
    found = sorted(Path(spec.submodule_search_locations[0]).glob("assets/silero_vad_v*.onnx"))
    if not found:
        raise SensoriumError("This faster-whisper brings no voice detector in one file; update it to 1.2.1 or newer.")
    return found[-1]


@dataclass(frozen=True)
class ActivityOptions:
    """Seconds and probabilities.

    Attributes:
        threshold: the probability at which speech begins, or goes on after a pause.
        release: below this a frame is quiet.
        onset_s: voice shorter than this is no speech (a click, a cough).
        hangover_s: speech has ended when it was quiet for so long; a shorter pause does not split it.
        preroll_s: what is kept before the voice: its first consonant is softer than the threshold.
        tail_s: what is kept behind it, at most the hangover. After so long a quiet the answer is prepared.
        longest_s: speech is taken to have ended after so long, which bounds memory.

    Raises:
        UsageError: a value is out of range.
    """

    threshold: float = 0.5
    release: float = 0.35
    onset_s: float = 0.1
    hangover_s: float = 0.6
    preroll_s: float = 0.3
    tail_s: float = 0.2
    longest_s: float = 120.0

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            most = 1.0 if each.name in ("threshold", "release") else 3600.0
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= most:
                raise UsageError(f"{each.name} is {value!r}; give a number from 0 to {most:g}.")
        if not 0 < self.release <= self.threshold:
            raise UsageError(f"release is {self.release} and threshold {self.threshold}; release is the lower one.")
        if not self.tail_s <= self.hangover_s:
            raise UsageError(f"tail_s is {self.tail_s} and hangover_s {self.hangover_s}; the tail lies within it.")


class Signal(Enum):
    """What a frame has shown."""

    NOTHING = 0
    BEGUN = 1
    """Speech has begun, at `Activity.begun`."""
    PAUSED = 2
    """It has been quiet for the tail: this may be the end."""
    ENDED = 3
    """Speech has ended, at `Activity.ended`."""
    LONG = 4
    """Speech goes on, and so much of it has come that a part can be worked on (`hearing.AHEAD`)."""


class Activity:
    """Probabilities in, signals out.

    Args:
        options: see `ActivityOptions`.
        start: the sample of the stream at which the first frame begins.
        hold: quiet never ends speech: somebody else says when it is over (push to talk).

    Attributes:
        at: the sample behind the latest frame.
        begun: the sample at which the latest speech begins.
        ended: the sample behind the last voice of it.
        speaking: speech has begun and not ended.
    """

    def __init__(self, options: ActivityOptions | None = None, *, start: int = 0, hold: bool = False) -> None:
        self.options = options or ActivityOptions()
        self.at = self.begun = self.ended = start
        self.speaking = False
        self._hold = hold
        self._onset: int | None = None  # where what may become speech begins
        self._quiet = False
        self._paused = False

    def push(self, probability: float) -> Signal:
        """Judge the next frame by its probability of speech."""
        begin, self.at = self.at, self.at + FRAME
        if not self.speaking:
            return self._wait(begin, probability)
        if probability >= self.options.threshold or (not self._quiet and probability >= self.options.release):
            self._quiet = self._paused = False
            self.ended = self.at
        else:
            self._quiet = True
        return self._follow()

    def _wait(self, begin: int, probability: float) -> Signal:
        if probability < (self.options.threshold if self._onset is None else self.options.release):
            self._onset = None
            return Signal.NOTHING
        if self._onset is None:
            self._onset = begin
        if self.at - self._onset < samples(self.options.onset_s):
            return Signal.NOTHING
        self.begun, self.ended, self._onset = self._onset, self.at, None
        self.speaking, self._quiet, self._paused = True, False, False
        return Signal.BEGUN

    def _follow(self) -> Signal:
        quiet = self.at - self.ended
        over = quiet >= samples(self.options.hangover_s) and self._quiet and not self._hold
        if over or self.at - self.begun >= samples(self.options.longest_s):
            self.speaking = False
            return Signal.ENDED
        if self._quiet and not self._paused and quiet >= samples(self.options.tail_s):
            self._paused = True
            return Signal.PAUSED
        return Signal.NOTHING


def samples(seconds: float) -> int:
    """Seconds as samples of the input."""
    return round(seconds * RATE)
