"""Units in as they come, sound out in chunks: the one place where chunks of speech are cut and joined.

Whole speech goes through the same two functions, so streamed speech is the same sound by construction.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from sensorium.generators.base import Samples, SpeechGenerator

FADE_S = 0.01
"""Seconds over which a chunk fades into the next."""


class SpeechStream:
    """One utterance. `push` units as they come, `flush` at the end; both give the samples that are final by then.

    Attributes:
        chunks: behind each chunk so far, how many units and how many samples of the utterance there are.
    """

    def __init__(self, generator: SpeechGenerator) -> None:
        self.generator = generator
        self._fade = int(FADE_S * generator.rate)
        self._waiting: list[int] = []
        self._tail = np.zeros(0, np.float32)  # the end of the last chunk, which the next one fades into
        self._units = self._samples = 0
        self.chunks: list[tuple[int, int]] = []

    def push(self, units: Iterable[int]) -> Samples:
        """Samples float32 [n] of the chunks that are complete now; often none."""
        self._waiting.extend(units)
        done = []
        while count := self.generator.cut(self._waiting, not self.chunks):
            done.append(self._sound(count))
        return np.concatenate(done) if done else np.zeros(0, np.float32)

    def flush(self) -> Samples:
        """The rest."""
        done = [self._sound(len(self._waiting))] if self._waiting else []
        tail, self._tail = self._tail, np.zeros(0, np.float32)
        return np.concatenate([*done, tail])

    def _sound(self, count: int) -> Samples:
        chunk, self._waiting = self._waiting[:count], self._waiting[count:]
        sound = self._join(self.generator.generate(chunk, len(self.chunks)))
        self._units += count
        self._samples += len(sound)
        self.chunks.append((self._units, self._samples + len(self._tail)))
        return sound

    def _join(self, sound: Samples) -> Samples:
        """The tail of what came before, faded into `sound`, and as much of `sound` as no later chunk can change."""
        overlap = min(len(self._tail), len(sound))
        if overlap:
            ramp = (np.arange(overlap, dtype=np.float32) + 0.5) / overlap
            end = len(self._tail) - overlap
            faded = self._tail[end:] * (1 - ramp) + sound[:overlap] * ramp
            sound = np.concatenate([self._tail[:end], faded, sound[overlap:]])
        else:
            sound = np.concatenate([self._tail, sound])
        keep = min(self._fade, len(sound))
        self._tail = sound[len(sound) - keep :]
        return sound[: len(sound) - keep]


def speak_units(generator: SpeechGenerator, units: Sequence[int]) -> Samples:
    """The sound of a whole utterance, float32 [samples]."""
    stream = SpeechStream(generator)
    return np.concatenate([stream.push(units), stream.flush()])


def stream_units(generator: SpeechGenerator, pieces: Iterable[Sequence[int]]) -> Iterator[Samples]:
    """Sound in chunks, each as soon as its units are there."""
    stream = SpeechStream(generator)
    for piece in pieces:
        sound = stream.push(piece)
        if len(sound):
            yield sound
    rest = stream.flush()
    if len(rest):
        yield rest
