"""The turn manager with real speech, Silero's network, and a model that hears and speaks."""

from __future__ import annotations

import threading

import numpy as np
import pytest

pytest.importorskip("faster_whisper")
pytest.importorskip("hibari")

import sensorium
import tiny
from sensorium.backbones.engine import Step
from sensorium.errors import SensoriumError
from sensorium.media import load_audio
from sensorium.messages import Message
from sensorium.speech import Cascade
from sensorium.turns import Committed, Done, ModelEngine, Silero, SpeechStarted, SpeechStopped, Turns
from sensorium.turns.activity import FRAME, RATE
from sensorium.turns.said import Said
from test_turns import FakeEngine, kinds, quiet

QUESTION = "Is there an apple in this picture, or is it a pear?"


@pytest.fixture(scope="module")
def silero():
    return Silero()


@pytest.fixture(scope="module")
def question():
    """The voice alone: float32 [n] at 16 kHz."""
    import hibari

    sound = load_audio(np.asarray(hibari.Hibari()(QUESTION), np.float32), array_rate=24_000).samples
    heard = np.flatnonzero(np.abs(sound) > 0.02)
    return sound[heard[0] : heard[-1]]


def noise(seconds, level, seed=0, kind="white"):
    random = np.random.default_rng(seed).standard_normal(round(seconds * RATE))
    if kind == "brown":
        random = np.cumsum(random - np.mean(random))
    if kind == "hum":
        random = np.sign(np.sin(np.arange(len(random)) * 2 * np.pi * 50 / RATE)) + 0.1 * random
    return (level * random / np.abs(random).std()).astype(np.float32)


def events_of(stream, silero, chunk):
    events: list = []
    with Turns(FakeEngine(()), events.append, detector=silero.stream) as turns:
        for begin in range(0, len(stream), chunk):
            turns.push(stream[begin : begin + chunk])
            turns.wait(10)
    return events


