"""Whisper's encoder, frozen: sound to features at 50 Hz, through CTranslate2.

Radford et al. 2022 (arXiv 2212.04356). Short sound is encoded as it is, without the silence that Whisper pads to 30
seconds (a second takes 20 ms, not 0.5 s); longer sound in windows of 30 seconds that overlap by two, of which the inner
parts are joined, so that nothing is left out and every frame but the outermost has heard a second on either side.
Whole windows are remembered: sound that is encoded again and again while it grows costs its last window alone.
"""

from __future__ import annotations

import hashlib
import importlib
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sensorium.backbones.threads import physical_cores
from sensorium.encoders import base
from sensorium.encoders.log_mel import log_mel
from sensorium.encoders.tensors import read_bytes
from sensorium.errors import SensoriumError, UsageError, install

FRAME = 320
"""Samples of a feature, at 16 kHz: 20 ms."""

WINDOW = 1500
"""Frames that the encoder takes at most: 30 seconds."""

OVERLAP = 100
"""Frames that neighbouring windows share: 2 seconds."""

REMEMBERED = 4
"""Whole windows whose features are kept: 2.3 MB each."""

_DIMS = {"tiny.en": 384, "base": 512}
_LAYER = f"last;log-mel-80;unpadded;{WINDOW}-{OVERLAP};v1"  # bump when anything between sound and features changes
_MAX_BYTES = 1 << 30
_WORDS = 51_865  # of the vocabulary that CTranslate2 asks for; the encoder never looks at it


class WhisperEncoder:
    """A frozen speech encoder.

    Args:
        size: "tiny.en" (384 wide, English) or "base" (512 wide, 99 languages).
        weights: its `model.bin` in CTranslate2 form.
        threads: threads of one ``encode``; ``None`` for one a core.

    Attributes:
        spec: float32 [ceil(n / 320), dim] for n samples: 50 Hz.

    Raises:
        UsageError: the size is unknown, or threads are no such number.
        SensoriumError: the file is not that model, or CTranslate2 is not installed.
    """

    def __init__(self, size: str, weights: Path | str, threads: int | None = None) -> None:
        if size not in _DIMS:
            raise UsageError(f"Whisper {size!r} is unknown; use one of {', '.join(_DIMS)}.")
        if threads is not None and (type(threads) is not int or threads < 1):
            raise UsageError(f"{threads!r} threads cannot run; use 1 or more, or leave it out.")
        data = read_bytes(Path(weights), _MAX_BYTES)
        self._whole: OrderedDict[bytes, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()
        self._model = open_whisper({"model.bin": data, "vocabulary.txt": _placeholders()}, str(weights), threads)
        dim = self._window(np.zeros(FRAME, np.float32)).shape[1]
        if dim != _DIMS[size]:
            raise SensoriumError(f"{weights} gives features of {dim}, not the {_DIMS[size]} of Whisper {size}.")
        fingerprint = hashlib.sha256(f"whisper;{_LAYER};".encode() + hashlib.sha256(data).digest()).hexdigest()
        self.spec = base.FeatureSpec(dim, base.Sequence(), 16_000 / FRAME, fingerprint)

    def encode(self, sounds: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Features of mono sounds at 16 kHz, float32 [n] each, of any lengths: float32 [ceil(n / 320), dim] each.

        A sound's features do not depend on the sounds beside it.

        Raises:
            UsageError: one of them is no such array.
        """
        return [self._one(samples) for samples in sounds]

    def _one(self, samples: np.ndarray) -> np.ndarray:
        if not isinstance(samples, np.ndarray) or samples.dtype != np.float32 or samples.ndim != 1:
            given = type(samples).__name__
            if isinstance(samples, np.ndarray):
                given = f"{samples.dtype} {list(samples.shape)}"
            raise UsageError(f"the speech encoder was given {given}; give float32 [n] at 16 kHz, as load_audio does.")
        features = np.zeros((frames_of(len(samples)), self.spec.dim), np.float32)
        for begin, end, first, last in windows(len(features)):
            window = self._remembered(samples[begin * FRAME : end * FRAME])
            features[first:last] = window[first - begin : last - begin]
        return features

    def _remembered(self, samples: np.ndarray) -> np.ndarray:
        if len(samples) < WINDOW * FRAME:
            return self._window(samples)
        key = hashlib.sha256(samples.tobytes()).digest()
        with self._lock:
            known = self._whole.get(key)
        if known is None:
            known = self._window(samples)
        with self._lock:
            self._whole[key] = known
            self._whole.move_to_end(key)
            while len(self._whole) > REMEMBERED:
                self._whole.popitem(last=False)
        return known

    def _window(self, samples: np.ndarray) -> np.ndarray:
        """At most 30 seconds: float32 [ceil(n / 320), dim]."""
        ctranslate2 = need("ctranslate2")
        whole = np.pad(samples, (0, -len(samples) % FRAME))
        spectrogram = ctranslate2.StorageView.from_array(np.ascontiguousarray(log_mel(whole)[None]))
        return np.array(self._model.encode(spectrogram, to_cpu=True))[0]


def frames_of(samples: int) -> int:
    """The number of features of so many samples at 16 kHz: 50 a second, the last for what is left."""
    return -(-samples // FRAME)


def windows(frames: int) -> Iterator[tuple[int, int, int, int]]:
    """(begin, end) of each window, and (first, last) of the frames that are taken from it; those cover all, once."""
    begin, first = 0, 0
    while first < frames:
        end = min(begin + WINDOW, frames)
        last = frames if end == frames else end - OVERLAP // 2
        yield begin, end, first, last
        begin, first = end - OVERLAP, last


def open_whisper(files: dict[str, bytes], name: str, threads: int | None, compute: str = "float32") -> Any:
    """The model of these files in CTranslate2; ``name`` stands in messages. Raises SensoriumError."""
    ctranslate2 = need("ctranslate2")
    try:
        return ctranslate2.models.Whisper(
            name, device="cpu", compute_type=compute, intra_threads=threads or physical_cores(), files=files
        )
    except (RuntimeError, ValueError) as error:
        reason = (str(error).splitlines() or [""])[0][:120]
        raise SensoriumError(f"{name} is no Whisper in CTranslate2 form ({reason}); name its model.bin.") from None


def need(module: str) -> Any:
    """A module of the extra `speech`; SensoriumError where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise SensoriumError(f"Whisper needs {module}, which is not installed; {install('speech')}.") from None


def _placeholders() -> bytes:
    return "\n".join(f"<{number}>" for number in range(_WORDS)).encode()
