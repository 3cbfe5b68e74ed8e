"""Transcripts and subtitles: sections lose nothing, times are those of the file, silence stays silent."""

from __future__ import annotations

import itertools
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("av")

import sounds
from sensorium.cli import run
from sensorium.errors import SensoriumError, UsageError
from sensorium.tasks.cue_rules import conformity
from sensorium.tasks.subtitle import subtitle
from sensorium.tasks.transcribe import Transcriber, Word, joined, sections, set_back, transcribe

SENTENCES = (
    "Hello there. My name is Anna, and I live in a small house by the sea.",
    "Yesterday the weather was cold, but today it is warm and bright.",
    "Do you want to come for a walk, because the sun is out?",
)


# What needs no model
# ----------------------------------------------------------------------------------------------------------------------


def loud(samples):
    """Stretches of ones, as a detector finds speech."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], samples > 0.5, [0]]).astype(int)))
    return [(int(begin), int(end)) for begin, end in edges.reshape(-1, 2)]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 9000)), max_size=12), st.integers(1, 5000))
def test_sections_are_the_whole_stream_once(stretches, piece):
    stream = np.concatenate([np.zeros(0, np.float32), *(np.full(n, on, np.float32) for on, n in stretches)])
    stream += np.arange(len(stream), dtype=np.float32) * 1e-6
    pieces = [stream[i : i + piece] for i in range(0, len(stream), piece)]
    place = 0
    for offset, samples, spans in sections(iter(pieces), loud, size=8000):
        assert offset == place and np.array_equal(samples, stream[offset : offset + len(samples)])
        assert len(samples) < 8000 + piece
        assert all(0 <= begin < end <= len(samples) for begin, end in spans)
        place += len(samples)
    assert place == len(stream)


def test_sections_end_in_pauses():
    stream = np.ones(20_000, np.float32)
    stream[7000:7400] = 0
    offsets = [offset for offset, *_ in sections([stream], loud, size=10_000)]
    assert offsets[:2] == [0, 7200]


def test_times_are_set_back():
    spans = [(16_000, 32_000), (48_000, 64_000)]  # seconds 1-2 and 3-4 of a section that begins at 10 s

    begun: set = {0, 1}

    def place(start, end):
        word = set_back(Word("x", start, end, 1.0), spans, 160_000, begun)
        return word.start, word.end

    assert place(0.25, 0.5) == (11.25, 11.5)
    assert place(1.25, 1.75) == (13.25, 13.75)
    assert place(0.9, 1.05) == (11.9, 12.0)  # no word reaches over silence that was cut out
    assert place(1.9, 2.5) == (13.9, 14.0)
    begun.clear()
    assert place(1.5, 1.75) == (13.3, 13.75)  # the first of its span begins where the detector heard it
    assert place(1.5, 1.75) == (13.5, 13.75)


def test_parts_of_words_are_joined():
    parts = [
        SimpleNamespace(word=w, start=i, end=i + 1, probability=0.5)
        for i, w in enumerate([" well", "-known", " ", " x"])
    ]
    assert [(word.text, word.start, word.end) for word in joined(parts)] == [("well-known", 0, 2), ("x", 3, 4)]


def test_wrong_calls():
    with pytest.raises(UsageError, match="unknown"):
        Transcriber("huge")
    with pytest.raises(UsageError, match="English alone"):
        Transcriber("tiny.en", "de")
    with pytest.raises(UsageError, match="language 'xx' is unknown"):
        Transcriber("base", "xx")


def test_commands_refuse_before_they_fetch(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SENSORIUM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SENSORIUM_OFFLINE", "1")
    text = tmp_path / "a.txt"
    text.write_text("no sound")
    for arguments, code, said in (
        (["transcribe", str(text)], 1, "no sound"),
        (["transcribe", str(tmp_path / "none.wav")], 1, "does not exist"),
        (["subtitle", str(text), "-o", str(tmp_path / "out.txt")], 2, "must end in .srt or .vtt"),
        (["subtitle", str(text), "-o", str(tmp_path / "a.txt" / "x.srt")], 2, "cannot be written"),
        (["subtitle", str(text)], 2, "--output"),
        (["transcribe", "http://127.0.0.1/a.mp3"], 1, "nothing is fetched"),
    ):
        assert run(arguments) == code
        out, err = capsys.readouterr()
        assert out == "" and said in err and len(err.splitlines()) == 1, err


# With the model
# ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def transcriber():
    pytest.importorskip("faster_whisper")
    try:
        return Transcriber(progress=False)
    except SensoriumError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def voice():
    return pytest.importorskip("hibari").Hibari()


@pytest.fixture(scope="module")
def spoken(voice):
    """(samples at 24 kHz, the seconds at which each sentence begins): sentences with four seconds between them."""
    pieces, starts, clock = [], [], 0
    for sentence in SENTENCES:
        said = voice(sentence, seed=1)
        starts.append((clock + int(np.argmax(np.abs(said) > 0.02))) / 24_000)
        pieces += [said, np.zeros(4 * 24_000, np.float32)]
        clock += len(said) + 4 * 24_000
    return np.concatenate(pieces), starts


def errors(wanted, heard):
    """Word error rate: edits over the words that were to be heard."""
    a, b = ("".join(c if c.isalnum() or c == "'" else " " for c in text.lower()).split() for text in (wanted, heard))
    row = list(range(len(b) + 1))
    for i, word in enumerate(a, 1):
        above, row[0] = row[0], i
        for j, other in enumerate(b, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (word != other))
    return row[-1] / len(a)


def test_clear_speech_is_written_down_at_its_time(transcriber, spoken):
    samples, starts = spoken
    data = sounds.encode(samples, "ogg", "libopus", 24_000, "mono")
    segments = list(transcribe(data, transcriber))
    assert errors(" ".join(SENTENCES), " ".join(segment.text for segment in segments)) <= 0.05
    words = [word for segment in segments for word in segment.words]
    for sentence, start in zip(SENTENCES, starts):
        first = sentence.split()[0].strip(".,")
        assert any(word.text.strip(".,") == first and abs(word.start - start) < 0.25 for word in words), sentence
    assert all(a.start <= b.start for a, b in itertools.pairwise(words)) and transcriber.language == "en"
    assert transcriber.seconds == pytest.approx(len(samples) / 24_000, abs=0.1)


@pytest.mark.parametrize("kind", ["silence", "noise", "tone"])
def test_nobody_speaks(transcriber, kind):
    samples = {
        "silence": np.zeros(480_000, np.float32),
        "noise": 0.05 * np.random.default_rng(0).standard_normal(480_000).astype(np.float32),
        "tone": sounds.tone(30.0),
    }[kind]
    assert list(transcriber.segments([samples])) == []
    assert subtitle(sounds.wav(samples * 32767), transcriber) == []


def test_the_command_says_that_nobody_speaks(tmp_path, capsys, monkeypatch):
    (tmp_path / "silence.wav").write_bytes(sounds.wav(np.zeros(9000)))
    silent = SimpleNamespace(language=None, seconds=0.5625, segments=lambda pieces: iter([]))
    monkeypatch.setattr("sensorium.cli_speech._start", lambda file, model, language: (silent, file))
    for arguments in ([], ["--words"], ["--json"]):
        assert run(["transcribe", str(tmp_path / "silence.wav"), *arguments]) == 0
        out, err = capsys.readouterr()
        assert "silence.wav holds no speech" in err
        assert json.loads(out)["segments"] == [] if arguments == ["--json"] else out == ""


def test_subtitles_of_speech(transcriber, spoken, tmp_path, capsys):
    samples, starts = spoken
    source, target = tmp_path / "speech.flac", tmp_path / "new" / "speech.srt"
    source.write_bytes(sounds.encode(samples, "flac", "flac", 24_000, "mono"))
    cues = subtitle(source, transcriber)
    report = conformity(cues)
    assert report.conforming == report.cues >= 3
    for start in starts:
        assert any(abs(cue.start / 1000 - start) < 0.25 for cue in cues)
    assert run(["subtitle", str(source), "-o", str(target), "--report"]) == 0
    assert "100.0 %" in capsys.readouterr().out
    assert target.read_text().startswith("1\n00:00:00,") and "Hello there." in target.read_text()


def test_the_command_transcribe(transcriber, spoken, tmp_path, capsys, monkeypatch):
    data = sounds.encode(spoken[0], "wav", "pcm_s16le", 24_000, "mono")
    path = tmp_path / "speech.wav"
    path.write_bytes(data)
    assert run(["transcribe", str(path), "--json", "--words"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"text", "language", "duration_s", "segments"} and found["language"] == "en"
    assert set(found["segments"][0]["words"][0]) == {"word", "start_s", "end_s", "probability"}
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=path.open("rb"), isatty=lambda: False))
    assert run(["transcribe", "-"]) == 0
    assert " ".join(capsys.readouterr().out.split()) == found["text"]
    assert run(["transcribe", str(path), "--words"]) == 0
    assert "Anna" in capsys.readouterr().out
