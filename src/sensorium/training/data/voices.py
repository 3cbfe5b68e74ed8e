"""Voices to learn listening from: hibari's, and many of espeak-ng and flite, in rooms, with noise, through bad lines.

The synthesisers are needed to train, never to run: espeak-ng through its library, flite and festival through their
programs, all three Debian packages. Whole voices are held out: variants and accents of espeak-ng, a voice of flite, and
festival as a synthesiser that training never hears.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import io
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sensorium.errors import SensoriumError

Samples = NDArray[np.float32]
Engine = Literal["espeak", "flite", "festival", "hibari"]
RATE = 16_000

_ACCENTS = ("en-us", "en-us", "en", "en-gb-x-rp", "en-gb-scotland", "en-us-nyc")
_VARIANTS = (
    "", "f1", "f2", "f3", "f5", "m1", "m2", "m3", "m4", "m6", "m7", "m8", "klatt", "klatt2", "klatt4", "klatt5",
    "adam", "Alex", "Alicia", "Andrea", "Andy", "anika", "antonio", "aunty", "belinda", "benjamin", "boris", "caleb",
    "david", "Denis", "Diogo", "ed", "edward", "Gene", "grandma", "grandpa", "gustave", "Henrique", "Hugo", "iven",
    "Jacky", "john", "Lee", "marcelo", "Marco", "Mario", "max", "michel", "miguel", "Mike", "norbert", "pablo", "paul",
    "pedro", "quincy", "rob", "robert", "sandro", "shelby", "steph", "travis", "victor", "zac",
)  # fmt: skip
_FLITE = ("rms", "kal16", "awb")
SHARES: dict[str, dict[Engine, float]] = {
    "broad": {"espeak": 0.60, "flite": 0.26, "hibari": 0.14},
    "words": {"espeak": 0.82, "flite": 0.18},
    "names": {"espeak": 0.50, "flite": 0.40, "hibari": 0.10},
}
"""Of what training hears, by mixture of texts and synthesiser: hibari's voice is the most natural and costs ten times
as much."""


@dataclass(frozen=True)
class Voice:
    """A voice: its synthesiser, its name there, words a minute and pitch (50 is usual) where it has them."""

    engine: Engine
    name: str
    speed: int = 165
    pitch: int = 50

    def say(self, text: str) -> Samples:
        """A text as mono sound at 16 kHz, without the silence around it.

        Raises:
            SensoriumError: the synthesiser is not there, or said nothing.
        """
        sound, rate = _ENGINES[self.engine](text, self)
        return trimmed(resampled(sound, rate))


TEST_VOICES = (
    Voice("espeak", "en-us+f4", 160, 55),
    Voice("espeak", "en+Annie", 165),
    Voice("espeak", "en-us+m5", 170, 40),
    Voice("espeak", "en-gb-x-gbclan", 160, 45),
    Voice("espeak", "en-029", 155, 60),
    Voice("flite", "slt"),
    Voice("festival", "ked_diphone"),
)
"""Voices that training never hears."""


def draw(rng: np.random.Generator, mixture: str = "broad") -> Voice:
    """A voice of the training half."""
    shares = SHARES[mixture]
    engine: Engine = rng.choice(np.array(list(shares)), p=list(shares.values()))
    if engine == "espeak":
        accent, variant = (pool[int(rng.integers(len(pool)))] for pool in (_ACCENTS, _VARIANTS))
        name = f"{accent}+{variant}" if variant else accent
        return Voice("espeak", name, int(rng.integers(120, 196)), int(rng.integers(25, 80)))
    if engine == "flite":
        return Voice("flite", _FLITE[int(rng.integers(len(_FLITE)))], int(rng.integers(135, 190)))
    return Voice("hibari", "heart", int(rng.integers(140, 195)))


def disturbed(sound: Samples, rng: np.random.Generator) -> Samples:
    """A sound as a microphone might have it: silence around, tempo, a room, noise, a bad line, any loudness."""
    if rng.random() < 0.4:
        sound = _stretched(sound, float(rng.uniform(0.92, 1.09)))
    before, behind = rng.uniform(0.02, 0.35), rng.uniform(0.05, 0.45)
    sound = np.pad(sound, (int(before * RATE), int(behind * RATE)))
    if rng.random() < 0.45:
        sound = roomed(sound, float(rng.uniform(0.1, 0.6)), float(rng.uniform(0.05, 0.6)), rng)
    if rng.random() < 0.25:
        low, high = (300.0, 3400.0) if rng.random() < 0.5 else (50.0, float(rng.uniform(3000, 7000)))
        sound = banded(sound, low, high)
    loudness = float(np.sqrt(np.mean(sound**2))) + 1e-9
    if rng.random() < 0.6:
        decibels = float(rng.uniform(8, 40))
        noise = coloured(len(sound), float(rng.uniform(0, 1.2)), rng)
        sound = sound + noise * loudness * 10 ** (-decibels / 20)
    gain = float(np.exp(rng.uniform(np.log(0.02), np.log(0.2)))) / loudness
    return np.clip(sound * gain, -1, 1).astype(np.float32)


def roomed(sound: Samples, seconds: float, share: float, rng: np.random.Generator) -> Samples:
    """In a room whose echo falls by 60 dB in so many seconds and has that share of the energy: decaying noise."""
    length = int(seconds * RATE)
    echo = rng.standard_normal(length) * 10 ** (-3 * np.arange(length) / length)
    echo[: int(0.002 * RATE)] = 0
    echo *= np.sqrt(share / (1 - share) / np.sum(echo**2))
    echo[0] = 1.0
    size = 1 << (len(sound) + length).bit_length()
    wet = np.fft.irfft(np.fft.rfft(sound, size) * np.fft.rfft(echo, size), size)
    return wet[: len(sound)].astype(np.float32)


def banded(sound: Samples, low: float, high: float) -> Samples:
    """What a line passes between two frequencies, in Hz."""
    size = 1 << len(sound).bit_length()
    hertz = np.fft.rfftfreq(size, 1 / RATE)
    passed = 1 / (1 + (low / np.maximum(hertz, 1)) ** 8) / (1 + (hertz / high) ** 12)
    return np.fft.irfft(np.fft.rfft(sound, size) * passed, size)[: len(sound)].astype(np.float32)


def coloured(length: int, slope: float, rng: np.random.Generator) -> Samples:
    """Noise of root mean square 1 whose power falls with frequency to the power of ``slope``: 0 white, 1 pink."""
    size = 1 << length.bit_length()
    bins = np.maximum(np.arange(size // 2 + 1), 8) ** (-slope / 2)
    phases = rng.standard_normal(len(bins)) + 1j * rng.standard_normal(len(bins))
    noise = np.fft.irfft(bins * phases, size)[:length]
    return (noise / np.sqrt(np.mean(noise**2))).astype(np.float32)


def resampled(sound: Samples, rate: int) -> Samples:
    """At 16 kHz, through the spectrum: what is above 8 kHz is left out."""
    if rate == RATE:
        return sound.astype(np.float32)
    return _stretched(banded(sound, 1, 7600 * RATE / rate) if rate < RATE else sound, RATE / rate)


def trimmed(sound: Samples, quiet: float = 0.01) -> Samples:
    """Without the silence around it: from the first to the last sample above a hundredth of the loudest."""
    loud = np.flatnonzero(np.abs(sound) > quiet * np.abs(sound).max(initial=0.0))
    if not len(loud):
        raise SensoriumError("A synthesiser said nothing; leave the text out.")
    return sound[loud[0] : loud[-1] + 1]


def _stretched(sound: Samples, factor: float) -> Samples:
    """``factor`` times as many samples: the spectrum of a block cut or filled up."""
    size = 1 << (len(sound) + 2048).bit_length()
    spectrum = np.fft.rfft(np.pad(sound, (1024, size - 1024 - len(sound))))
    longer = round(size * factor) // 2 * 2
    bins = np.zeros(longer // 2 + 1, complex)
    kept = min(len(bins), len(spectrum))
    bins[:kept] = spectrum[:kept]
    whole = np.fft.irfft(bins, longer) * (longer / size)
    start = round(1024 * longer / size)
    return whole[start : start + round(len(sound) * longer / size)].astype(np.float32)


# Synthesisers ---------------------------------------------------------------------------------------------------------


def _espeak(text: str, voice: Voice) -> tuple[Samples, int]:
    return _Espeak.get().say(text, voice)


class _Espeak:
    """The library of espeak-ng: one for a process, not for several threads."""

    def __init__(self) -> None:
        name = ctypes.util.find_library("espeak-ng")
        if name is None:
            raise SensoriumError("Training to listen needs the voices of espeak-ng; apt-get install espeak-ng.")
        self.library = ctypes.CDLL(name)
        self.rate: int = self.library.espeak_Initialize(1, 0, None, 0)  # 1: give samples, do not play them
        if self.rate <= 0:
            raise SensoriumError("espeak-ng finds no data of its own; apt-get install --reinstall espeak-ng-data.")
        self.pieces: list[NDArray[np.int16]] = []
        shape = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)

        def take(samples: Any, count: int, events: Any) -> int:
            if samples and count > 0:
                self.pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
            return 0

        self.callback = shape(take)  # kept, or the library would call what is gone
        self.library.espeak_SetSynthCallback(self.callback)

    def say(self, text: str, voice: Voice) -> tuple[Samples, int]:
        self.pieces.clear()
        if self.library.espeak_SetVoiceByName(voice.name.encode()):
            raise SensoriumError(f"espeak-ng has no voice {voice.name!r}; install espeak-ng-data of version 1.51.")
        self.library.espeak_SetParameter(1, voice.speed, 0)
        self.library.espeak_SetParameter(3, voice.pitch, 0)
        data = text.encode() + b"\0"
        self.library.espeak_Synth(data, len(data), 0, 1, 0, 1, None, None)
        self.library.espeak_Synchronize()
        if not self.pieces:
            raise SensoriumError(f"espeak-ng said nothing for {text[:40]!r}; leave the text out.")
        return np.concatenate(self.pieces).astype(np.float32) / np.float32(32768), self.rate

    @staticmethod
    @cache
    def get() -> _Espeak:
        return _Espeak()


def _flite(text: str, voice: Voice) -> tuple[Samples, int]:
    stretch = f"duration_stretch={165 / voice.speed:.3f}"
    return _program(["flite", "-voice", voice.name, "--setf", stretch, "-t", text, "-o"], "flite")


def _festival(text: str, voice: Voice) -> tuple[Samples, int]:
    package = "festival festvox-kdlpc16k"
    return _program(["text2wave", "-eval", f"(voice_{voice.name})", "-o"], package, text)


def _program(command: list[str], package: str, given: str | None = None) -> tuple[Samples, int]:
    if shutil.which(command[0]) is None:
        raise SensoriumError(f"Training to listen needs the voices of {command[0]}; apt-get install {package}.")
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "said.wav"
        done = subprocess.run([*command, str(path)], input=given, capture_output=True, text=True, check=False)
        if not path.is_file() or path.stat().st_size < 100:
            raise SensoriumError(f"{command[0]} said nothing: {done.stderr[:100]!r}; install {package}.")
        return _wave(path.read_bytes())


def _wave(data: bytes) -> tuple[Samples, int]:
    import wave

    with wave.open(io.BytesIO(data)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32)
        return samples / np.float32(32768), file.getframerate()


def _hibari(text: str, voice: Voice) -> tuple[Samples, int]:
    return _heart()(text, voice.speed / 165, seed=len(text)), 24_000


@cache
def _heart() -> Any:
    import hibari

    return hibari.Hibari()


_ENGINES: dict[Engine, Callable[[str, Voice], tuple[Samples, int]]] = {
    "espeak": _espeak,
    "flite": _flite,
    "festival": _festival,
    "hibari": _hibari,
}
