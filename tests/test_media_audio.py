"""The door for sound: every format comes in right, and what is wrong ends in one sentence."""

from __future__ import annotations

import io
import sys
import threading
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("av")

import sensorium
import sounds
from mutations import mutated
from sensorium import media
from sensorium.errors import SensoriumError, UsageError
from sensorium.media import Audio, Limits, load_audio, stream_audio, whole
from sensorium.media.audio import blocks_of

GOOD = {name: sounds.good(name) for name in sounds.FORMATS}
VIDEO = sounds.encode(sounds.tone(1.0, 48000), "mp4", "aac", 48000, "stereo", video=True)


def refused(src, *words, **options):
    with pytest.raises(SensoriumError) as caught:
        load_audio(src, **options)
    said = str(caught.value)
    assert said.endswith(".") and "\n" not in said and "0x" not in said
    for word in words:
        assert word in said, said
    return said


@pytest.mark.parametrize("name", GOOD)
def test_every_format_at_every_rate(name):
    sound = load_audio(GOOD[name])
    assert sound.samples.dtype == np.float32 and sound.rate == 16000
    assert 0.95 < sound.seconds < 1.06  # coders of frames add a little
    assert abs(sounds.pitch(sound.samples, 16000) - 440) < 2
    assert 0.4 < np.sqrt(2) * np.sqrt(np.mean(sound.samples[3000:13000] ** 2)) < 0.6 or "aac" in name or "m4a" in name
    assert load_audio(GOOD[name], rate=24000).seconds == pytest.approx(sound.seconds, abs=1e-3)


def test_from_path_stream_bytes_and_stdin(tmp_path):
    data = GOOD["tone.flac"]
    path = tmp_path / "sound.mp3"  # names do not count
    path.write_bytes(data)
    sounds_ = [load_audio(src) for src in (path, str(path), data, bytearray(data), io.BytesIO(data))]
    with path.open("rb") as handle:
        sounds_.append(load_audio(handle))
    for sound in sounds_:
        assert (sound.samples == sounds_[0].samples).all() and sound.sha256 == sounds_[0].sha256
    assert sounds_[0].source == str(path)
    assert sensorium.load_audio is load_audio


def test_the_sound_of_a_video_and_what_load_gives():
    assert abs(sounds.pitch(load_audio(VIDEO).samples, 16000) - 440) < 2
    assert isinstance(media.load(GOOD["tone.opus"]), Audio)
    with pytest.raises(SensoriumError, match="is video"):
        media.load(VIDEO)


def test_a_wav_at_its_own_rate_is_not_touched():
    samples = np.random.default_rng(1).integers(-32768, 32768, 5000).astype(np.int16)
    sound = load_audio(sounds.wav(samples))
    assert (sound.samples == samples.astype(np.float32) / 32768).all()
    with pytest.raises(ValueError):
        sound.samples[0] = 0


def test_channels_are_averaged_and_clipping_is_kept():
    both = np.zeros((1000, 2), np.float32)
    both[:, 0] = 0.5
    assert np.allclose(load_audio(both, array_rate=16000).samples, 0.25)
    loud = load_audio(sounds.wav(np.full(800, 32767)))
    assert loud.samples.max() <= 1 and loud.seconds == 0.05


@pytest.mark.parametrize(("kind", "scale", "zero"), [("<i2", 32767, 0), ("u1", 127, 128), ("<f4", 1, 0)])
def test_opposite_channels_do_not_cancel(kind, scale, zero):
    """One wire of a microphone swapped: a player gives sound on both sides, and their mean is nothing."""
    x = sounds.tone(0.5)
    opposite = np.stack([x, -x], 1)
    for sound in (
        load_audio(sounds.wav(opposite * scale + zero, kind=kind)),
        load_audio(opposite, array_rate=16000),
    ):
        assert np.abs(np.abs(sound.samples) - np.abs(x)).max() < 0.02  # eight bits
    one_sided = np.stack([x, np.zeros_like(x)], 1)
    assert np.allclose(load_audio(one_sided, array_rate=16000).samples, x / 2)  # the mean, as ever


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("codec", ["pcm_f32le", "pcm_f64le"])
def test_floats_far_beyond_full_scale(codec):
    def floats(largest):
        both = np.tile(np.array([largest, -0.5], np.float32), 800)
        return sounds.encode(both, "wav", codec, 16000, "stereo")

    assert load_audio(floats(7.5)).samples.max() == 7.5  # as documented, not clipped
    refused(floats(9.0), "up to 9", "no sound")
    refused(floats(-32768.0), "up to 3.28e+04", "32768")
    refused(floats(3e38), "no sound")
    for value in (np.inf, -np.inf, np.nan):
        refused(floats(value), "not finite")
    refused(np.array([[1e300, 1e300]]), "no sound", array_rate=16000)


