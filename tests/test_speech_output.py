"""Speech output: units, chunks, the position convention, and the output projector's cache."""

from __future__ import annotations

import json
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest

from sensorium import generators
from sensorium.backbones.engine import Engine, SamplingParams, Segment, Step
from sensorium.backbones.gguf import GGUF
from sensorium.backbones.onnx_graph import build
from sensorium.errors import SensoriumError, UsageError
from sensorium.evaluation.speech_metrics import edits, error_rate, words
from sensorium.generators.base import UnitSpec
from sensorium.generators.stream import SpeechStream, speak_units, stream_units
from sensorium.projectors.spelling import CODES, Spelling, spelt
from sensorium.speech import Spoken
from tiny_llm import write_gguf

pytest.importorskip("hibari")
TEXT = "Hello there, Dr. Smith. It costs $5, as far as I know; is that all right? " * 2


@pytest.fixture(scope="module")
def hibari():
    return generators.create("hibari")


# Chunks ---------------------------------------------------------------------------------------------------------------


def test_streamed_speech_is_whole_speech(hibari):
    units = hibari.units_of(TEXT)
    whole = speak_units(hibari, units)
    assert len(whole) > 4 * hibari.rate
    for step in (1, 7):
        pieces = [units[i : i + step] for i in range(0, len(units), step)]
        streamed = list(stream_units(hibari, pieces))
        assert len(streamed) > 3  # it did come in chunks
        assert np.array_equal(np.concatenate(streamed), whole)


def test_chunks_do_not_click(hibari):
    units = hibari.units_of(TEXT)
    stream, lengths = SpeechStream(hibari), []
    make = stream._sound

    def spy(count: int) -> np.ndarray:
        sound = make(count)
        lengths.append(len(sound))
        return sound

    stream._sound = spy
    sound = np.concatenate([stream.push(units), stream.flush()])
    steps = np.abs(np.diff(sound))
    speech = np.percentile(steps, 99.9)
    for border in np.cumsum(lengths)[:-1]:
        assert steps[border - 300 : border + 300].max() < speech


def test_a_cut_never_depends_on_what_comes_behind_it(hibari):
    units = hibari.units_of(TEXT)
    whole = hibari.cut(units, True)
    assert 0 < whole < len(units)
    assert [hibari.cut(units[:n], True) for n in range(whole, len(units))] == [whole] * (len(units) - whole)
    assert not any(hibari.cut(units[:n], True) for n in range(whole))


def test_what_cannot_be_said_is_silent(hibari):
    for text in ("", "   ", "...", "?!", "🙂", "漢字", "\x00"):
        assert not len(speak_units(hibari, hibari.units_of(text))), text
    word = hibari.units_of("a" * 3000)
    assert 0 < len(speak_units(hibari, word[:2000])) < 300 * hibari.rate


def test_units_are_the_114_symbols_in_hibaris_order(hibari):
    assert len(hibari.units) == 114
    assert hibari.spelled(hibari.units_of("Hello there.")) == "həlˈO ðˈɛɹ."
    other = UnitSpec(hibari.units.symbols[::-1], hibari.units.weights)
    assert other.fingerprint != hibari.units.fingerprint


def test_unknown_generators_are_refused():
    with pytest.raises(UsageError, match="known kinds: hibari"):
        generators.create("espeak")
    with pytest.raises(UsageError, match="does not take these options"):
        generators.create("hibari", {"pitch": 3})


# A second set of units ------------------------------------------------------------------------------------------------


