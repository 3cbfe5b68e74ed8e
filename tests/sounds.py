"""Sounds for tests, encoded by PyAV itself: a tone in every container, and the ways in which files are broken."""

from __future__ import annotations

import io

import av
import numpy as np

FORMATS = {  # name: (muxer, encoder, rate, layout)
    "tone.wav": ("wav", "pcm_s16le", 16000, "mono"),
    "stereo.wav": ("wav", "pcm_s16le", 44100, "stereo"),
    "surround.wav": ("wav", "pcm_f32le", 48000, "5.1"),
    "bytes.wav": ("wav", "pcm_u8", 8000, "mono"),
    "studio.wav": ("wav", "pcm_s24le", 96000, "stereo"),
    "telephone.wav": ("wav", "pcm_mulaw", 8000, "mono"),
    "tone.flac": ("flac", "flac", 44100, "stereo"),
    "tone.opus": ("ogg", "libopus", 48000, "stereo"),
    "tone.mp3": ("mp3", "libmp3lame", 44100, "stereo"),
    "tone.m4a": ("ipod", "aac", 44100, "mono"),
    "tone.aac": ("adts", "aac", 44100, "mono"),
    "tone.webm": ("webm", "libopus", 48000, "mono"),
    "tone.mkv": ("matroska", "flac", 48000, "mono"),
    "tone.avi": ("avi", "libmp3lame", 44100, "mono"),
}


def tone(seconds=1.0, rate=16000, hertz=440.0):
    """A sine at half of full scale: float32 [n]."""
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def encode(samples, muxer, codec, rate, layout, *, video=False):
    """Mono float32 samples at `rate`, the same in every channel, as the bytes of a file."""
    out = io.BytesIO()
    with av.open(out, "w", format=muxer) as container:
        if video:
            picture = container.add_stream("mpeg4", rate=10)
            picture.width, picture.height, picture.pix_fmt = 64, 48, "yuv420p"
        stream = container.add_stream(codec, rate=rate, layout=layout)
        channels = stream.codec_context.layout.nb_channels
        frame = av.AudioFrame.from_ndarray(np.repeat(samples[None], channels, 0), format="fltp", layout=layout)
        frame.sample_rate, frame.pts = rate, 0
        cut = {"frame_size": stream.codec_context.frame_size or 1024}
        cutter = av.AudioResampler(format=stream.codec_context.format, layout=layout, rate=rate, **cut)
        if video:
            for number in range(10):
                shade = np.full((48, 64, 3), 20 * number, np.uint8)
                container.mux(picture.encode(av.VideoFrame.from_ndarray(shade, format="rgb24")))
            container.mux(picture.encode(None))
        for piece in [*cutter.resample(frame), *cutter.resample(None)]:
            container.mux(stream.encode(piece))
        container.mux(stream.encode(None))
    return out.getvalue()


def silent_video():
    """An MP4 file without a sound track."""
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode(None))
    return out.getvalue()


def good(name, seconds=1.0):
    """The bytes of a file of `FORMATS`."""
    muxer, codec, rate, layout = FORMATS[name]
    return encode(tone(seconds, rate), muxer, codec, rate, layout)


def wav(samples, rate=16000, kind="<i2"):
    """Samples [n] or [n, channels] as a WAV file, written by hand; `kind` is "<i2", "u1" or "<f4"."""
    values = np.asarray(samples).astype(kind)
    data, channels, size = values.tobytes(), 1 if values.ndim == 1 else values.shape[1], values.itemsize
    head = b"fmt " + (16).to_bytes(4, "little") + (3 if kind == "<f4" else 1).to_bytes(2, "little")
    head += channels.to_bytes(2, "little") + rate.to_bytes(4, "little") + (rate * channels * size).to_bytes(4, "little")
    head += (channels * size).to_bytes(2, "little") + (8 * size).to_bytes(2, "little")
    body = b"WAVE" + head + b"data" + len(data).to_bytes(4, "little") + data
    return b"RIFF" + len(body).to_bytes(4, "little") + body


def pitch(samples, rate):
    """The strongest frequency, in Hz."""
    inner = samples[len(samples) // 8 : -len(samples) // 8]
    return float(np.abs(np.fft.rfft(inner * np.hanning(len(inner)))).argmax() * rate / len(inner))