def test_silence_is_a_right_answer():
    assert not load_audio(sounds.wav(np.zeros(16000))).samples.any()


def test_arrays():
    x = sounds.tone(0.5, 8000)
    whole = load_audio(x, array_rate=8000)
    assert abs(len(whole.samples) - 8000) <= 1 and abs(sounds.pitch(whole.samples, 16000) - 440) < 4
    as_ints = load_audio((x * 32767).astype(np.int16), array_rate=8000)
    assert np.abs(as_ints.samples - whole.samples).max() < 1e-3
    again = load_audio(load_audio(x, array_rate=8000, rate=8000))
    assert np.array_equal(again.samples, whole.samples)
    with pytest.raises(UsageError, match="array_rate"):
        load_audio(x)
    for rate in (0, 7999, 192_001, 16000.0, "16000", True):
        with pytest.raises(UsageError, match="sampling rate"):
            load_audio(x, array_rate=rate)
    refused(np.zeros((2, 5000), np.float32) + 0.1, "array.T", array_rate=16000)
    refused(np.zeros((5, 5, 5)), "shape", array_rate=16000)
    refused(np.zeros(0), "shape", array_rate=16000)
    refused(np.array([0.0, np.nan]), "finite", array_rate=16000)
    refused(x * 32767, "no sound", "32768", array_rate=16000)
    refused(np.zeros(9, np.int64), "int64", array_rate=16000)