def tiny_vocoder(path: Path, clusters: int = 8, hop: int = 20) -> Path:
    """A random unit vocoder: a table of waveforms."""
    from onnx import TensorProto, helper, numpy_helper, save

    table = np.random.default_rng(0).normal(0, 0.1, (clusters, hop)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "units"], ["frames"]),
        helper.make_node("Reshape", ["frames", "shape"], ["sound"]),
    ]
    graph = helper.make_graph(
        nodes,
        "vocoder",
        [helper.make_tensor_value_info("units", TensorProto.INT64, [1, "n"])],
        [helper.make_tensor_value_info("sound", TensorProto.FLOAT, [1, "samples"])],
        [numpy_helper.from_array(table, "table"), numpy_helper.from_array(np.array([1, -1]), "shape")],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_clusters_are_said_by_a_unit_vocoder(tmp_path):
    path = tiny_vocoder(tmp_path / "vocoder.onnx")
    vocoder = generators.create("unit-vocoder", {"clusters": 8, "rate": 1000, "chunk": 5}, path)
    units = [1, 8, 3, 3, 2, 5, 4, 1, 1, 7, 6, 2]
    whole = speak_units(vocoder, units)
    streamed = np.concatenate(list(stream_units(vocoder, [[unit] for unit in units])))
    assert np.array_equal(whole, streamed)
    assert len(whole) == 12 * 20 - 2 * 10  # two joins, each a fade of 10 ms long
    assert len(vocoder.units) == 8
    (tmp_path / "none.onnx").write_bytes(b"no graph")
    with pytest.raises(SensoriumError, match=r"none\.onnx is no vocoder"):
        generators.create("unit-vocoder", {}, tmp_path / "none.onnx")


# The engine's hidden states: which state belongs to which token -------------------------------------------------------


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tiny")
    with GGUF(write_gguf(directory / "tiny.gguf")) as gguf:
        return Engine(build(gguf, directory / "graph", quantization="fp32"), threads=1)


def test_a_token_comes_with_the_state_that_it_was_chosen_from(engine):
    prompt = tuple(range(5, 17))
    steps = list(engine.generate([Segment(ids=prompt)], SamplingParams(max_tokens=9), hidden=True))
    said = [step.token for step in steps]
    states = engine.hidden_states([Segment(ids=(*prompt, *said))])
    convention = states[len(prompt) - 1 : len(prompt) - 1 + len(said)]
    given = np.stack([step.hidden for step in steps])
    np.testing.assert_allclose(given, convention, atol=1e-4)
    read = states[len(prompt) : len(prompt) + len(said)]  # the states that have read the tokens: one too late
    assert np.abs(given - read).max() > 0.1
    assert all(step.hidden is None for step in engine.generate([Segment(ids=prompt)], SamplingParams(max_tokens=2)))


def test_states_of_a_batch_are_those_of_each_alone(engine):
    prompts = [[Segment(ids=tuple(range(3, 3 + n)))] for n in (4, 9)]
    params = [SamplingParams(max_tokens=n) for n in (3, 6)]
    rows = list(engine.generate_batch(prompts, params, hidden=True))
    for i, prompt in enumerate(prompts):
        alone = list(engine.generate(prompt, params[i], hidden=True))
        together = [row[i] for row in rows if row[i] is not None]
        assert [step.token for step in together] == [step.token for step in alone]
        for a, b in zip(together, alone):
            np.testing.assert_allclose(a.hidden, b.hidden, atol=1e-4)


# The output projector -------------------------------------------------------------------------------------------------

torch = pytest.importorskip("torch")
DIM, UNITS, END, LETTERS = 64, 8, 2, 12


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    from sensorium.projectors.ctc import CTCProjector
    from sensorium.projectors.units import UnitProjector
    from sensorium.training.speak_export import export_output

    torch.manual_seed(0)
    projector = CTCProjector(
        DIM, UNITS, width=32, depth=2, heads=2, ffn=48, upsample=3, inner=32, window=4, letters=LETTERS
    )
    with torch.no_grad():
        projector.logits.weight *= 20
    for parameter in projector.parameters():
        parameter.data = parameter.data.half().float()
    directory = tmp_path_factory.mktemp("projector")
    export_output(projector, directory)
    return projector, UnitProjector(directory / "speech.onnx")


def written(ids):
    return "".join(f" {chr(97 + token % 26)}{token}" for token in ids)


def frames(projector, table, ids, states):
    from sensorium.training.objectives.ctc import greedy_units
    from sensorium.training.speak_task import frames_of, logits_of

    laid = frames_of([(ids, [1], states)], END, projector, written)
    with torch.no_grad():
        return greedy_units(logits_of(projector, table, laid)[0])


def test_training_and_inference_lay_frames_out_alike(engine, exported):
    """The whole contract: units by training's frames of (state, token) are those that are spoken, and a state that
    stands one token later gives others."""
    projector, runner = exported
    table = torch.from_numpy(engine.embed(range(engine.spec.vocab)))
    prompt = tuple(range(5, 17))
    steps = list(engine.generate([Segment(ids=prompt)], SamplingParams(max_tokens=20), hidden=True))
    spoken = Spoken(runner, engine.embed, written, END, Mute(), lambda sound: None)
    assert list(spoken.follow(iter(steps))) == steps
    spoken.finish()
    ids = np.array([step.token for step in steps])
    states = engine.hidden_states([Segment(ids=(*prompt, *ids.tolist()))])
    at = len(prompt) - 1
    assert len(spoken.units) > 10
    assert frames(projector, table, ids, states[at : at + len(ids)]) == spoken.units
    assert frames(projector, table, ids, states[at + 1 : at + 1 + len(ids)]) != spoken.units


def test_the_stop_token_is_not_spoken_and_a_length_limit_loses_nothing(exported):
    _, runner = exported
    random = np.random.default_rng(1)
    table = random.normal(size=(9, DIM)).astype(np.float32)
    steps = [Step(i, 0.0, hidden=random.normal(size=DIM).astype(np.float32)) for i in range(3, 8)]

    def units(given: list[Step]) -> list[int]:
        spoken = Spoken(runner, lambda ids: table[ids], written, END, Mute(), lambda sound: None)
        list(spoken.follow(iter(given)))
        spoken.finish()
        return spoken.units

    stopped = [*steps, Step(END, 0.0, finish="stop", hidden=steps[0].hidden)]
    cut = [*steps[:-1], Step(7, 0.0, finish="length", hidden=steps[-1].hidden)]
    assert units(stopped) == units(cut) == units(steps)
    assert units(steps[:-1]) != units(steps)


@pytest.mark.parametrize(("pieces", "runs"), [(" abcd", 11), (" abc4", 16), (" abcd,", 16)])
def test_a_beginning_too_short_to_be_said_is_projected_at_once(exported, monkeypatch, pieces, runs):
    _, runner = exported
    random = np.random.default_rng(2)
    table = random.normal(size=(20, DIM)).astype(np.float32)
    steps = [Step(i, 0.0, hidden=random.normal(size=DIM).astype(np.float32)) for i in range(3, 18)]
    called, run = [], runner.run
    monkeypatch.setattr(runner, "run", lambda states, *rest: called.append(len(states)) or run(states, *rest))

    def units(first: int) -> list[int]:
        generator = Mute()
        generator.first = first
        spoken = Spoken(runner, lambda ids: table[ids], lambda ids: pieces, END, generator, lambda sound: None)
        list(spoken.follow(iter(steps)))
        spoken.finish()
        return spoken.units

    one_by_one = units(0)
    assert called == [1] * 16  # and the end
    called.clear()
    assert units(33) == one_by_one  # 29 letters and spaces are waited for
    assert len(called) == runs and sum(called) == 16


def test_the_cached_projector_is_the_whole_one_in_any_pieces(exported):
    projector, runner = exported
    random = np.random.default_rng(0)
    states, embeds = random.normal(size=(2, 23, DIM)).astype(np.float32)
    letters = random.integers(0, CODES, (23, LETTERS))
    before = np.concatenate([np.zeros((1, DIM), np.float32), embeds[:-1]])
    with torch.no_grad():
        whole, _ = projector(
            *(torch.from_numpy(x)[None] for x in (states, embeds, before, letters)),
            projector.empty(1),
            torch.zeros(1).long(),
        )
    for size in (1, 2, 5, 23):
        past, found = None, []
        for at in range(0, 23, size):
            cut = slice(at, at + size)
            logits, past = runner.run(states[cut], embeds[cut], before[cut], letters[cut], past, at)
            found.append(logits)
        np.testing.assert_allclose(np.concatenate(found), whole[0].numpy(), atol=2e-4)
    assert past.shape[4] == 3  # the window is 4: the cache does not grow with the answer


def test_the_projector_is_causal_and_looks_back_as_far_as_its_window(exported):
    projector, _ = exported
    random = torch.Generator().manual_seed(0)
    states, embeds, before = torch.randn(3, 1, 12, DIM, generator=random)
    letters = torch.randint(0, CODES, (1, 12, LETTERS), generator=random)
    zero = torch.zeros(1).long()
    with torch.no_grad():
        first, _ = projector(states, embeds, before, letters, projector.empty(1), zero)
        states[0, 4] += 1
        second, _ = projector(states, embeds, before, letters, projector.empty(1), zero)
    changed = (first - second).abs().amax(dim=(0, 2, 3)) > 1e-6
    assert not changed[:4].any()
    assert changed[4:8].all()
    assert not changed[4 + 2 * 3 + 1 :].any()  # two layers, each of a window of 4


class Mute:
    """A generator that says nothing."""

    rate, units = 1000, UnitSpec(tuple("12345678"))

    def generate(self, units, index=0):
        return np.zeros(0, np.float32)

    def cut(self, units, first):
        return 0


# What training aims at ------------------------------------------------------------------------------------------------


def test_words_are_aligned_with_the_frame_behind_them():
    from sensorium.training.speak_task import align

    space = 9
    # three tokens: "ex", "tra" (one word), " cat"; units 1 2 2 _ 3
    slots = align([1, 1, 2], [1, 2, 2, space, 3], space, 5)
    assert slots.tolist() == [[0] * 5, [0] * 5, [1, 2, 0, 2, 0], [space, 3, 0, 0, 0]]
    assert align([1, 2, 3], [1, space, 2], space, 5) is None  # another number of words
    assert align([1], [1, 2, 3, 4, 5, 6], space, 5) is None  # too long for the slots
    assert align([], [], space, 5) is None


def test_a_small_task_learns_to_spell(tmp_path):
    from sensorium.projectors.ctc import CTCProjector
    from sensorium.training.loop import train_loop
    from sensorium.training.speak_recipe import SpeakTrain
    from sensorium.training.speak_run import measure
    from sensorium.training.speak_task import SpeakTask
    from sensorium.training.speak_texts import Corpus

    torch.manual_seed(0)
    random = np.random.default_rng(0)
    texts = []
    for _ in range(300):
        ids = random.integers(3, 9, size=int(random.integers(1, 6)))
        texts.append((ids, [unit for i in ids for unit in (int(i) - 2, 7)], None))
    corpus = Corpus.of(texts)
    corpus.save(tmp_path / "corpus.npz")
    corpus = Corpus.load(tmp_path / "corpus.npz")
    assert corpus.text(7)[1].tolist() == texts[7][1]
    table = torch.randn(9, 16)
    projector = CTCProjector(16, UNITS, width=32, depth=1, heads=2, ffn=64, upsample=4, inner=32, window=4, letters=8)
    plan = SpeakTrain(steps=150, frame_tokens=96, learning_rate=5e-3, warmup=5, precision="fp32", checkpoint_every=500)
    task = SpeakTask(projector, table, {"words": corpus}, {"words": 1.0}, END, 0.0, plan, written)
    before = measure(projector, table, corpus, END, written)["blind"]
    train_loop(task, plan, tmp_path)
    after = measure(projector, table, corpus, END, written)["blind"]
    assert after < 0.1 < 0.5 < before


def test_error_rates():
    assert edits("kitten", "sitting") == 3
    assert edits("", "abc") == edits("abc", "") == 3
    assert error_rate([("abcd", "abxd"), ("ab", "ab")]) == pytest.approx(1 / 6)
    assert words("It's 5 o'clock, Dr. Smith!") == ["it's", "5", "o'clock", "dr", "smith"]


# Commands -------------------------------------------------------------------------------------------------------------


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "sensorium", *arguments], capture_output=True, text=True, check=False)


