"""Encoded sound -> blocks of mono float32 samples, through PyAV, in limits that hold while it is decoded.

What FFmpeg may do here is named, not probed: the content decides one demuxer of `_DEMUXERS`, the decoders are those of
`_CODECS`, and nothing that a file refers to is opened (playlists, external tracks, addresses). What a header says about
rate and length is checked and never trusted: samples are counted as they come.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import IO, Any, NoReturn

import numpy as np

from sensorium.errors import SensoriumError, install
from sensorium.media.containers.base import CUT_OFF, DAMAGED, Broken
from sensorium.media.kind import sniff
from sensorium.media.limits import Limits
from sensorium.media.whole import check_whole, mp3_seconds

_DEMUXERS = {
    "WAV": "wav",
    "FLAC": "flac",
    "Ogg": "ogg",
    "MP3": "mp3",
    "AAC": "aac",
    "M4A": "mov",
    "MP4": "mov",
    "QuickTime": "mov",
    "WebM": "matroska",
    "Matroska": "matroska",
    "AVI": "avi",
}
_CODECS = frozenset({
    "pcm_u8", "pcm_s8", "pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_s24be", "pcm_s32le", "pcm_s32be", "pcm_s64le",
    "pcm_f32le", "pcm_f32be", "pcm_f64le", "pcm_f64be", "pcm_alaw", "pcm_mulaw", "adpcm_ms", "adpcm_ima_wav",
    "adpcm_ima_qt", "flac", "alac", "vorbis", "opus", "mp1", "mp2", "mp3", "mp1float", "mp2float", "mp3float", "aac",
    "ac3", "eac3",
})  # fmt: skip
LOUDEST = 8.0
"""Of samples as floats, 18 dB over full scale: mixes and lossy coders go a little beyond 1, integers far."""
CANCELLED = 1e-3
"""Of the channels' power, what is left in their mean where they are opposite; half is left of unlike ones."""
READABLE = "a WAV, FLAC, Ogg, MP3, M4A, AAC, WebM, MP4, Matroska or AVI file"
_HEAD = 1 << 16
_MAX_PACKET = 32 << 20
_GAP = 0.1  # seconds without sound that are no rounding of timestamps
_UNTIMED = ("wav", "flac", "mp3", "aac")  # formats that cannot leave anything out: a gap is a loss
_RESYNCING = ("mp3", "aac")  # streams that may be cut anywhere, as radios and phones do: half a packet at the ends
_LOSS = {  # (seconds, share) of a declared length that may be missing, the larger of both; MP4 has its own timeline
    "wav": (0.05, 0.0),
    "flac": (0.05, 0.0),
    "mp3": (0.5, 0.005),
    "matroska": (0.5, 0.02),
    "mov": (1.0, 0.1),
}
_SCALES = {"u1": 1 / 128, "i2": 1 / 32768, "i4": 1 / 2147483648, "i8": 1 / 9223372036854775808}


def pyav() -> Any:
    """The module `av`; SensoriumError where it is not installed."""
    try:
        return importlib.import_module("av")
    except ImportError:
        raise SensoriumError(f"Reading sound needs PyAV, which is not installed; {install('speech')}.") from None