def test_what_is_no_sound():
    refused(b"", "empty")
    refused(b"hello world, this is a text", "no sound")
    refused(b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1/secret.mp3\n", "a playlist")
    refused(b"ffconcat version 1.0\nfile /etc/passwd\n", "no sound")
    refused(b"\x89PNG\r\n\x1a\n" + bytes(50), "PNG and no sound")
    refused("http://127.0.0.1/x.mp3", "nothing is fetched")
    refused("/nonexistent/x.wav", "does not exist")
    refused("/dev/zero", "device")
    refused(sounds.wav(np.zeros(0)), "no length")
    refused(io.StringIO("text"), "rb")


def test_mislabelled_streams():
    """The signature of one format before the bytes of another."""
    for signature in (
        b"fLaC",
        b"OggS",
        b"ID3",
        b"RIFF\xff\xff\xff\xffWAVE",
        b"\x1aE\xdf\xa3webm",
        b"\0\0\0\x20ftypM4A ",
    ):
        refused(signature + GOOD["tone.webm"][100:])
    refused(sounds.silent_video(), "MP4 without a sound track")


def test_an_endless_stream():
    class Endless(io.RawIOBase):
        def read(self, size=-1):
            return GOOD["tone.mp3"][:1000]

    refused(Endless(), "more than", limits=Limits(max_audio_bytes=100_000))


def test_limits_hold_while_decoding(tmp_path):
    refused(GOOD["tone.flac"], "longer than the 0.5 seconds", limits=Limits(max_seconds=0.5))
    refused(GOOD["tone.flac"], "longer than", limits=Limits(max_decoded_bytes=32_000))
    refused(np.zeros(9000, np.float32), "longer than", limits=Limits(max_decoded_bytes=32_000), array_rate=16000)
    path = tmp_path / "large.wav"
    path.write_bytes(GOOD["stereo.wav"])
    refused(path, "more than", limits=Limits(max_audio_bytes=10_000))
    refused(sounds.wav(np.zeros(4000), rate=4000), "4,000 samples a second")
    refused(sounds.wav(np.zeros(4000), rate=4_000_000), "4,000,000 samples a second")
    refused(GOOD["surround.wav"], "6 channels", limits=Limits(max_channels=2))


def test_a_bomb_stops_at_the_limit():
    """Some kilobytes of FLAC that decode to 12 MB."""
    quiet = sounds.encode(np.zeros(48000 * 60, np.float32), "flac", "flac", 48000, "mono")
    assert len(quiet) < 60_000
    tracemalloc.start()
    refused(quiet, "longer than", limits=Limits(max_decoded_bytes=1 << 20))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


def test_lengths_that_a_header_declares():
    data = bytearray(sounds.wav(np.ones(1000)))
    data[4:8] = data[40:44] = (16000 * 2 * 100).to_bytes(4, "little")
    refused(bytes(data), "cut off", "100.0 seconds")
    for unknown in (0x7FFFFFF0, 0xFFFFFFFF):  # what programs write that cannot go back: sox, arecord, ffmpeg
        data[4:8] = data[40:44] = unknown.to_bytes(4, "little")
        assert len(load_audio(bytes(data)).samples) == 1000


@pytest.mark.parametrize("name", [name for name in sounds.FORMATS if name != "tone.aac"])  # that declares no length
def test_cut_off_files(name):
    data = sounds.good(name, 3.0)
    assert load_audio(data).seconds == pytest.approx(3, abs=0.1)
    for kept in (0.5, 0.8):
        refused(data[: int(kept * len(data))], *(["cut off"] if name != "tone.m4a" else []))


def test_how_a_cut_is_told():
    wav = sounds.wav(np.ones(27200))
    refused(wav[:44], "cut off", "1.7 seconds and holds 0.0")
    refused(wav[:-1800], "declares 1.70 seconds and holds 1.64")
    refused(GOOD["tone.opus"][:-9], "an Ogg file")


def test_what_declares_no_length_is_read_to_its_end():
    """Live WebM has a segment of unknown size, MP3 of radios no frame of lengths, voice notes no last page."""
    webm = sounds.good("tone.webm", 3.0)
    place = webm.index(b"\x18\x53\x80\x67") + 4
    live = webm[:place] + b"\x01" + 7 * b"\xff" + webm[place + 8 :]
    assert load_audio(live).seconds == pytest.approx(3, abs=0.1)
    refused(live[: len(live) // 2], "cut off after byte")
    place = live.index(b"\x1f\x43\xb6\x75") + 4
    size = 9 - live[place].bit_length()
    live = live[:place] + bytes([(2 << 8 - size) - 1]) + (size - 1) * b"\xff" + live[place + size :]
    cut = refused(live[: len(live) // 2], "cut off at byte")
    between = int(cut.split("at byte ")[1].split(";")[0].replace(",", ""))  # two blocks
    refused(live[:between], "cut off", "3.0 seconds")  # a length stands in its header still
    mp3 = sounds.good("tone.mp3", 3.0).replace(b"Info", b"none", 1)
    assert load_audio(mp3[: len(mp3) // 2]).seconds == pytest.approx(1.5, abs=0.1)
    ogg, last = bytearray(GOOD["tone.opus"]), GOOD["tone.opus"].rindex(b"OggS")
    ogg[last + 5] = 0
    ogg[last + 22 : last + 26] = bytes(4)
    ogg[last + 22 : last + 26] = whole._checksum(bytes(ogg[last:])).to_bytes(4, "little")
    assert load_audio(bytes(ogg)).seconds == pytest.approx(1, abs=0.1)
    assert load_audio(bytes(ogg) + b"\0" * 99).seconds == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("name", ["tone.webm", "tone.mkv"])
def test_holes_in_matroska(name):
    data = sounds.good(name, 5.0)
    half, place = len(data) // 2, data.index(b"\x18\x53\x80\x67") + 4
    refused(data[:half] + bytes(3000) + data[half + 3000 :], "damaged")
    refused(data[:half] + np.random.default_rng(0).bytes(3000) + data[half + 3000 :], "damaged")
    live = data[:place] + b"\x01" + 7 * b"\xff" + data[place + 8 :]
    refused(live[:half] + live[half + 3000 :])


def test_holes_in_ogg():
    data = sounds.good("tone.opus", 5.0)
    pages = [place for place in range(len(data)) if data.startswith(b"OggS", place)]
    assert len(pages) >= 6
    refused(data[: pages[3]] + data[pages[4] :], "a stretch is missing")
    refused(data[: pages[4] + 500] + bytes(300) + data[pages[4] + 800 :], "damaged at byte")
    refused(data[: pages[3] + 500] + data[pages[4] - 500 :])
    twice = data + data  # as a chain of recordings
    assert load_audio(twice).seconds == pytest.approx(10, abs=0.2)


def test_a_lost_stretch_is_not_closed():
    data = sounds.good("tone.flac", 5.0)
    refused(data[:20_000] + data[-20_000:])


def test_late_sound_begins_late(tmp_path):
    """Silence stands where a track begins late, so that times are those of a player."""
    import av

    out = io.BytesIO()
    with av.open(out, "w", format="matroska") as container:
        stream = container.add_stream("flac", rate=16000, layout="mono")
        for begin in (0.0, 3.0):
            pcm = (sounds.tone(1.024) * 32767).astype(np.int16)
            for place in range(0, len(pcm), 1024):
                frame = av.AudioFrame.from_ndarray(pcm[None, place : place + 1024], format="s16", layout="mono")
                frame.sample_rate, frame.pts = 16000, round(begin * 16000) + place
                container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    sound = load_audio(out.getvalue())
    assert sound.seconds == pytest.approx(4.024, abs=0.15)
    assert not sound.samples[20_000:44_000].any() and sound.samples[50_000:].any()


def test_streaming_equals_loading():
    data = sounds.good("tone.mp3", 3.0)
    blocks = list(stream_audio(data, seconds=0.7))
    assert [len(block) for block in blocks[:-1]] == [11200] * (len(blocks) - 1) and 0 < len(blocks[-1]) <= 11200
    assert np.array_equal(np.concatenate(blocks), load_audio(data).samples)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 50), max_size=12), st.integers(1, 40))
def test_blocks_lose_nothing(lengths, size):
    whole = np.arange(sum(lengths), dtype=np.float32)
    pieces = np.split(whole, np.cumsum(lengths)[:-1]) if lengths else []
    blocks = list(blocks_of(iter(pieces), size))
    assert all(len(block) == size for block in blocks[:-1]) and all(0 < len(block) <= size for block in blocks)
    assert np.array_equal(np.concatenate([*blocks, np.zeros(0, np.float32)]), whole)


def test_other_files_are_never_opened(tmp_path, monkeypatch):
    """A QuickTime track that lies in another file (a data reference) is not followed."""
    target = tmp_path / "secret.wav"
    target.write_bytes(GOOD["tone.wav"])
    data = GOOD["tone.m4a"]
    place = data.index(b"dref")
    alias = b"alis" + bytes(4) + str(target).encode().ljust(150, b"\0")
    entry = (len(alias) + 4).to_bytes(4, "big") + alias
    box = b"dref" + bytes(4) + (1).to_bytes(4, "big") + entry
    changed = data[: place - 4] + (len(box) + 4).to_bytes(4, "big") + box + data[place + 24 :]
    opened = []
    sys.addaudithook(lambda event, arguments: opened.append(arguments[0]) if event == "open" else None)
    try:
        load_audio(changed)
    except SensoriumError:
        pass
    assert str(target) not in map(str, opened)


def test_many_threads_at_once():
    wanted = load_audio(GOOD["tone.opus"]).samples
    results = []
    threads = [threading.Thread(target=lambda: results.append(load_audio(GOOD["tone.opus"]).samples)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 6 and all(np.array_equal(result, wanted) for result in results)


# Files changed in every way
# ----------------------------------------------------------------------------------------------------------------------

SMALL = {name: sounds.good(name, 0.2) for name in sounds.FORMATS}
SMALL["video.mp4"] = VIDEO
FEW = Limits(max_seconds=20, max_decoded_bytes=2 << 20)
SECONDS = 2.0  # of this thread on the processor, for any one file


def survives(data):
    start = time.thread_time()
    try:
        sound = load_audio(data, FEW)
    except SensoriumError as error:
        assert str(error).endswith(".") and "\n" not in str(error)
    else:
        assert sound.samples.dtype == np.float32 and sound.samples.ndim == 1 and 0 < sound.samples.nbytes <= 2 << 20
        assert np.isfinite(sound.samples).all()
    assert time.thread_time() - start < SECONDS


@pytest.mark.parametrize("name", SMALL)
def test_truncations(name):
    data = SMALL[name]
    for length in range(0, len(data), max(1, len(data) // 25)):
        survives(data[:length])


@pytest.mark.parametrize("name", SMALL)
def test_bytes_changed(name):
    data = SMALL[name]
    for place in [*range(min(len(data), 60)), *range(60, len(data), max(1, len(data) // 25))]:
        for value in (0, 255):
            survives(data[:place] + bytes([value]) + data[place + 1 :])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.sampled_from(sorted(SMALL)), st.data())
def test_any_mutation(name, data):
    survives(mutated(name, SMALL, data))