def test_speak_writes_a_wav_file(tmp_path):
    out = tmp_path / "out.wav"
    done = run("speak", "Hello there.", "-o", str(out), "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    with wave.open(str(out)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (24000, 1, 2)
        assert file.getnframes() / 24000 == pytest.approx(facts["duration_s"], abs=1e-3)
    assert facts["phonemes"] == "həlˈO ðˈɛɹ."


def test_speak_refuses_what_it_cannot_say_or_write(tmp_path):
    done = run("speak", "🙂", "-o", str(tmp_path / "out.wav"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.strip() == "sensorium: the text holds nothing that can be said; give some words."
    assert not any(tmp_path.iterdir())
    assert run("speak", "Hello.", "-o", str(tmp_path)).returncode == 2
    assert run("ask", "Hello?", "--cascade").returncode == 2


# Seams ----------------------------------------------------------------------------------------------------------------


def test_an_output_projector_is_checked_against_its_neighbours(tmp_path, exported):
    from types import SimpleNamespace

    from sensorium import seams
    from sensorium.composition import Composition

    text = """name: tiny
backbone:
  part: {source: "file:tiny.gguf"}
generators:
  speech: {kind: hibari}
output_projectors:
  speech: {kind: ctc, generator: speech, weights: speech.safetensors, onnx: speech.onnx}
"""
    (tmp_path / "composition.yaml").write_text(text)
    composition = Composition(tmp_path)
    assert composition.trained_files == []  # what only speech needs is checked when something is said
    assert composition.output_files == ["speech.onnx", "speech.safetensors"]
    runner = exported[1]
    with pytest.raises(SensoriumError, match=r"line 7: the output projector 'speech'.*width 64.*gives width 576"):
        seams.check_output(composition, "speech", runner, Mute(), SimpleNamespace(dim=576))
    more = SimpleNamespace(units=UnitSpec(tuple("123456789")))
    with pytest.raises(SensoriumError, match=r"gives 8 units, but the generator 'speech' \(hibari\) takes 9"):
        seams.check_output(composition, "speech", runner, more, SimpleNamespace(dim=64))
    (tmp_path / "composition.yaml").write_text(text.replace("generators:\n  speech: {kind: hibari}\n", ""))
    with pytest.raises(UsageError, match="'speech', which is not declared; declared generators: none"):
        Composition(tmp_path)


def test_a_growing_text_is_spelt_letter_by_letter():
    text, whole = Spelling(6), spelt(["Oh", " no", "é", ""], 6)
    assert [text.push(piece).tolist() for piece in ("Oh", " no", "é", "")] == whole.tolist()
    old, new = whole[1] < CODES // 2 + 1, whole[1] > CODES // 2
    assert new.tolist() == [False, False, False, True, True, True]  # what the newest token adds
    assert (
        (whole[0][:4] == 0).all() and old[1:3].all() and whole[1][1:3].tolist() == (whole[0][4:] - CODES // 2).tolist()
    )
    assert whole[2][-1] == CODES - 1  # a letter that is not known
    assert not (whole[3] > CODES // 2).any()  # a token without text


def test_no_letter_is_left_out_without_a_word(capsys, tmp_path):
    hibari = generators.create("hibari")
    word = "supercalifragilistic"
    assert len(hibari.units_of(word * 20)) > 0.9 * len(hibari.units_of(" ".join([word] * 20)))
    assert " " not in hibari.spelled(hibari.units_of("antidisestablishmentarianism"))
    assert hibari.unsaid("Hello 日本 there, café") == ["日本"]

    from sensorium.cli import run

    assert run(["speak", "Hello 日本 there", "-o", str(tmp_path / "x.wav")]) == 0
    assert "no sound for 日本; the rest was said" in capsys.readouterr().err