class Sound:
    """The first sound track of an opened file, as blocks at its own rate.

    Args:
        handle: the file, from its start; read as needed.
        label: its name in messages.
        limits: those for sound.

    Attributes:
        format: "WAV", "MP3", ...
        declared: seconds as the header has it, for progress bars; 0 where it says nothing.
        promised: seconds that the file must hold to be whole; 0 for a header that does not commit itself.

    Raises:
        SensoriumError: the file holds no sound that can be read; one sentence.
    """

    def __init__(self, handle: IO[bytes], label: str, limits: Limits) -> None:
        head = handle.read(_HEAD)
        handle.seek(0)
        kind, self.format = sniff(head)
        if self.format not in _DEMUXERS or kind not in ("audio", "video"):
            raise SensoriumError(_not_sound(label, kind, self.format))
        self._label, self._limits = label, limits
        self._demuxer = _DEMUXERS[self.format]
        self._container: Any = None
        with self._sentences():
            self._container = self._open(handle)
            self._stream = self._track()
        self._handle = handle
        self.promised = self._promised(head)
        declared = self._stream.duration * self._stream.time_base if self._stream.duration else 0
        declared = self.promised if self._demuxer == "wav" else self.promised or declared
        self.declared = float(declared) if 0 < declared <= limits.max_seconds else 0.0

    def close(self) -> None:
        """Free the decoder."""
        if self._container is not None:
            self._container.close()

    def blocks(self) -> Iterator[tuple[np.ndarray, int]]:
        """(mono samples float32 [n], their rate in Hz), in order, gaps of the timestamps filled with silence.

        Raises:
            SensoriumError: the file is damaged, cut off or over a limit, or there is no sample in it.
        """
        with self._sentences():
            check_whole(self._handle, self._demuxer)
            seconds = 0.0
            for samples, rate in self._decoded():
                seconds += len(samples) / rate
                if seconds > self._limits.max_seconds:
                    self._too_long()
                yield samples, rate
            some, share = _LOSS.get(self._demuxer, (0.0, 0.0))
            if seconds < self.promised - max(some, share * self.promised):
                digits = 1 if self.promised - seconds >= 0.2 else 2
                told, held = f"{self.promised:.{digits}f}", f"{seconds:.{digits}f}"
                raise Broken(f"{CUT_OFF} (it declares {told} seconds and holds {held})")
            if not seconds:
                raise SensoriumError(f"{self._label} holds a sound of no length; give one with something to hear.")

    def _promised(self, head: bytes) -> float:
        """See `promised`. The length of an MP3 file without "Xing" is FFmpeg's guess, and that of a Matroska file with
        pictures is theirs, too."""
        if self._demuxer == "wav":
            return _wav_seconds(head)
        if self._demuxer == "mp3":
            return mp3_seconds(self._handle)
        if self._demuxer == "matroska" and len(self._container.streams) == 1:
            begin = max(0, self._container.start_time or 0)
            return max(0, (self._container.duration or 0) - begin) / int(pyav().time_base)
        if self._demuxer in ("flac", "mov") and self._stream.duration:
            return float(self._stream.duration * self._stream.time_base)
        return 0.0

    def _open(self, handle: IO[bytes]) -> Any:
        def refuse(*_: Any) -> NoReturn:
            raise PermissionError("a file refers to another")

        options = {
            "codec_whitelist": ",".join(sorted(_CODECS)),
            "format_whitelist": ",".join(sorted({*_DEMUXERS.values(), "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"})),
            "protocol_whitelist": "none",
        }
        return pyav().open(
            handle, format=self._demuxer, container_options=options, metadata_errors="replace", io_open=refuse
        )

    def _track(self) -> Any:
        stream = self._container.streams.best("audio")
        if stream is None:
            raise SensoriumError(f"{self._label} is {self.format} without a sound track; give a file that has one.")
        context = stream.codec_context
        if context is None or context.name not in _CODECS:
            named = "an unknown codec" if context is None else f"the codec {context.name}"
            raise SensoriumError(
                f"{self._label} has sound in {named}, which is not decoded here; save it as {READABLE}."
            )
        if context.sample_rate:
            self._check(context.sample_rate, context.channels)
        return stream

    def _decoded(self) -> Iterator[tuple[np.ndarray, int]]:
        """Frames as mono samples, with the silence that lies between them."""
        start = (self._container.start_time or 0) / pyav().time_base
        heard, lost, clock = False, 0, 0.0
        for packet in self._container.demux(self._stream):
            frames = self._frames(packet)
            if frames is None:  # at its head and its end a stream may hold half a packet
                lost += 1
                if lost > 2 or (self._demuxer not in _RESYNCING):
                    self._broken(heard, clock)
                continue
            for frame in frames:
                if heard and lost:
                    self._broken(heard, clock)
                heard, lost = True, 0
                rate = frame.sample_rate
                self._check(rate, frame.layout.nb_channels)
                gap = 0.0 if frame.time is None else frame.time - start - clock
                if gap > _GAP:
                    yield from self._silence(gap, rate, clock)
                    clock += gap
                samples = self._mono(frame)
                clock += len(samples) / rate
                yield samples, rate

    def _frames(self, packet: Any) -> list[Any] | None:
        """What a packet decodes to; None where it is damaged."""
        if packet.size > _MAX_PACKET:
            raise Broken("has packets larger than any recorder writes")
        try:
            frames: list[Any] = packet.decode()
        except (pyav().error.FFmpegError, ValueError):
            return None
        # half a packet: of bare samples a right half, whose absence the length shows
        return None if packet.is_corrupt and self._demuxer != "wav" else frames

    def _silence(self, gap: float, rate: int, clock: float) -> Iterator[tuple[np.ndarray, int]]:
        if clock and (
            self._demuxer in _UNTIMED or (self._demuxer == "ogg" and self._stream.codec_context.name != "opus")
        ):
            raise Broken(f"lacks {gap:.1f} seconds after second {clock:.1f}")
        if clock + gap > self._limits.max_seconds:
            self._too_long()
        whole = round(gap * rate)
        for begin in range(0, whole, rate):
            yield np.zeros(min(rate, whole - begin), np.float32), rate

    def _mono(self, frame: Any) -> np.ndarray:
        """The mean over the channels that carry voices (all but the low-frequency one): float32 [n]."""
        values = frame.to_ndarray()
        channels = frame.layout.nb_channels
        values = values.reshape(-1, channels).T if values.shape[0] != channels else values
        names = [channel.name for channel in frame.layout.channels]
        voices = [i for i, name in enumerate(names) if name not in ("LFE", "LFE2")] if len(names) == channels else []
        scale = _SCALES.get(values.dtype.str[1:])
        if scale is None:
            check_loudness(values, self._label)
        values = values[voices] if voices else values
        if scale is not None:
            values = values.astype(np.float64) - 128 * (values.dtype == np.uint8)
        return np.ascontiguousarray(mixed(values) * (scale or 1), dtype=np.float32)

    def _check(self, rate: int, channels: int) -> None:
        limits = self._limits
        if not limits.min_rate <= rate <= limits.max_rate:
            raise SensoriumError(
                f"{self._label} has {rate:,} samples a second; {limits.min_rate:,} to {limits.max_rate:,} are read, "
                "so convert it first."
            )
        if not 1 <= channels <= limits.max_channels:
            raise SensoriumError(
                f"{self._label} has {channels} channels; 1 to {limits.max_channels} are read, so mix it down first."
            )

    def _broken(self, heard: bool, clock: float) -> NoReturn:
        raise Broken(f"{DAMAGED} or cut off after second {clock:.1f}" if heard else DAMAGED)

    def _too_long(self) -> NoReturn:
        raise too_long(self._label, self._limits.max_seconds, self._limits.who)

    @contextlib.contextmanager
    def _sentences(self) -> Iterator[None]:
        """Decoders raise anything on hostile bytes, and their words may hold addresses: only the gist is passed on."""
        try:
            yield
        except (SensoriumError, GeneratorExit, KeyboardInterrupt):
            raise
        except MemoryError as error:
            raise SensoriumError(f"{self._label} does not fit into the memory of this machine; shorten it.") from error
        except Exception as error:
            clause = str(error) if isinstance(error, Broken) else "is damaged or of an unusual kind"
            article = "an" if self.format[:2] in ("AA", "AV", "M4", "MP", "Og") else "a"
            raise SensoriumError(
                f"{self._label}, {article} {self.format} file, {clause}; get a whole copy of it, or save it again."
            ) from error


