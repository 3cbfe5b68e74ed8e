"""Whisper's encoder: its front end and features against faster-whisper, windows, lengths, and what it refuses."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("ctranslate2")

from sensorium import encoders, hub
from sensorium.encoders import whisper
from sensorium.encoders.log_mel import log_mel
from sensorium.encoders.whisper import FRAME, OVERLAP, WINDOW, WhisperEncoder, frames_of, windows
from sensorium.encoders.whisper_parts import PARTS
from sensorium.errors import SensoriumError, UsageError


@pytest.fixture(scope="module")
def weights():
    try:
        return hub.fetch(PARTS["tiny.en"], progress=False)
    except SensoriumError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def encoder(weights):
    return encoders.create_audio("whisper-tiny.en", weights)


def noise(samples, seed=0):
    """Noise that swells and fades, so that it has loud and quiet bands."""
    x = np.random.default_rng(seed).standard_normal(samples)
    return (0.2 * x * np.sin(np.arange(samples) / 9000) ** 2).astype(np.float32)


@pytest.mark.parametrize("samples", [320, 1600, 16000, 48160, 480_000])
def test_the_front_end_is_that_of_faster_whisper(samples):
    extractor = pytest.importorskip("faster_whisper.feature_extractor").FeatureExtractor()
    x = noise(samples)
    ours, theirs = log_mel(x), extractor(x)[:, :-1]
    assert ours.shape == theirs.shape == (80, samples // 160) and ours.dtype == np.float32
    assert np.abs(ours - theirs).max() < 1e-4


def test_features_are_those_of_ctranslate2(encoder):
    """A padded sound through both: the same spectrogram, the same features."""
    faster_whisper = pytest.importorskip("faster_whisper")
    x = np.concatenate([noise(100_000), np.zeros(380_000, np.float32)])
    extractor = faster_whisper.feature_extractor.FeatureExtractor()
    storage = faster_whisper.transcribe.get_ctranslate2_storage(extractor(x)[None, :, :-1])
    theirs = np.array(encoder._model.encode(storage, to_cpu=True))[0]
    ours = encoder.encode([x])[0]
    assert ours.shape == theirs.shape == (1500, 384)
    assert np.abs(ours - theirs).max() < 1e-3 * np.abs(theirs).max()


def test_what_it_declares(encoder):
    spec = encoder.spec
    assert isinstance(encoder, encoders.AudioEncoder)
    assert (spec.dim, spec.layout, spec.rate_hz) == (384, encoders.Sequence(), 50)
    assert len(spec.fingerprint) == 64
    assert set(encoders.audio_kinds()) == {"whisper-tiny.en", "whisper-base", "linear-frames"}


def test_lengths_and_independence(encoder):
    sounds = [noise(n, seed=n) for n in (1, 319, 320, 321, 17_600)] + [np.zeros(0, np.float32)]
    together = encoder.encode(sounds)
    assert [len(features) for features in together] == [1, 1, 1, 2, 55, 0]
    for sound, features in zip(sounds, together):
        assert features.dtype == np.float32 and features.shape[1] == 384 and np.isfinite(features).all()
        assert np.array_equal(encoder.encode([sound])[0], features)


def test_nothing_is_cut_beyond_30_seconds(encoder):
    """Every second of a long sound shows in the features, also where windows meet; and windows agree where they do."""
    x = noise(16_000 * 61)
    features = encoder.encode([x])[0]
    assert features.shape == (61 * 50, 384)
    alone = encoder.encode([x[: WINDOW * FRAME]])[0]
    inner = WINDOW - OVERLAP // 2
    assert np.array_equal(features[:inner], alone[:inner])  # the first window up to the middle of the overlap
    assert not np.array_equal(features[inner:WINDOW], alone[inner:])
    changed = x.copy()
    spots = (10, 29, 31, 45, 60)
    for second in spots:
        changed[second * 16_000 : second * 16_000 + 8000] = 0
    difference = np.abs(encoder.encode([changed])[0] - features).max(axis=1)
    for second in spots:
        assert np.median(difference[second * 50 : second * 50 + 25]) > 0.5, second


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 400_000))
def test_windows_cover_every_frame_once(frames):
    covered = 0
    for begin, end, first, last in windows(frames):
        assert first == covered < last and 0 <= begin <= first and last <= end <= frames and end - begin <= WINDOW
        assert begin == 0 or first - begin >= OVERLAP // 2
        assert end == frames or end - last >= OVERLAP // 2
        covered = last
    assert covered == frames


@given(st.integers(0, 10**9))
def test_frames(samples):
    frames = frames_of(samples)  # 50 a second, the last one perhaps not full: in whole numbers, as floats round up
    assert (frames - 1) * 16000 < samples * 50 <= frames * 16000


def test_what_it_refuses(weights, tmp_path):
    with pytest.raises(UsageError, match="unknown"):
        WhisperEncoder("huge", weights)
    with pytest.raises(UsageError, match="threads"):
        WhisperEncoder("tiny.en", weights, threads=0)
    with pytest.raises(UsageError, match="options"):
        encoders.create_audio("whisper-base", weights, resolution=3)
    with pytest.raises(UsageError, match="unknown"):
        encoders.create_audio("whisper", weights)
    with pytest.raises(SensoriumError, match="not the 512 of Whisper base"):
        WhisperEncoder("base", weights)
    with pytest.raises(SensoriumError, match="cannot be read"):
        WhisperEncoder("base", tmp_path / "none.bin")
    for name, data in (("junk", b"hello"), ("cut", weights.read_bytes()[:100_000]), ("empty", b"")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(SensoriumError, match="no Whisper in CTranslate2 form") as caught:
            WhisperEncoder("tiny.en", tmp_path / name)
        assert "\n" not in str(caught.value)


def test_wrong_sounds(encoder):
    for sound in (np.zeros(100), np.zeros((2, 100), np.float32), [0.0, 1.0], np.zeros(100, np.int16)):
        with pytest.raises(UsageError, match="load_audio"):
            encoder.encode([sound])


def test_whisper_base_where_it_was_fetched():
    if not os.environ.get("SENSORIUM_TEST_WHISPER_BASE"):
        pytest.skip("fetches 133 MB; set SENSORIUM_TEST_WHISPER_BASE=1")
    base = encoders.create_audio("whisper-base", hub.fetch(PARTS["base"]))
    assert base.encode([noise(16_000)])[0].shape == (50, 512)


def test_sound_that_grows_costs_its_last_window_alone(encoder, monkeypatch):
    """Streaming: whole windows are remembered, and the features are those of the sound encoded at once."""
    monkeypatch.setattr(whisper, "WINDOW", 100)
    monkeypatch.setattr(whisper, "OVERLAP", 20)
    x = noise(230 * FRAME)
    count, window = [], encoder._window
    monkeypatch.setattr(encoder, "_window", lambda samples: count.append(len(samples) // FRAME) or window(samples))
    for frames in (100, 190, 230):
        grown = encoder.encode([x[: frames * FRAME]])[0]
    assert count == [100, 100, 30, 70]
    encoder._whole.clear()
    assert np.array_equal(grown, encoder.encode([x])[0])
    encoder._whole.clear()