def test_probabilities_are_those_of_faster_whisper(silero, question):
    """Frame by frame with memory, against the whole sound at once. (Of its last frame that code blanks the end.)"""
    from faster_whisper.vad import get_vad_model

    stream = np.concatenate([quiet(0.5), question, quiet(0.5)])
    stream = stream[: len(stream) // FRAME * FRAME]
    detect = silero.stream()
    ours = [detect(frame) for frame in stream.reshape(-1, FRAME)]
    theirs = get_vad_model()(stream.copy()).reshape(-1)
    assert np.abs(np.array(ours) - theirs)[:-1].max() < 1e-5
    assert max(ours) > 0.9 and min(ours) < 0.1


def test_a_question_in_noise_is_one_message_in_chunks_of_any_size(silero, question):
    stream = np.concatenate([np.zeros(RATE, np.float32), question, np.zeros(RATE, np.float32)])
    stream += noise(len(stream) / RATE, 0.002)
    events = events_of(stream, silero, RATE)
    assert kinds(events) == ["SpeechStarted", "SpeechStopped", "Committed", "Done", "Played"]
    commit = next(event for event in events if isinstance(event, Committed))
    assert RATE // 2 < commit.begin < RATE and 0 < commit.end - (RATE + len(question)) < RATE // 2
    for chunk in (160, 4001):
        again = events_of(stream, silero, chunk)
        assert kinds(again) == kinds(events)
        assert [e.at for e in again if isinstance(e, SpeechStarted | SpeechStopped)] == [e.at for e in events[:2]]
        assert np.array_equal(again[2].message.media[0].samples, commit.message.media[0].samples)


def test_a_short_pause_does_not_split_and_a_long_one_does(silero, question):
    for pause, count in ((0.3, 1), (1.2, 2)):
        gap = np.zeros(round(pause * RATE), np.float32)
        stream = np.concatenate([quiet(0.5), question, gap, question, quiet(1)])
        assert kinds(events_of(stream, silero, 1600)).count("Committed") == count


@pytest.mark.parametrize("kind", ["white", "brown", "hum"])
def test_noise_alone_is_no_message(silero, kind):
    stream = np.concatenate([noise(4, level, seed, kind) for seed, level in enumerate((0.001, 0.02, 0.3))])
    clicks = np.zeros(4 * RATE, np.float32)
    clicks[:: RATE // 3] = 0.9
    assert events_of(np.concatenate([stream, clicks]), silero, 1600) == []


def test_the_words_that_were_said_follow_the_sound():
    """The cascade says whole sentences at once; their words still have their own times."""
    from sensorium.generators import create

    class Letters:  # a tokenizer whose tokens are characters
        def stream(self):
            return self

        def push(self, token):
            return chr(token)

        def flush(self):
            return ""

    text = "The cat sat. It was a very long day, and 21 mice were there. Good night!"
    generator = create("hibari")
    made: dict = {}
    speaker = Cascade(Letters(), generator, lambda sound: made["said"].sound(len(sound)))
    said = made["said"] = Said(speaker, generator.space)
    first = None
    for step in speaker.follow(Step(ord(letter), 0.0) for letter in text):
        said.read(chr(step.token))
        if said.samples and first is None:
            first = said.samples
            assert said.heard(first) == "The cat sat."  # all of it was played, and no more has been said
    speaker.finish()
    said.finish()
    assert said.heard(said.samples) == text and said.heard(said.samples - 2400) != text
    cuts = [said.heard(at) for at in range(0, said.samples, 240)]
    assert all(text.startswith(cut) and (cut + " " in text + " ") for cut in cuts)
    assert cuts == sorted(cuts, key=len)
    assert {*cuts, text} == {"", text, *(text[:at] for at, letter in enumerate(text) if letter == " ")}


def test_a_spoken_question_finds_itself_encoded(tmp_path, silero, question):
    """What `prepare` did in the pause is not done again: the answer encodes nothing and prefills one position."""
    model = sensorium.load(tiny.write(tmp_path / "tiny", speech=True), progress=False)
    engine = ModelEngine(model, aloud=False, max_tokens=3)
    encoder, _ = model.parts.sense("speech")
    encoded, answers, events = [], [], []
    encode, respond = encoder.encode, engine.respond
    encoder.encode = lambda sounds: encoded.append(len(sounds[0])) or encode(sounds)
    engine.respond = lambda *arguments: answers.append(respond(*arguments)) or answers[-1]
    with Turns(engine, events.append, detector=silero.stream) as turns:
        turns.push(np.concatenate([quiet(0.5), question, quiet(0.3)]))
        assert turns.wait(30) and len(encoded) == 1 and not answers
        turns.push(quiet(0.7))
        assert turns.wait(30)
    assert isinstance(events[-2], Done) and len(encoded) == 1
    usage = answers[0].answer.usage
    assert usage.media_tokens > 1 and usage.cached_tokens == usage.prompt_tokens - 1


# The benchmark of the wait --------------------------------------------------------------------------------------------


def test_a_live_question_ends_with_its_last_word(question, monkeypatch):
    from sensorium.evaluation import live

    short, asked = question[: RATE // 2], FakeEngine()
    monkeypatch.setattr(live, "ModelEngine", lambda model, **options: asked)
    assert live.first_sound_live(None, np.pad(short, (0, RATE))) > 0
    assert not asked.prepared  # of the second of quiet behind it nothing is heard: no pause tells that it is over
    (message,) = asked.asked[0]
    assert len(message.content[0].samples) <= len(short) + FRAME
    with pytest.raises(ValueError, match="says nothing"):
        monkeypatch.setattr(live, "ModelEngine", lambda model, **options: FakeEngine(()))
        live.first_sound_live(None, short)
    monkeypatch.setattr(live, "ModelEngine", lambda model, **options: FakeEngine(error=SensoriumError("no room")))
    with pytest.raises(SensoriumError, match="no room"):
        live.first_sound_live(None, short)


def test_the_cascade_writes_each_question_down_once(monkeypatch):
    from sensorium.evaluation import live

    calls, told = [], []
    monkeypatch.setattr(ModelEngine, "__init__", lambda self, model, **options: None)
    monkeypatch.setattr(ModelEngine, "prepare", lambda self, messages: told.append(messages))
    monkeypatch.setattr(ModelEngine, "respond", lambda self, messages, speaker, cancel: told.append(messages))
    cascade = live.Dictation(None, lambda samples: calls.append(len(samples)) or f"question {len(calls)}")
    sounds = [load_audio(noise(0.1, 0.1, seed), array_rate=RATE) for seed in (1, 2)]
    conversation = [Message("user", [sounds[0]]), Message("assistant", "Yes."), Message("user", [sounds[1]])]
    cascade.prepare(conversation[:1])
    cascade.respond(conversation, None, threading.Event())
    assert len(calls) == 2
    assert [[message.text for message in each] for each in told] == [
        ["question 1"],
        ["question 1", "Yes.", "question 2"],
    ]