def _wav_seconds(head: bytes) -> float:
    """What the header of a WAV file says (FFmpeg puts the size of the file in its place); 0 where it says nothing.

    Programs that write to a pipe cannot go back and fill in the length: they leave 0, or about 2 or 4 GiB.
    """
    place, bytes_a_second = 12, 0
    while head[:4] == b"RIFF" and place + 8 <= len(head):
        name, size = head[place : place + 4], int.from_bytes(head[place + 4 : place + 8], "little")
        if name == b"fmt ":
            bytes_a_second = int.from_bytes(head[place + 16 : place + 20], "little")
        elif name == b"data":
            return size / bytes_a_second if bytes_a_second and size < 0x7FFF0000 else 0.0
        place += 8 + size + size % 2
    return 0.0


def mixed(channels: np.ndarray) -> np.ndarray:
    """Floats [channels, n] -> their mean [n]; where they cancel one another, as with one wire of a microphone swapped,
    the loudest of them."""
    mean = np.asarray(channels.mean(axis=0))
    if len(channels) == 1:
        return mean
    loud = np.square(channels, dtype=np.float64).mean(axis=1)
    return channels[loud.argmax()] if np.square(mean).mean() < CANCELLED * loud.mean() else mean


def check_loudness(values: np.ndarray, label: str) -> None:
    """Raise SensoriumError for floats that are no sound: not finite, or beyond `LOUDEST`."""
    low, high = float(values.min(initial=0)), float(values.max(initial=0))
    if not np.isfinite([low, high]).all():
        raise SensoriumError(f"{label} holds samples that are not finite; save it again, as 16-bit samples.")
    if max(-low, high) > LOUDEST:
        raise SensoriumError(
            f"{label} holds floats up to {max(-low, high):.3g} where full scale is 1, which is no sound; divide them "
            "by what full scale was (32768 for 16-bit samples), or save them as integers."
        )


