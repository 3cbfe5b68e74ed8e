"""How much of an untrusted file is read and decoded."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Limits that hold before anything is decoded.

    Attributes:
        max_bytes: size of the encoded file.
        max_pixels: width x height of a frame. 64 million pixels take about 1 GB while they are decoded. (Above 89
            million Pillow warns on its own for WebP and TIFF, above 178 million it refuses those.)
        max_side: width or height alone, in pixels.
        max_frames: frames of an animation or pages of a document (the first is taken; more than this is refused).
        max_audio_bytes: size of an encoded file of sound, or of a video whose sound is wanted; read from the disk as
            it is needed, never as a whole.
        max_seconds: length of a sound.
        who: what has that limit, as messages put it: "that are read".
        max_decoded_bytes: size of a sound that is decoded into memory at once, as float32 (70 minutes at 16 kHz);
            what is read in blocks has ``max_seconds`` alone.
        min_rate, max_rate: sampling rate of a sound in Hz.
        max_channels: of a sound.
    """

    max_bytes: int = 64 * 1024 * 1024
    max_pixels: int = 64_000_000
    max_side: int = 65_535
    max_frames: int = 10_000
    max_audio_bytes: int = 4 << 30
    max_seconds: float = 6 * 3600.0
    who: str = "that are read"
    max_decoded_bytes: int = 256 << 20
    min_rate: int = 8_000
    max_rate: int = 192_000
    max_channels: int = 32


DEFAULT = Limits()
