"""The listening suite with a model of fakes: what each way is told, and that scores are what they are called."""

from __future__ import annotations

import time
from operator import attrgetter

import numpy as np
import pytest

from sensorium.errors import SensoriumError
from sensorium.evaluation.human_voices import Recording
from sensorium.evaluation.random_projector import RandomProjector
from sensorium.evaluation.recognisers import no_recogniser
from sensorium.evaluation.suites import listening
from sensorium.evaluation.suites.listening import SpokenItem, Way, listening_rows, ways
from sensorium.media import load_audio, load_image


class Words:
    """A tokenizer of words."""

    def encode_answer(self, text):
        return [sum(map(ord, word)) for word in text.split()]


class Prepared:
    def __init__(self, engine, segments):
        self.engine, self.segments, self.tokenizer = engine, segments, Words()


class Knows:
    """Understands what it is told in words, and of sounds those that it knows."""

    def __init__(self, facts, heard):
        self.facts, self.heard = facts, heard

    def prepare(self, messages):
        return Prepared(self, messages[0].content)

    def score(self, content, ids):
        told = " ".join(
            part if isinstance(part, str) else self.heard.get(float(part.samples[0]), "") for part in content
        )
        known = [Words().encode_answer(answer) for question, answer in self.facts.items() if question in told]
        return np.array([-1.0 * len(each) if each in known else -3.0 * len(each) for each in ids])

    def chat(self, messages, **options):
        class Answer:
            text = "two words"

        return Answer()


def item(said, answer, number, **facts):
    sound = np.full(1600, number, np.float32)
    return SpokenItem("voices", said, sound, ("dog", "cat"), answer, **facts)


ITEMS = [item("barks", "dog", 0.25), item("meows", "cat", 0.5), item("purrs", "cat", 0.75)]
FACTS = {"barks": "dog", "meows": "cat", "purrs": "cat"}


def rows(model, random, transcribe):
    return {row.name: row for row in listening_rows(ITEMS, ways(model, random, transcribe))}


def test_the_gap_is_to_the_same_questions_as_text():
    model = Knows(FACTS, {0.25: "barks", 0.5: "meows"})
    found = rows(model, Knows(FACTS, {}), lambda sound: "barks" if sound[0] == 0.25 else "mews")
    right = found["right answers"].scores
    assert right["text"].value == 1.0 and right["model"].value == pytest.approx(2 / 3)
    assert right["cascade"].value == right["random projector"].value == pytest.approx(1 / 3)
    assert found["right answers"].chance == 0.5
    assert found["right answers"].difference.value == pytest.approx(1 / 3)
    gaps = found["the same, beyond the text's"].scores
    assert gaps["model"].value == pytest.approx(-1 / 3) and gaps["cascade"].value == pytest.approx(-2 / 3)


def test_what_is_asked_in_writing_stands_behind_what_was_said():
    picture = load_image(np.zeros((4, 4, 3), np.uint8))
    told = item("barks", "dog", 0.25, asked="Which animal is it?", image=picture)
    by = ways(None, None, lambda sound: "bark")
    assert by["text"].message(told).content == (picture, "barks", "Which animal is it?")
    assert by["cascade"].message(told).content == (picture, "bark", "Which animal is it?")
    image, sound, asked = by["model"].message(told).content
    assert (image, asked) == (picture, "Which animal is it?")  # `render` gives every part a line
    assert (sound.samples == told.sound).all() and sound.rate == 16_000
    assert by["text"].message(ITEMS[0]).content == ("barks",)


def test_divergence_is_none_from_itself_and_counts_tokens():
    model = Knows(FACTS, {0.25: "barks"})
    text, deaf = Way(model, lambda each: each.said), Way(Knows({}, {}), lambda each: each.said)
    assert listening.divergence(text, text, ITEMS[0], "dog") == 0
    assert listening.divergence(text, deaf, ITEMS[0], "dog") == pytest.approx(2.0)
    assert listening.divergence(deaf, text, ITEMS[0], "dog") == pytest.approx(-2.0)