def too_long(label: str, seconds: float, who: str = Limits.who) -> SensoriumError:
    """The sentence for a sound over a limit of time, which is that of `who`."""
    length = f"{seconds / 60:.4g} minutes" if seconds >= 120 else f"{seconds:.4g} seconds"
    return SensoriumError(f"{label} is longer than the {length} {who}; cut it into pieces first.")


def _not_sound(label: str, kind: str, name: str) -> str:
    if kind in ("audio", "video"):
        return f"{label} is {kind} ({name}) that cannot be decoded here; save it as {READABLE}."
    if kind == "image" or name:
        return f"{label} is {name or kind} and no sound; give {READABLE}."
    return f"{label} is no sound that is known here; give {READABLE}."


class Resampler:
    """Blocks of mono samples at any rates -> blocks at one rate, seamless; the same samples where rates agree.

    Args:
        rate: of what comes out, in Hz.
    """

    def __init__(self, rate: int) -> None:
        self._rate, self._from = rate, 0
        self._graph: Any = None

    def feed(self, samples: np.ndarray, rate: int) -> Iterator[np.ndarray]:
        """What can be given out after these samples: float32 [n] each. Rates may change at any block."""
        if rate != self._from:
            yield from self.flush()
            self._from = rate
            if rate != self._rate:
                self._graph = pyav().AudioResampler(format="flt", layout="mono", rate=self._rate)
        if self._graph is None:
            yield samples
            return
        frame = pyav().AudioFrame.from_ndarray(samples[None], format="flt", layout="mono")
        frame.sample_rate = rate
        frame.pts = None
        yield from self._out(frame)

    def flush(self) -> Iterator[np.ndarray]:
        """The rest, which waits for samples that do not come."""
        if self._graph is not None:
            yield from self._out(None)
        self._graph, self._from = None, 0

    def _out(self, frame: Any) -> Iterator[np.ndarray]:
        for made in self._graph.resample(frame):
            if made.samples:
                yield made.to_ndarray()[0]
