"""hibari: 114 phoneme symbols -> 24 kHz speech (PyPI `hibari-tts`, Apache-2.0, numpy and ONNX Runtime).

A chunk is spoken as a sentence of its own, with silence before and after it, so chunks are cut where speech pauses: at
punctuation, and at a word's end where a phrase is long or nothing has been said yet. The silences are trimmed to the
pause that belongs there.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sensorium.errors import SensoriumError, install
from sensorium.generators.base import Samples, UnitSpec

SENTENCE, CLAUSE = frozenset(".!?…"), frozenset(",;:—")
FIRST, LATER = (12, 12), (60, 160)
"""Units from which a chunk may end at a clause, and at any word's end: the first chunk of an utterance, later ones. The
first is what a listener waits for: cut at 12 units instead of 16 or 24, a recogniser gets 2.2 % of words wrong instead
of 2.9 or 3.2, which is chance (60 quotations, 1,122 words), and tokens of 12 ms each are not waited for."""
PAUSES = {"sentence": 0.30, "clause": 0.14, "word": 0.02}
"""Seconds of silence that are left behind a chunk, by what it ends with."""
QUIET = 1e-3
_LONG_WORD, _PIECE = re.compile(r"\w{31,}"), re.compile(r"\w{20}(?=\w)")
_MARGIN_S = 0.01


class Hibari:
    """The generator, and its text front-end; see `base.SpeechGenerator` and `base.TextFront`.

    Args:
        threads: ONNX Runtime threads; one is enough (100 times real time).
        speed: 0.5 (slow) to 2 (fast).

    Raises:
        SensoriumError: the package is not installed, or is damaged.
    """

    rate = 24000
    first = FIRST[1]

    def __init__(self, threads: int = 1, speed: float = 1.0) -> None:
        try:
            import hibari
        except ImportError:
            raise SensoriumError(f"Speech needs hibari-tts, which is not installed; {install('speech')}.") from None
        self.speed = speed
        self._lock = threading.Lock()
        assets = Path(hibari.__file__).parent / "assets"
        self._tts: Any = hibari.Hibari(threads=threads)
        self.units, self._ids = _units(assets)
        self._numbers = {symbol: number for number, symbol in enumerate(self.units.symbols, start=1)}
        self.space = self._numbers[" "]

    def units_of(self, text: str) -> list[int]:
        """Units of a text: sentence by sentence, a space between. What it has no sound for is left out (`unsaid`)."""
        text = _LONG_WORD.sub(lambda word: _PIECE.sub(r"\g<0> ", word[0]), text)  # hibari leaves the rest of them out
        with self._lock:
            spoken = " ".join(" ".join(self._tts.phonemize(text)).split())
        return [self._numbers[symbol] for symbol in spoken if symbol in self._numbers]

    def unsaid(self, text: str) -> list[str]:
        """The words of a text that have no sound here, such as those in another script; each once."""
        odd = (word for word in text.split() if any(c.isalnum() for c in word) and not word.isascii())
        return [word for word in dict.fromkeys(odd) if not self.units_of(word)]

    def spelled(self, units: Sequence[int]) -> str:
        """The phonemes as a text."""
        return "".join(self.units.symbols[unit - 1] for unit in units)

    def generate(self, units: Sequence[int], index: int = 0) -> Samples:
        """Sound of one chunk; nothing where there is nothing but spaces and punctuation."""
        spelled = self.spelled(units).strip()
        if not any(symbol.isalpha() for symbol in spelled):
            return np.zeros(0, np.float32)
        ids = [0, *[self._ids[self._numbers[symbol] - 1] for symbol in spelled], 0]
        with self._lock:
            sound = self._tts.from_ids(ids, self.speed, np.random.default_rng(index))
        return self._trimmed(np.clip(sound, -1, 1), spelled[-1])

    def cut(self, units: Sequence[int], first: bool) -> int:
        """Behind the first place that will do: the end of a sentence, of a clause or, late, of a word."""
        symbols = self.units.symbols
        least, longest = FIRST if first else LATER
        for at in range(1, len(units)):
            if symbols[units[at] - 1] != " ":
                continue  # only a space says that the word, or the row of punctuation marks, has ended
            last = symbols[units[at - 1] - 1]
            if last in SENTENCE or (last in CLAUSE and at >= least) or at >= longest:
                return at + 1
        return 0

    def _trimmed(self, sound: Samples, last: str) -> Samples:
        loud = np.flatnonzero(np.abs(sound) > QUIET)
        if not len(loud):
            return np.zeros(0, np.float32)
        kind = "sentence" if last in SENTENCE else "clause" if last in CLAUSE else "word"
        margin = int(_MARGIN_S * self.rate)
        end = int(loud[-1]) + margin + int(PAUSES[kind] * self.rate)
        quiet = np.zeros(max(0, end - len(sound)), np.float32)
        return np.concatenate([sound[max(0, int(loud[0]) - margin) : end], quiet]).astype(np.float32)


@functools.lru_cache(maxsize=1)
def _units(assets: Path) -> tuple[UnitSpec, tuple[int, ...]]:
    """The units in the order of hibari's own numbers, and these numbers."""
    vocabulary = json.loads((assets / "vocab.json").read_text(encoding="utf-8"))
    order = sorted(vocabulary.items(), key=lambda pair: pair[1])
    weights = hashlib.sha256((assets / "hibari.onnx").read_bytes()).hexdigest()
    return UnitSpec(tuple(symbol for symbol, _ in order), weights), tuple(number for _, number in order)
