"""The front end of Whisper: sound to log-mel spectrograms, in NumPy.

Radford et al. 2022 (arXiv 2212.04356), as OpenAI's `whisper/audio.py` and faster-whisper compute it: windows of 25 ms
every 10 ms, 80 mel bands (Slaney's scale), the loudest band and 80 dB below it. Unlike there, nothing is padded to 30
seconds.
"""

from __future__ import annotations

import functools

import numpy as np

RATE = 16_000
HOP = 160
_WINDOW = 400
_BANDS = 80


def log_mel(samples: np.ndarray) -> np.ndarray:
    """The spectrogram of mono sound at 16 kHz: float32 [80, n // 160], about -1..1.5. At least 201 samples."""
    half = _WINDOW // 2
    # Past its end the sound is silence, before its start its mirror: as the model was trained on.
    padded = np.pad(np.pad(samples.astype(np.float32, copy=False), (0, HOP)), half, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::HOP]
    power = np.abs(np.fft.rfft(frames * _hann(), axis=1)).astype(np.float32) ** 2
    bands = _filters() @ power.T
    logs = np.log10(np.maximum(bands, 1e-10))[:, : len(samples) // HOP]
    return ((np.maximum(logs, logs.max() - 8.0) + 4.0) / 4.0).astype(np.float32)


@functools.cache
def _hann() -> np.ndarray:
    return np.hanning(_WINDOW + 1)[:-1].astype(np.float32)


@functools.cache
def _filters() -> np.ndarray:
    """Triangles of equal area, evenly spaced in mel: float32 [80, 201]."""
    hertz = np.fft.rfftfreq(_WINDOW, 1 / RATE)
    # Slaney: linear below 1 kHz, logarithmic above; 45.2456 mel are 8 kHz.
    mel = np.linspace(0.0, 45.245640471924965, _BANDS + 2)
    edges = np.where(mel < 15, mel * 200 / 3, 1000 * np.exp((mel - 15) * np.log(6.4) / 27))
    rising = (hertz - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - hertz) / np.diff(edges)[1:, None]
    area = 2 / (edges[2:] - edges[:-2])
    return (np.maximum(0, np.minimum(rising, falling)) * area[:, None]).astype(np.float32)
