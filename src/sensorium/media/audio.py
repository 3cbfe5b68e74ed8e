"""Sound from anywhere -> mono float32 samples at the rate that the caller wants, or one sentence."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import IO, ClassVar

import numpy as np

from sensorium.errors import SensoriumError, UsageError
from sensorium.media.limits import DEFAULT, Limits
from sensorium.media.reading import open_seekable
from sensorium.media.sound import Resampler, Sound, check_loudness, mixed, too_long

RATE = 16_000
"""Samples a second that speech models take."""

AudioSource = str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes]
_BLOCK = 1 << 16  # samples of an array that are resampled at once


@dataclass(frozen=True, eq=False)
class Audio:
    """One sound: what every audio encoder takes.

    Attributes:
        samples: float32 [n], mono, -1..1 (beyond it, as far as -8..8, where a file of floats is). Not writable, as
            caches are keyed by ``sha256``: copy it to change it.
        rate: samples a second.
        sha256: of the encoded bytes, or of the samples where there were none.
        source: where it came from, for messages.
    """

    kind: ClassVar[str] = "speech"  # what compositions hear in it

    samples: np.ndarray
    rate: int
    sha256: str
    source: str = "sound"

    def __post_init__(self) -> None:
        samples = self.samples
        if not isinstance(samples, np.ndarray) or samples.dtype != np.float32 or samples.ndim != 1 or not samples.size:
            raise SensoriumError("The samples of an Audio must be a float32 array [n]; use load_audio.")
        frozen = samples.view()
        frozen.flags.writeable = False
        object.__setattr__(self, "samples", frozen)

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return len(self.samples) / self.rate

    def __repr__(self) -> str:
        return f"Audio({self.source!r}, {self.seconds:.2f} s at {self.rate:,} Hz, sha256 {self.sha256[:12]})"


def load_audio(
    src: AudioSource | np.ndarray | Audio,
    limits: Limits = DEFAULT,
    *,
    rate: int = RATE,
    array_rate: int | None = None,
) -> Audio:
    """Decode the sound of a WAV, FLAC, Ogg (Opus, Vorbis), MP3, M4A, AAC or WebM file or of a video, whole.

    The content decides the format, never a name. Channels are averaged (of opposite ones, which would cancel, the
    loudest is taken), the rate is converted. Of several sound tracks FFmpeg's choice is taken. Where a track has gaps
    or begins late, silence stands: times are those of a player.

    Args:
        src: a path, the bytes of a file, a binary stream, or an array [n] or [n, channels] of int16, int32, uint8 or
            float -1..1 with ``array_rate``. An :class:`Audio` is returned as it is, or resampled.
        limits: what is read and decoded at most; they hold while it is decoded.
        rate: samples a second that come out.
        array_rate: samples a second of an array.

    Raises:
        UsageError: an array without its rate, or rates that are none.
        SensoriumError: one sentence that says what is wrong with ``src`` and what to do.
    """
    _check_rate(rate, limits, "rate")
    if isinstance(src, Audio):
        if src.rate == rate:
            return src
        made = _gathered(_resampled(src.samples, src.rate, rate), src.source, rate, limits)
        return Audio(made, rate, src.sha256, src.source)
    if isinstance(src, np.ndarray):
        if array_rate is None:
            raise UsageError("An array of samples needs its rate; give array_rate=16000 or what it was recorded with.")
        _check_rate(array_rate, limits, "array_rate")
        samples = _array_to_mono(src, limits)
        digest = hashlib.sha256(f"{samples.shape};{array_rate}".encode() + samples.tobytes())
        made = _gathered(_resampled(samples, array_rate, rate), "The array", rate, limits)
        return Audio(made, rate, digest.hexdigest(), "array")
    with open_seekable(src, limits.max_audio_bytes) as (handle, label):
        return decode_audio(handle, limits, rate=rate, label=label)


def decode_audio(handle: IO[bytes], limits: Limits = DEFAULT, *, rate: int = RATE, label: str = "The data") -> Audio:
    """Decode an opened file from its start; ``label`` names it in messages. Raises as :func:`load_audio`."""
    with contextlib.closing(Sound(handle, label, limits)) as sound:
        _check_length(sound.promised, label, rate, limits)  # by the header, before hours are decoded for nothing
        samples = _gathered(_at_rate(sound, rate), label, rate, limits)
    digest = hashlib.sha256()
    handle.seek(0)
    while piece := handle.read(1 << 20):
        digest.update(piece)
    return Audio(samples, rate, digest.hexdigest(), label)


@dataclass(frozen=True)
class AudioStream:
    """A sound that is decoded as it is read.

    Attributes:
        pieces: float32 [n] each, of any length; can be read once.
        label: its name for messages.
        declared: seconds as the file's header has it, 0 where unknown; for progress bars, not to be relied on.
    """

    pieces: Iterator[np.ndarray]
    label: str
    declared: float


@contextlib.contextmanager
def open_audio(src: AudioSource, limits: Limits = DEFAULT, *, rate: int = RATE) -> Iterator[AudioStream]:
    """Open a file of any length to be decoded piece by piece. Arguments and errors as of :func:`load_audio`; errors of
    the content come while its pieces are read."""
    _check_rate(rate, limits, "rate")
    with (
        open_seekable(src, limits.max_audio_bytes) as (handle, label),
        contextlib.closing(Sound(handle, label, limits)) as sound,
    ):
        yield AudioStream(_at_rate(sound, rate), label, sound.declared)


def stream_audio(
    src: AudioSource, limits: Limits = DEFAULT, *, rate: int = RATE, seconds: float = 30.0
) -> Iterator[np.ndarray]:
    """The sound as float32 [n] blocks of ``seconds`` each (the last is shorter), so that memory stays flat however
    long it is. Arguments and errors as of :func:`load_audio`."""
    with open_audio(src, limits, rate=rate) as stream:
        yield from blocks_of(stream.pieces, max(1, round(seconds * rate)))


def blocks_of(pieces: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Pieces of any length -> arrays of ``size`` samples each, and the rest."""
    held: list[np.ndarray] = []
    count = 0
    for piece in pieces:
        held.append(piece)
        count += len(piece)
        if count >= size:
            joined = np.concatenate(held)
            whole = count - count % size
            yield from np.split(joined[:whole], whole // size)
            held, count = [joined[whole:]], count - whole
    if count:
        yield np.concatenate(held)


def _gathered(pieces: Iterable[np.ndarray], label: str, rate: int, limits: Limits) -> np.ndarray:
    """All samples, as long as they fit: float32 [n]."""
    most = limits.max_decoded_bytes // 4
    held, count = [], 0
    for piece in pieces:
        count += len(piece)
        if count > most:
            raise too_long(label, most // rate)
        held.append(piece)
    if not count:
        raise SensoriumError(f"{label} holds a sound of no length; give one with something to hear.")
    return np.concatenate(held)


def _check_length(seconds: float, label: str, rate: int, limits: Limits) -> None:
    if seconds > limits.max_seconds + 1:  # headers may be a little off
        raise too_long(label, limits.max_seconds, limits.who)
    if (seconds - 1) * rate > limits.max_decoded_bytes // 4:
        raise too_long(label, limits.max_decoded_bytes // 4 // rate)


def _at_rate(sound: Sound, rate: int) -> Iterator[np.ndarray]:
    resampler = Resampler(rate)
    for samples, old in sound.blocks():
        yield from resampler.feed(samples, old)
    yield from resampler.flush()


def _resampled(samples: np.ndarray, old: int, new: int) -> Iterator[np.ndarray]:
    resampler = Resampler(new)
    for begin in range(0, len(samples), _BLOCK):
        yield from resampler.feed(np.ascontiguousarray(samples[begin : begin + _BLOCK]), old)
    yield from resampler.flush()


def _check_rate(rate: object, limits: Limits, name: str) -> None:
    if type(rate) is not int or not limits.min_rate <= rate <= limits.max_rate:
        raise UsageError(
            f"{name}={rate!r} is no sampling rate; give a whole number, {limits.min_rate:,} to {limits.max_rate:,}."
        )


_SCALES = {"uint8": 1 / 128, "int16": 1 / 32768, "int32": 1 / 2147483648}


def _array_to_mono(array: np.ndarray, limits: Limits) -> np.ndarray:
    """float32 [n] from [n] or [n, channels]."""
    if array.ndim not in (1, 2) or 0 in array.shape:
        raise SensoriumError(f"An array of shape {array.shape} is no sound; give samples as [n] or [n, channels].")
    if array.ndim == 2 and array.shape[1] > limits.max_channels:
        hint = "give array.T, which is [n, channels]" if array.shape[0] <= limits.max_channels else "mix it down first"
        raise SensoriumError(f"An array of shape {array.shape} has {array.shape[1]} channels; {hint}.")
    scale = _SCALES.get(array.dtype.name, 1.0 if array.dtype.kind == "f" else None)
    if scale is None:
        raise SensoriumError(
            f"An array of type {array.dtype.name} has no known range; give floats from -1 to 1, or int16."
        )
    values = array.astype(np.float64) if array.dtype.kind != "f" else array
    if array.dtype.kind == "f":
        check_loudness(array, "The array")
    if array.dtype == np.uint8:
        values = values - 128
    return np.asarray((mixed(values.T) if values.ndim == 2 else values) * scale, dtype=np.float32)
