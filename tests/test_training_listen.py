"""Learning to listen: the stack projector and its twin, alignment, distillation, voices, texts and what is held out."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

import tiny

torch = pytest.importorskip("torch")
import torch.nn.functional as F  # noqa: E402

from sensorium.composition import Composition  # noqa: E402
from sensorium.errors import SensoriumError, UsageError  # noqa: E402
from sensorium.projectors.spec import positions_for  # noqa: E402
from sensorium.projectors.stack import StackProjector, Words  # noqa: E402
from sensorium.training.data import spoken_questions, voices  # noqa: E402
from sensorium.training.listen_heard import Drawn, Heard, needed  # noqa: E402
from sensorium.training.listen_recipe import ListenTrain  # noqa: E402
from sensorium.training.listen_store import Shard, quiet  # noqa: E402
from sensorium.training.listen_task import AlignTask, kept  # noqa: E402
from sensorium.training.listen_words import Pronunciation, Sounds, WordKeys, pieces  # noqa: E402
from sensorium.training.loop import train_loop  # noqa: E402
from sensorium.training.objectives.align import TokenRows, align  # noqa: E402

DIM, WIDE = 24, 16

# The projector --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"depth": 2, "context": 1, "width": 12}, {"words": 30, "keys": 8}])
def test_the_twin_of_a_stack_is_the_torch_module_at_any_length(tmp_path, options):
    import onnxruntime

    from sensorium.training.listen_export import export_listen

    torch.manual_seed(0)
    table = torch.randn(30, WIDE) if "words" in options else None
    projector = StackProjector(DIM, WIDE, None, hidden=20, **options, table=table).eval()
    if projector.words is not None:
        projector.words.keys.normal_().mul_(5)
        torch.nn.init.constant_(projector.words.prior, 2.0)
    left_out = 0
    export_listen(projector, DIM, tmp_path)
    projector.load_state_dict({name: value.half().float() for name, value in projector.state_dict().items()})
    twin = onnxruntime.InferenceSession(str(tmp_path / "listen.onnx"))
    assert twin.get_inputs()[0].shape[::2] == [1, DIM]
    assert twin.get_outputs()[0].shape[::2] == [1, WIDE]
    for frames in (1, 7, 8, 9, 16, 41, 200):
        features = torch.randn(1, frames, DIM)
        (given,) = twin.run(None, {"features": features.numpy()})
        most = positions_for("stack", options, frames)
        left_out += most - given.shape[1]
        assert given.shape == (1, min(most, given.shape[1]), WIDE) and given.shape[1] > 0
        with torch.no_grad():
            np.testing.assert_allclose(given, projector(features).numpy(), atol=2e-5)
    assert (left_out > 0) == ("words" in options)


def test_what_stands_between_words_is_left_out_and_a_batch_keeps_what_its_fullest_sound_says():
    torch.manual_seed(0)
    projector = StackProjector(DIM, WIDE, None, hidden=20, words=30, keys=8, table=torch.randn(30, WIDE)).eval()
    projector.words.keys.normal_().mul_(5)
    torch.nn.init.constant_(projector.words.prior, 6.0)
    features = torch.randn(6, 80, DIM)
    with torch.no_grad():
        alone = [projector(one[None])[0] for one in features]
        frames = projector.frames(features)
        together = kept(projector.words, frames)
        assert len({len(one) for one in alone}) > 1 and together.shape[1] == max(map(len, alone)) < 10
        for one, row, whole in zip(alone, together, projector.words.mean(projector.words.shares(frames))):
            places = [int((whole - position).abs().sum(-1).argmin()) for position in row]
            assert places == sorted(set(places))  # in their order, each once
            assert all(any(torch.allclose(position, other, atol=1e-5) for other in row) for position in one)
        quiet = torch.zeros(1, 80, DIM)
        torch.nn.init.constant_(projector.words.prior, 50.0)
        assert projector(quiet).shape[1] >= 1  # something is read even of what says nothing


def test_what_is_padded_and_who_stands_beside_changes_nothing():
    torch.manual_seed(0)
    projector = StackProjector(DIM, WIDE, None, hidden=20, depth=2, context=2, width=12).eval()
    sounds = [torch.randn(n, DIM) for n in (3, 17, 25, 64)]
    batch = torch.nn.utils.rnn.pad_sequence(sounds, batch_first=True)
    with torch.no_grad():
        together = projector(batch, torch.tensor([len(sound) for sound in sounds]))
        for sound, row in zip(sounds, together):
            alone = projector(sound[None])[0]
            torch.testing.assert_close(row[: len(alone)], alone)
            if len(sound) > 1:  # the last frame is heard, though it fills no stack
                assert not torch.allclose(projector(sound[None, :-1])[0, -1], alone[-1])


def test_kinds_without_time_have_no_positions():
    with pytest.raises(UsageError, match="'mlp' takes no features along time; kinds that do: stack"):
        positions_for("mlp", {}, 7)


# Alignment ------------------------------------------------------------------------------------------------------------


def test_the_alignment_is_plain_ctc_and_few_others_stand_for_all():
    torch.manual_seed(0)
    words = Words(torch.randn(38, 12), 12).double()
    words.keys.normal_()
    with torch.no_grad():
        words.prior.fill_(0.3)
        words.scale.fill_(-1.0)
    rows = TokenRows(words, list(range(3, 40)))
    frames = torch.randn(5, 7, 12, dtype=torch.float64).requires_grad_()
    said = [[3, 4, 4], [5], [6, 7, 6, 8], [39, 20], [10, 11, 12, 13]]

    def found(others=None):
        among, own = rows.drawn(said, others)
        return align(rows, frames, words.keys[[0, *among]], among, own, said)

    loss, number = found()
    classes = torch.tensor([[rows.classes[i] for i in ids] + [0] * (4 - len(ids)) for ids in said])
    lengths = (torch.full((5,), 7), torch.tensor([len(ids) for ids in said]))
    logs = F.log_softmax(words(frames), -1).transpose(0, 1)
    plain = F.ctc_loss(logs, classes, *lengths, reduction="sum") / number
    torch.testing.assert_close(loss, plain, atol=1e-5, rtol=1e-5)
    learnt = [frames, words.prior, words.scale]
    for mine, theirs in zip(torch.autograd.grad(loss, learnt), torch.autograd.grad(plain, learnt)):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)
    random = np.random.default_rng(0)
    sampled = [float(found(random.integers(1, 38, size=12).tolist())[0].detach()) for _ in range(200)]
    assert np.mean(sampled) == pytest.approx(float(plain.detach()), rel=0.02)


def test_words_that_sound_alike_have_like_keys_and_a_word_that_was_never_heard_has_one():
    said = {"cat": "kat", "bat": "bat", "cot": "kot", "dog": "dog", "cap": "kap"}
    tokens = [" cat", " bat", " cot", " dog", " cap", "cat", "?", " cat"]
    assert pieces("?", said.get) == []
    assert "sound ^kat" in pieces(" cat", said.get) and "sound +kat" in pieces("cat", said.get)
    assert "capital" in pieces("Cat", lambda word: "kat") and "no space" in pieces("Cat", lambda word: "kat")
    torch.manual_seed(0)
    keys = WordKeys([pieces(token, lambda word: said[word]) for token in tokens], 64).all()[1:]
    like = torch.nn.functional.cosine_similarity(keys[:1], keys)
    assert min(like[1], like[4]) > 0.5 > 0.4 > like[3]  # bat and cap; dog
    assert torch.equal(keys[0], keys[7]) and not keys[6].any()


NAMES = ["cat", "cats", "hat", "hats", "bat", "bats", "rat", "rats", "mat", "mats", "sat", "fat", "pat", "pats"]


def spelt(names) -> list[list[str]]:
    return [pieces(f" {name}", list) for name in names]


def test_keys_that_were_learnt_are_kept_and_tell_those_of_words_that_were_not():
    torch.manual_seed(0)
    learnt = WordKeys(spelt(NAMES), 6).all()
    again = WordKeys(spelt([*NAMES, "ant", "ants"]), 6)
    left_out = NAMES.index("mats") + 1
    again.fit({i: learnt[i] for i in range(1, len(NAMES) + 1) if i != left_out}, learnt[0] + 1)
    found = again.all()
    others = [i for i in range(1, len(NAMES) + 1) if i != left_out]
    torch.testing.assert_close(found[others], learnt[others])
    torch.testing.assert_close(found[0], learnt[0] + 1)
    near = torch.nn.functional.cosine_similarity(found[left_out], learnt[1:], dim=-1)
    assert near.argmax() == left_out - 1 and near.max() > 0.8  # by "mat", "hats", "rats" alone
    assert again.own[left_out].abs().max() == again.own[-1].abs().max() == 0  # what only its pieces say


def test_a_run_that_starts_from_another_projector_hears_what_that_one_heard(tmp_path):
    from safetensors.torch import save_file

    from sensorium.training.listen_start import start_from

    torch.manual_seed(0)
    table, sizes = torch.randn(40, WIDE).half().float(), {"stack": 4, "hidden": 16, "depth": 2, "width": 12, "keys": 6}
    had, has = [0, *range(5, 19)], [0, 30, *range(18, 4, -1), 3]  # other words, in another order
    first, second = (StackProjector(DIM, WIDE, words=len(ids), table=table[ids], **sizes) for ids in (had, has))
    first.words.keys.copy_(torch.randn(len(had), 6))
    save_file({name: value.half() for name, value in first.state_dict().items()}, tmp_path / "a.safetensors")
    spec = SimpleNamespace(projectors={"speech": SimpleNamespace(weights="a.safetensors")})
    start = SimpleNamespace(spec=spec, file=lambda name: tmp_path / name, path=tmp_path)
    keys = WordKeys(spelt(["zoo", *NAMES[::-1], "owl"]), 6)
    assert start_from(start, second, keys) == len(NAMES)
    second.words.keys.copy_(keys.all())
    sound = torch.randn(1, 23, DIM)
    there, here = first.words(first.frames(sound)), second.words(second.frames(sound))
    places = [has.index(token) for token in had]
    torch.testing.assert_close(here[..., places], there, atol=0.05, rtol=0.05)  # it was kept in 16 bits
    second.looks = second.looks[:1]
    with pytest.raises(UsageError, match="another projector than it says"):
        start_from(start, second, keys)


def test_what_cannot_go_on_learning_is_refused():
    from sensorium.training.listen_start import startable

    mini, deaf = Composition.find("mini"), Composition.find("mini")
    options = dict(mini.spec.projectors["speech"].options)
    startable(mini, mini, {**options, "words": 0}, "stack")
    with pytest.raises(UsageError, match=r"the recipe asks for stack with .*'stack': 4"):
        startable(mini, mini, {**options, "stack": 4}, "stack")
    deaf.spec.projectors.pop("speech")
    with pytest.raises(UsageError, match="has no projector for speech"):
        startable(mini, deaf, options, "stack")


def test_pronunciation_is_what_is_heard_of_the_units():
    class Front:
        class units:
            symbols = tuple("ˈ a?kt")

        @staticmethod
        def units_of(text):
            return [5, 1, 3, 6, 2, 4]

    assert Pronunciation(Front)("a cat?") == ["k", "a", "t"]
    assert Pronunciation(Front).numbers("a cat?") == [2, 1, 3]


def planted(directory, number: int, table, sound, seed: int) -> Shard:
    """Utterances of which each word is eight to sixteen frames of its own sound."""
    random = np.random.default_rng(seed)
    features, listed, at = [], [], 0
    for _ in range(number):
        ids = random.integers(1, len(table), size=int(random.integers(1, 5)))
        frames = [np.repeat(sound[i][None], int(random.integers(12, 20)), 0) for i in ids]
        heard = np.concatenate(frames) + 0.1 * random.standard_normal((sum(map(len, frames)), sound.shape[1]))
        features.append(heard.astype(np.float16))
        listed.append(
            {"text": " ".join(map(str, ids)), "source": "x", "voice": "v", "start": at, "end": at + len(heard)}
        )
        at += len(heard)
    path = directory / f"planted-{seed}.npy"
    np.save(path, np.concatenate(features))
    path.with_suffix(".json").write_text(json.dumps(listed))
    return Shard(path)


def encode(text: str) -> list[int]:
    return [int(word) for word in text.split()]


@pytest.fixture
def task(tmp_path):
    """A small task, made anew from the same seed by each call."""
    random = np.random.default_rng(0)
    table, sound = torch.from_numpy(random.standard_normal((12, WIDE))).float(), random.standard_normal((12, DIM))
    shards = [planted(tmp_path, 200, table, sound, seed) for seed in (1, 2)]

    def made(**changes) -> AlignTask:
        torch.manual_seed(0)
        changes = {"others": 8, "sounds": 1.0, **changes}
        plan = ListenTrain(
            steps=80, positions=64, learning_rate=1e-2, warmup=5, precision="fp32", checkpoint_every=1000, **changes
        )
        projector = StackProjector(
            DIM, WIDE, None, hidden=32, depth=2, context=1, width=32, words=12, keys=16, table=table
        )
        heard, tokens = Heard(shards[:1], encode), list(range(1, 12))
        keys = WordKeys([pieces(f" {chr(96 + token)}", str) for token in tokens], 16)
        return AlignTask(
            projector, TokenRows(projector.words, tokens), heard, range(len(heard)), plan,
            keys, Sounds(32, 11), heard.tokens,
        )  # fmt: skip

    return made, Heard(shards[1:], encode)


def wrong(task: AlignTask, heard: Heard) -> float:
    from sensorium.evaluation.speech_metrics import error_rate

    pairs = []
    task.settle()
    with torch.no_grad():
        for i in range(len(heard)):
            pairs.append((heard.tokens[i], task.rows.heard(task.project(heard.whole([i]))[1])[0]))
    return error_rate(pairs)


def test_alignment_learns_which_sound_is_which_word(task, tmp_path):
    made, test = task
    learns = made()
    before = wrong(learns, test)
    train_loop(learns, learns.recipe, tmp_path)
    assert wrong(learns, test) < 0.12 < 0.5 < before


def test_a_run_that_is_stopped_and_resumed_ends_in_the_same_weights(task, tmp_path):
    made, _ = task
    whole, first, second = made(feature_dropout=0.1), made(feature_dropout=0.1), made(feature_dropout=0.1)
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    train_loop(whole, whole.recipe, tmp_path / "whole")
    steps = iter(range(100))
    with pytest.raises(KeyboardInterrupt):
        train_loop(first, first.recipe, tmp_path / "parts", stopping=lambda: next(steps) == 30)
    train_loop(second, second.recipe, tmp_path / "parts", resume=True)
    for name, tensor in whole.tensors().items():
        assert torch.equal(tensor, second.tensors()[name]), name


@pytest.mark.parametrize(("taken", "goes_on"), [(30, True), (40, False)])
def test_distillation_goes_on_only_from_the_alignment_that_it_began_with(tmp_path, monkeypatch, taken, goes_on):
    from sensorium.training import listen_run

    run, resumed = object.__new__(listen_run.ListenRun), {}
    same, task = SimpleNamespace(seed=0, fingerprint="f"), SimpleNamespace(settle=lambda: None)
    run.plan = SimpleNamespace(align=same, distil=same, projector=SimpleNamespace(kind="stack"))
    run.llm, run.encoder_spec = SimpleNamespace(shape=same), same
    run.output, run.resume, run.options, run._align, run._distil = tmp_path, True, {}, lambda: task, lambda: task

    def loop(task, recipe, directory, *, resume, **_):
        resumed[directory.name] = resume
        return taken

    monkeypatch.setattr(listen_run, "train_loop", loop)
    monkeypatch.setattr(listen_run.checkpoint, "check", lambda directory, facts: 30)
    for stage in listen_run.STAGES:
        (tmp_path / stage).mkdir()
        (tmp_path / stage / listen_run.checkpoint.FILE).touch()
        run._stage(stage, [], lambda: False)
    assert resumed == {"align": True, "distil": goes_on}


def test_batches_share_their_positions_and_no_token_is_lost(task):
    _, test = task
    drawn = Drawn(test.frames, range(len(test)), 64)
    for step in range(50):
        rng = np.random.default_rng(step)
        batch = test.cut(drawn.step(rng), rng)
        assert all(-(-int(n) // 8) == batch.positions for n in batch.lengths)
        for i, length in zip(batch.numbers, batch.lengths):
            assert 0 <= test.frames[i] - length < 16
            assert needed(test.tokens[i]) <= batch.positions
    assert needed([5, 5, 6]) == 4
    fast = Heard(test._shards[:1], lambda text: encode(text) * 9)
    assert len(fast) + fast.left_out == 200
    assert fast.left_out > 100


# Distillation ---------------------------------------------------------------------------------------------------------


def test_who_hears_the_embeddings_of_the_words_themselves_has_nothing_to_learn(tmp_path):
    from sensorium.backbones.gguf import GGUF
    from sensorium.backbones.spec import spec_from_gguf
    from sensorium.backbones.tokenizer import Tokenizer
    from sensorium.training.backbone import load_llama
    from sensorium.training.listen_prompt import ListenPrompt, Reply
    from sensorium.training.objectives.distill import distill

    tiny.write_gguf(tmp_path / "llm.gguf", np.random.default_rng(0))
    with GGUF(tmp_path / "llm.gguf") as gguf:
        llm = load_llama(gguf, spec_from_gguf(gguf), None, torch.float32)
        tokenizer = Tokenizer.from_gguf(gguf)
    prompt = ListenPrompt(tokenizer)
    start, end = tokenizer.special("<|im_start|>"), tokenizer.special("<|im_end|>")
    assert prompt.before == (start, *tokenizer.encode("user\n"))
    assert prompt.between == (end, *tokenizer.encode("\n"), start, *tokenizer.encode("assistant\n"))
    said = [tokenizer.encode("a dog")[:4], tokenizer.encode("the cat")[:4]]
    assert [len(ids) for ids in said] == [4, 4]
    replies = [[Reply((5, 6)), Reply((7,), (8, 9))], [Reply((10,))]]
    rows, twin = prompt.rows(4, replies), prompt.twin(said, replies)
    embeds = llm.embed(torch.tensor(said))
    loss, weight = distill(llm, embeds, rows, twin)
    assert weight == 3 + 2 + 2  # every answer and its end
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-6)
    assert float(distill(llm, embeds.flip(0), rows, twin)[0].detach()) > 1e-4


# Voices and texts -----------------------------------------------------------------------------------------------------


def test_no_test_voice_is_ever_drawn_for_training():
    tested = {(voice.engine, voice.name) for voice in voices.TEST_VOICES}
    rng = np.random.default_rng(0)
    drawn = {(voice.engine, voice.name) for voice in (voices.draw(rng) for _ in range(4000))}
    assert len(drawn) > 150
    assert not drawn & tested
    assert "festival" not in {engine for engine, _ in drawn}
    heard = {name.partition("+")[2] for engine, name in drawn if engine == "espeak"}
    assert not heard & {name.partition("+")[2] for engine, name in tested if "+" in name}


def test_what_held_out_questions_are_about_is_asked_in_no_training_question():
    halves = {split: spoken_questions.questions(split, 3, all_families=True) for split in ("train", "dev")}
    assert len(spoken_questions.questions("dev")) >= 150
    assert {each.family for each in halves["train"]} == {each.family for each in halves["dev"]}
    for split, questions in halves.items():
        for each in questions:
            assert 2 <= len(set(each.choices)) == len(each.choices) <= spoken_questions.CHOICES
            assert each.answer in each.choices
        for family in spoken_questions.read():
            asked = " ".join(each.question for each in questions if each.family == family.name)
            for thing, _ in family.items:
                if spoken_questions.held_out(thing) == (split == "train") and family.name in ("capital", "past"):
                    assert f" {thing}" not in asked.replace("past", "")


def test_sound_keeps_its_pitch_when_its_rate_changes_and_its_length_in_a_room():
    rng = np.random.default_rng(0)
    for rate in (22_050, 24_000, 8_000, 16_000):
        tone = np.sin(2 * np.pi * 440 * np.arange(rate) / rate).astype(np.float32)
        sound = voices.resampled(tone, rate)
        assert len(sound) == pytest.approx(16_000, abs=2)
        assert np.argmax(np.abs(np.fft.rfft(sound[:16_000]))) * 16_000 / len(sound) == pytest.approx(440, abs=2)
    assert len(voices.roomed(sound, 0.4, 0.5, rng)) == len(sound)
    noise = voices.coloured(20_000, 1.0, rng)
    assert np.sqrt(np.mean(noise**2)) == pytest.approx(1, abs=1e-3)
    for seed in range(20):
        heard = voices.disturbed(sound, np.random.default_rng(seed))
        assert heard.dtype == np.float32
        assert np.abs(heard).max() <= 1
        assert np.isfinite(heard).all()
    assert len(quiet(sound)) == len(sound) + int(0.35 * 16_000)
    with pytest.raises(SensoriumError, match="said nothing"):
        voices.trimmed(np.zeros(100, np.float32))


def test_a_missing_synthesiser_is_a_sentence(monkeypatch):
    monkeypatch.setattr(voices.shutil, "which", lambda name: None)
    with pytest.raises(SensoriumError, match="voices of flite; apt-get install flite"):
        voices.Voice("flite", "slt").say("Hello.")


class FakeEncoder:
    """One frame of 20 ms, DIM wide, holding how loud it is."""

    class spec:
        fingerprint = "fake"

    def encode(self, sounds):
        blocks = [np.abs(sound[: len(sound) // 320 * 320]).reshape(-1, 320) for sound in sounds]
        return [np.repeat(block.mean(axis=1)[:, None], DIM, axis=1) for block in blocks]


def test_a_store_is_made_once_and_alike_and_grows(tmp_path, monkeypatch):
    from sensorium.training import listen_store
    from sensorium.training.data import spoken_sentences

    monkeypatch.setattr(listen_store, "SHARD", 6)
    monkeypatch.setattr(listen_store.hub, "cache_dir", lambda name: tmp_path / name)
    monkeypatch.setattr(spoken_sentences.spoken, "words", lambda: ["apple", "house", "tree"])
    monkeypatch.setattr(spoken_sentences.spoken, "nouns", lambda: ["apple", "house", "tree"])
    monkeypatch.setattr(spoken_sentences.spoken, "glosses", lambda: ['x; "the house has a tree"'])
    said: list[str] = []

    def say(voice: voices.Voice, text: str) -> np.ndarray:
        said.append(text)
        if len(said) == 2:
            raise SensoriumError("espeak-ng said nothing for it; leave the text out.")
        return np.sin(np.arange(400 * len(text)) / 20).astype(np.float32)

    monkeypatch.setattr(voices.Voice, "say", say)
    store = listen_store.ListenStore(FakeEncoder(), lambda text: [len(text)], 0, lambda line: None, "words")
    first, second = store.shard(0), store.shard(1)
    assert len(first.utterances) == 5  # what could not be said is left out
    assert len(second.utterances) == 6
    assert not any(spoken_questions.repeats_a_test(text) for text in said)
    assert sum(len(first.heard(each)) for each in first.utterances) == len(first.features)
    assert store.shard(0).utterances == first.utterances
    assert len(said) == 12  # nothing was said again
    second.path.unlink()
    again = store.shard(1)
    assert again.utterances == second.utterances
    np.testing.assert_array_equal(again.features, second.features)


def test_names_and_terms_come_from_their_entries(tmp_path, monkeypatch):
    from sensorium.training.data import spoken, spoken_sentences

    (tmp_path / "data.noun").write_text(
        "  1 This software and database is being provided to you\n"
        "08842819 15 n 02 Ottawa 0 Canadian_capital 0 002 @i 08691669 n 0000 #p 08820121 n 0000 | the capital of x; y\n"
        "09044862 15 n 01 Twenty_One_Long_Name 0 001 @i 08691669 n 0000 | too long\n"
        '05599617 08 n 02 jaw 0 lower_jaw(a) 1 001 @ 05585383 n 0000 | the bones of the skull; "a jaw"\n'
    )
    monkeypatch.setattr(spoken, "tree", lambda name: tmp_path)
    assert spoken.names() == ["Canadian capital", "Ottawa"]
    assert ("lower jaw", "the bones of the skull") in spoken.entries()
    monkeypatch.setattr(spoken, "glosses", lambda: ['x; "the house has a tree"'])
    texts = spoken_sentences.Sentences(lambda text: [len(text)])
    rng = np.random.default_rng(0)
    drawn = [texts.draw(rng, mixture="names") for _ in range(60)]
    assert {each.source for each in drawn} == {"named", "entries", "examples"}
    assert "A jaw is the bones of the skull." in {each.text for each in drawn}
    assert all("Ottawa" in each.text or "capital" in each.text for each in drawn if each.source == "named")


def test_a_text_is_answered_by_the_llm_by_what_is_right_and_by_itself():
    from sensorium.training.listen_answers import REPEAT, Answers
    from sensorium.training.listen_prompt import Reply

    def spell(text: str) -> list[int]:
        return [ord(letter) for letter in text]

    asked = spoken_questions.questions("train")[0]
    answers = Answers({asked.question: [1, 2], "A tree.": [3]}, spell, repeat=0.0)
    assert answers.of(asked.question) == [Reply((1, 2)), Reply(tuple(spell(asked.answer)))]
    assert answers.of("A tree.") == [Reply((3,))]
    assert answers.of("Not answered.") == [Reply(tuple(spell("Not answered.")), tuple(spell(REPEAT)))]
    for split in ("dev", "test"):
        assert spoken_questions.questions(split)[0].question not in answers.right


def test_the_answer_that_is_chosen_is_the_most_probable_one(tmp_path, task):
    from sensorium.backbones.gguf import GGUF
    from sensorium.backbones.spec import spec_from_gguf
    from sensorium.backbones.tokenizer import Tokenizer
    from sensorium.training.backbone import load_llama
    from sensorium.training.listen_measure import ListenTest, share
    from sensorium.training.listen_prompt import ListenPrompt, Reply
    from sensorium.training.objectives.cross_entropy import cross_entropy
    from sensorium.training.objectives.forward import hidden_states

    tiny.write_gguf(tmp_path / "llm.gguf", np.random.default_rng(0))
    with GGUF(tmp_path / "llm.gguf") as gguf:
        llm, tokenizer = load_llama(gguf, spec_from_gguf(gguf), None, torch.float32), Tokenizer.from_gguf(gguf)
    prompt = ListenPrompt(tokenizer)
    test = ListenTest(task[1], llm, prompt, tokenizer.encode)
    embeds = torch.randn(2, 3, llm.shape.dim)
    choices = [Reply((5, 6)), Reply((7,)), Reply((8, 9, 10))]
    found = test._answers(embeds, prompt.rows(3, [choices, choices[::-1]]))
    scores = []
    for row, replies in enumerate((choices, choices[::-1])):
        for reply in replies:
            rows = prompt.rows(3, [[reply]])
            at, position, target, _ = rows.targets()
            hidden = hidden_states(llm, embeds[row : row + 1], rows)[at, position]
            scores.append(-float(cross_entropy(llm, hidden, torch.from_numpy(target)).sum()))
    assert found == [int(np.argmax(scores[:3])), int(np.argmax(scores[3:]))]
    assert share([True, False, True, True])["n"] == 4


def test_words_that_are_far_leave_no_denormal_numbers():
    """Products with them are several times slower; a whole question is projected in their time."""
    torch.manual_seed(0)
    words = Words(torch.randn(50, 12), 12)
    words.keys.copy_(30 * torch.nn.functional.normalize(torch.randn(50, 12), dim=1))
    shares = words.shares(words.keys[:9] + 0.1)
    assert (shares.argmax(-1) == torch.arange(9)).all() and shares.amax(-1).min() > 0.999
    assert shares.min() > torch.finfo(torch.float32).tiny
    plain = torch.softmax(words.focus.exp() * words(words.keys[:9] + 0.1), dim=-1)
    assert plain.min() == 0 and torch.allclose(shares, plain, atol=1e-20)


# The recipe -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "line", "said"),
    [
        ("projector.options.words=9", "projector.options.words", "as many words as training says"),
        ("projector.options.keys=0", "projector", "option keys is 0; give a whole number from 1 to 65536"),
        ("projector.options.width=65537", "projector", "option width is 65537; give a whole number from 1 to 65536"),
        ("projector.options.pool=2", "projector", "has no option 'pool'; its options are stack, hidden, depth"),
        ("projector.options.depth=0", "align.sounds", "give projector.options.depth 1 or align.sounds 0"),
        ("data.shards.people=0", "data.shards.people", "give 1 or more"),
        ("data.shards.words=true", "data.shards.words", "give a whole number"),
        ("data.shards={}", "data.shards", "list 1 or more"),
        ("data.shards.radio=1", "data.shards.radio", "use 'broad', 'words', 'names' or 'people'"),
        ("distil.sounds=1", "distil.sounds", "the stage distil does nothing with it"),
        ("align.align=0.5", "align.align", "the stage align does nothing with it"),
    ],
)
def test_a_recipe_that_cannot_be_meant_so_is_refused(change, line, said):
    from pathlib import Path

    from sensorium.training.listen_run import read_recipe

    recipe = Path(__file__).parents[1] / "recipes" / "mini-listen.yaml"
    with pytest.raises(UsageError) as caught:
        read_recipe(recipe, [change])
    assert line in str(caught.value) and said in str(caught.value)


def test_the_resolved_recipe_of_a_run_is_a_recipe(tmp_path):
    from pathlib import Path

    from sensorium.training.listen_run import read_recipe

    plan = read_recipe(Path(__file__).parents[1] / "recipes" / "mini-listen.yaml")
    (tmp_path / "recipe.yaml").write_text(plan.dump())
    assert read_recipe(tmp_path / "recipe.yaml") == plan