class Trained:
    path, cells, tokens, feature_dim, dim = "listen.onnx", None, None, 6, 8

    def count(self, frames=None):
        return -(-frames // 8)

    def __call__(self, features):
        return np.full((1, self.count(features.shape[1]), 8), 0.3, np.float32)


@pytest.mark.parametrize("frames", [1, 8, 9, 40])
def test_a_random_projector_differs_in_nothing_but_what_it_knows(frames):
    random, features = (
        RandomProjector(Trained()),
        np.random.default_rng(1).normal(size=(1, frames, 6)).astype(np.float32),
    )
    first, second = random(features), random(features)
    assert first.shape == (1, -(-frames // 8), 8) and first.dtype == np.float32
    assert (first == second).all() and not np.allclose(first, random(-features))
    assert np.sqrt(np.mean(first**2)) == pytest.approx(0.3, rel=1e-4)


@pytest.fixture(params=["ctranslate2.models.Whisper.generate", "faster_whisper.WhisperModel.transcribe"])
def recogniser(request, monkeypatch):
    """Makes a call of a recogniser: of one that was opened before, or of one of its own."""
    module, *names, method = request.param.split(".")
    owner = attrgetter(".".join(names))(pytest.importorskip(module))
    monkeypatch.setattr(owner, method, lambda self, sound=None: "barks")
    opened = owner.__new__(owner)
    return lambda before=True, sound=None: getattr(opened if before else owner.__new__(owner), method)(sound)


@pytest.mark.parametrize("before", [True, False])
def test_a_direct_path_that_transcribes_in_secret_is_caught(recogniser, before):
    class Cheats(Knows):
        def prepare(self, messages):
            if messages[0].media:
                recogniser(before)
            return super().prepare(messages)

    with pytest.raises(SensoriumError, match=r"recogniser ran .*(Whisper.generate|WhisperModel.transcribe)"):
        rows(Cheats(FACTS, {0.25: "barks"}), Knows(FACTS, {}), lambda sound: "barks")


def test_the_cascade_may_transcribe(recogniser):
    found = rows(Knows(FACTS, {}), Knows(FACTS, {}), lambda sound: recogniser(sound=sound))
    assert found["right answers"].scores["cascade"].value == pytest.approx(1 / 3)


def test_who_transcribes_in_secret_while_it_speaks_is_caught(recogniser, monkeypatch):
    from sensorium.evaluation import latency
    from sensorium.evaluation.suites import speaking, speech

    class Model:
        class parts:
            class output:
                get = staticmethod(lambda: "a projector")

            class generator:
                get = staticmethod(lambda: None)

    secretly = []  # whether the direct way transcribes; the cascade's always does

    def say(model, question, cascade, longest):
        if longest == 4:  # what loads the parts
            return None
        return recogniser() if cascade or secretly else speaking.Said("", [], np.zeros(0), {})

    def first_sound(model, sound, transcribe=None):
        if transcribe:
            transcribe(sound)
        elif secretly:
            recogniser()
        return dict.fromkeys((*latency.STAGES, latency.WHOLE), 0.1)

    monkeypatch.setattr(speaking, "say", say)
    monkeypatch.setattr(speaking, "with_random_units", lambda model: model)
    monkeypatch.setattr(latency, "first_sound", first_sound)
    monkeypatch.setattr(speech, "two_second_questions", lambda number: [np.zeros(32_000, np.float32)] * number)
    speech.measure_latency(Model, lambda sound, rate: recogniser(), 1)
    secretly.append(True)
    with pytest.raises(SensoriumError, match="recogniser ran"):
        speech.measure_latency(Model, lambda sound, rate: "", 1)
    with pytest.raises(SensoriumError, match="recogniser ran"):
        speaking.evaluate_speaking(Model, questions=["Why?"], hear=lambda sound, rate: "")


def test_every_decoder_of_the_real_whisper_is_watched_and_nothing_stays_behind():
    models = pytest.importorskip("ctranslate2").models
    before, opened = dict(vars(models.Whisper)), models.Whisper.__new__(models.Whisper)
    with pytest.raises(SensoriumError, match=r"generate, .*align, .*detect_language"), no_recogniser() as used:
        for name in ("encode", "generate", "align", "detect_language"):
            with pytest.raises(TypeError):
                getattr(opened, name)()  # without arguments
    assert used == ["Whisper.generate", "Whisper.align", "Whisper.detect_language"]
    assert dict(vars(models.Whisper)) == before
    with no_recogniser():
        pass


def test_recordings_are_sentences(monkeypatch, tmp_path):
    import gzip

    from sensorium.evaluation import human_voices

    sounds, texts, book = tmp_path / "en_US_f_Allison", tmp_path / "texts", tmp_path / "librivox"
    for directory in (sounds, texts, book):
        directory.mkdir()
    (sounds / "busy.wav").touch()
    (sounds / "digits.wav").touch()
    said = "; comment\nbusy: All circuits are busy now.\ndigits: 1 2 3 4\nmissing: Nobody recorded this.\n"
    (texts / "core-sounds-en.txt.gz").write_bytes(gzip.compress(said.encode()))
    (book / "transcription").write_text("<s> he was not an ill disposed young man </s> (a-0880)\n")
    monkeypatch.setattr(human_voices, "_tree", lambda name: tmp_path)
    assert human_voices.recordings() == [
        Recording("All circuits are busy now.", sounds / "busy.wav", "exchange"),
        Recording("He was not an ill disposed young man.", book / "a-0880.wav", "book"),
    ]


def test_people_choose_among_sentences_of_like_length(monkeypatch):
    from sensorium.evaluation.suites import speech

    texts = [
        *("The line is busy now.", "Please hang up and try again.", "Goodbye to you."),
        *("Nobody is at home today, I fear.", "Press one to go on.", "That number is not in use."),
    ]
    said = [Recording(text, f"{number}.wav", "exchange") for number, text in enumerate(texts)]
    monkeypatch.setattr(speech, "recordings", lambda: said)
    silence = load_audio(np.zeros(160, np.int16), array_rate=16_000)
    monkeypatch.setattr("sensorium.media.load_audio", lambda path: silence)
    items = speech.people_items(4)
    assert [item.answer for item in items] == [texts[0], texts[2], texts[3], texts[5]]
    assert all(item.answer in item.choices and len(set(item.choices)) == 4 for item in items)
    assert len({item.choices.index(item.answer) for item in items}) > 1
    assert items[0].said == texts[0] and items[0].asked == speech.REPEAT


def test_stages_add_up_to_the_first_sound():
    from sensorium.evaluation import latency

    class Timings:
        encode_s, prefill_s, before_sound = 0.02, 0.03, (0.001, 0.002)

    class Speaker:
        timings = Timings

    class Model:
        def speaker(self, sink, cascade):
            self.sink, self.cascade = sink, cascade
            return Speaker()

        def chat(self, messages, speaker, cancel, max_tokens):
            self.told = messages[0].content[0] if self.cascade else messages[0].media[0]
            time.sleep(0.08)
            self.sink(np.zeros(10))
            assert cancel.is_set()  # nothing is said behind the first sound

            class Answer:
                timings = Timings

            return Answer()

    model, sound = Model(), np.zeros(32000, np.float32)
    direct = latency.first_sound(model, sound)
    assert model.cascade is False and (model.told.samples == sound).all()
    assert direct[latency.WHOLE] >= 0.08 and direct["transcribe"] == 0 and direct["encode"] == 0.02
    assert sum(direct[stage] for stage in latency.STAGES) == pytest.approx(direct[latency.WHOLE])
    heard = latency.first_sound(model, sound, transcribe=lambda samples: time.sleep(0.05) or "hello")
    assert model.cascade is True and model.told == "hello" and heard["transcribe"] >= 0.05
    assert sum(heard[stage] for stage in latency.STAGES) == pytest.approx(heard[latency.WHOLE])


def test_random_units_are_as_many_as_any_and_know_nothing():
    from sensorium.evaluation.random_projector import RandomUnits

    class Output:
        dim, letters, upsample, units = 12, 4, 8, 30

    random, numbers = RandomUnits(Output()), np.random.default_rng(0)
    states, embeds = numbers.normal(size=(2, 40, 12)).astype(np.float32)
    said = []
    for state, embed in zip(states, embeds):
        said += random.stream().push(state, embed, " a")
    assert 0.15 * 40 * 8 < len(said) <= 0.4 * 40 * 8 and set(said) <= set(range(1, 31))
    assert said == [unit for s, e in zip(states, embeds) for unit in RandomUnits(Output()).stream().push(s, e, " b")]
    assert len(set(said)) > 20
