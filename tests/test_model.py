"""The composed model, on a tiny one with random weights: what reaches the engine, what comes back, what is cached."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sensorium
import tiny
from sensorium.answer import Answer, StopText
from sensorium.backbones.engine import Segment
from sensorium.errors import SensoriumError, UsageError
from sensorium.loading import Changes
from sensorium.messages import Message, parse_messages
from sensorium.tasks.classify import as_answer


def colour(r, g, b):
    return np.full((20, 30, 3), (r, g, b), np.uint8)


RED, BLUE = colour(220, 20, 20), colour(20, 20, 220)


@pytest.fixture(scope="module")
def directories(tmp_path_factory, home):
    base = tmp_path_factory.mktemp("models")
    return {"lora": tiny.write(base / "lora"), "plain": tiny.write(base / "plain", lora=False)}


@pytest.fixture(scope="module")
def model(directories):
    return sensorium.load(directories["lora"], progress=False)


@pytest.fixture(scope="module")
def plain(directories):
    return sensorium.load(directories["plain"], progress=False)


# Two engines: text alone runs the bare backbone
# ------------------------------------------------------------------------


def test_text_alone_is_the_bare_backbone_bit_for_bit(model, plain):
    question = [Message("user", "Which fruit is red?")]
    answer, bare = model.chat(question, max_tokens=16, logprobs=3), plain.chat(question, max_tokens=16, logprobs=3)
    assert answer == bare
    assert answer.logprobs == bare.logprobs
    prepared = model.prepare(question)
    assert (model.parts.bare.get().logits(prepared.segments) == plain.parts.bare.get().logits(prepared.segments)).all()


def test_the_lora_is_active_with_a_picture_and_only_then(model, plain):
    with_picture = [Message("user", [sensorium.load_image(RED), "What?"])]
    assert model.prepare(with_picture).engine is model.parts.media.get()
    assert model.prepare([Message("user", "What?")]).engine is model.parts.bare.get()
    changed, unchanged = model.score(with_picture, ["a", "b"]), plain.score(with_picture, ["a", "b"])
    assert np.abs(changed.logprobs - unchanged.logprobs).max() > 1e-3
    assert plain.parts.media is plain.parts.bare


def test_an_earlier_picture_keeps_the_lora_active(model):
    messages = [
        Message("user", [sensorium.load_image(RED), "What?"]),
        Message("assistant", "red"),
        Message("user", "Sure?"),
    ]
    assert model.prepare(messages).engine is model.parts.media.get()


# Pictures
# --------------------------------------------------------------------------------------------------------------


def test_the_picture_and_the_order_of_pictures_matter(model):
    def score(*pictures):
        return model.score([Message("user", [*map(sensorium.load_image, pictures), "Which?"])], ["a"]).logprobs[0]

    values = {score(RED), score(BLUE), score(RED, BLUE), score(BLUE, RED)}
    assert len(values) == 4


def test_segments_hold_the_projected_picture_where_the_layout_says(model):
    picture = sensorium.load_image(RED)
    prepared = model.prepare([Message("user", [picture, "What?"])])
    before, seen, after = prepared.segments
    assert seen.embeds.shape == (tiny.TOKENS, tiny.DIM)
    (position,) = prepared.rendered.media_positions()
    assert position == (len(before.ids), len(before.ids) + tiny.TOKENS)
    assert prepared.rendered.length == len(before.ids) + tiny.TOKENS + len(after.ids)
    features = model.parts.encoders["image"].get().encode([picture.pixels])
    np.testing.assert_array_equal(seen.embeds, model.parts.projectors["image"].get()(features)[0])


def test_the_same_picture_is_encoded_once_and_keeps_its_key(model, monkeypatch):
    encoder, calls = model.parts.encoders["image"].get(), []
    encode = encoder.encode
    monkeypatch.setattr(encoder, "encode", lambda images: calls.append(1) or encode(images))
    green = colour(1, 200, 3)
    keys = {model.prepare([Message("user", [sensorium.load_image(green), t])]).segments[1].key for t in ("a?", "b?")}
    assert len(calls) == 1 and len(keys) == 1 and "" not in keys
    other = model.prepare([Message("user", [sensorium.load_image(BLUE), "a?"])]).segments[1].key
    assert other not in keys


def test_a_second_question_about_a_picture_prefills_only_what_is_new(model):
    picture = sensorium.load_image(colour(9, 9, 200))
    first = model.ask("What is it?", image=picture, max_tokens=3)
    second = model.ask("Is it red?", image=picture, max_tokens=3)
    assert second.usage.cached_tokens >= first.usage.media_tokens
    assert second.usage.cached_tokens < second.usage.prompt_tokens


def test_remembered_pictures_are_bounded(model, monkeypatch):
    monkeypatch.setattr("sensorium.perception.REMEMBERED", 3)
    for i in range(6):
        model.perceive(sensorium.load_image(colour(i, i, i)))
    assert len(model._perception._known) == 3


def test_a_text_only_composition_refuses_pictures(tmp_path, home):
    bare = sensorium.load(tiny.write(tmp_path / "bare", lora=False, projector=False), progress=False)
    assert isinstance(bare.ask("Hi", max_tokens=2), Answer)
    with pytest.raises(UsageError, match="takes text only"):
        bare.ask("Hi", image=RED)


def test_embeddings_have_unit_length_and_differ(model):
    red, blue = model.embed(RED), model.embed(BLUE)
    assert red.shape == (tiny.FEATURES,) and red.dtype == np.float32
    assert np.linalg.norm(red) == pytest.approx(1, abs=1e-5)
    assert float(red @ blue) < 0.99


# Answers and streams
# ---------------------------------------------------------------------------------------------------


def test_an_answer_is_its_text_and_knows_how_it_came_about(model):
    answer = model.ask("What is it?", images=[RED, BLUE], max_tokens=5, logprobs=2)
    assert isinstance(answer, str) and str(answer) == answer.text == f"{answer}"
    assert type(answer.text) is str
    assert answer.model == "tiny"
    assert answer.usage.media_tokens == 2 * tiny.TOKENS
    assert answer.usage.prompt_tokens > answer.usage.media_tokens
    assert 1 <= answer.usage.completion_tokens <= 5
    assert len(answer.logprobs) == answer.usage.completion_tokens
    assert all(
        entry.logprob <= 0 and len(entry.top) == 2 and entry.top[0][1] >= entry.logprob for entry in answer.logprobs
    )
    assert answer.finish_reason in ("stop", "length")


def test_streamed_pieces_join_to_the_answer(model):
    stream = model.chat("Tell me", stream=True, max_tokens=40)
    pieces = list(stream)
    assert len(pieces) > 1 and all(pieces)
    whole = model.chat("Tell me", max_tokens=40)
    assert "".join(pieces) == stream.answer == whole
    assert stream.answer.usage.completion_tokens == whole.usage.completion_tokens


def test_greedy_is_repeatable_and_sampling_follows_its_seed(model):
    assert model.chat("Hi", max_tokens=8) == model.chat("Hi", max_tokens=8)
    hot = {"temperature": 2.0, "max_tokens": 12}
    assert model.chat("Hi", seed=4, **hot) == model.chat("Hi", seed=4, **hot)
    assert len({model.chat("Hi", seed=s, **hot) for s in range(4)}) > 1


def test_a_stop_string_ends_the_answer_and_is_no_part_of_it(model):
    whole = model.chat("Tell me", max_tokens=40)
    stop = whole[5:8]
    cut = model.chat("Tell me", max_tokens=40, stop=stop)
    assert cut == whole[: whole.index(stop)]
    assert cut.finish_reason == "stop"
    assert cut.usage.completion_tokens < whole.usage.completion_tokens


def test_cancelling_ends_the_answer(model):
    cancel = threading.Event()
    stream = model.chat("Tell me", stream=True, cancel=cancel, max_tokens=200)
    next(stream)
    cancel.set()
    assert stream.answer.finish_reason in ("cancelled", "stop")
    assert stream.answer.usage.completion_tokens < 10


def test_multi_turn_equals_laying_the_turns_out_by_hand(model):
    turns = [
        {"role": "user", "content": "the an in"},
        {"role": "assistant", "content": "an the"},
        {"role": "user", "content": "again"},
    ]
    tokenizer = model.parts.tokenizer.get()
    ids = model.prepare(parse_messages(turns)).segments[0].ids
    assert tokenizer.decode(ids).endswith("user\nthe an in\nassistant\nan the\nuser\nagain\nassistant\n")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": float("nan")}, "temperature"),
        ({"stop": ""}, "stop strings"),
        ({"stop": ["a", 3]}, "stop strings"),
        ({"stop": 3}, "stop strings"),
        ({"loudness": 3}, "the option 'loudness' is unknown; known options: max_tokens, temperature"),
    ],
)
def test_senseless_options_are_refused_before_anything_is_generated(model, options, reason):
    with pytest.raises(UsageError, match=reason):
        model.chat("Hi", stream=True, **options)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda m: m.chat(None), "the messages are None; give a text"),
        (lambda m: m.chat(b"hi"), "the messages are b'hi'"),
        (lambda m: m.chat(Message("user", "hi")), "single Message"),
        (lambda m: m.chat([Message("user", None)]), "content of a message is None"),
        (lambda m: m.chat([Message("user", [b"\x89PNG"])]), "sensorium.load_image"),
        (lambda m: m.ask(b"hi"), "the question is b'hi'; give it as a text"),
        (lambda m: m.ask(None), "there is no question"),
        (lambda m: m.describe(RED, loudness=3), "the option 'loudness' is unknown"),
        (
            lambda m: m.classify(RED, ["a", "b"], loudness=3),
            "unknown; known options: prompt, prior_weight, temperature",
        ),
        (lambda m: sensorium.load(None), "the model is None"),
        (lambda m: sensorium.load("mini", threads="2"), "threads is '2'; give a whole number"),
        (lambda m: sensorium.load("mini", threads=0), "threads is 0"),
    ],
)
def test_wrong_arguments_are_one_plain_sentence(model, call, reason):
    with pytest.raises(UsageError, match=reason) as caught:
        call(model)
    assert "__init__" not in str(caught.value) and str(caught.value).endswith(".")


def test_one_picture_may_stand_for_a_list_of_one(model, tmp_path):
    from PIL import Image

    path = tmp_path / "red.png"
    Image.fromarray(RED).save(path)
    for images in (str(path), path, path.read_bytes(), RED, Image.open(path), [path], sensorium.load_image(path)):
        assert model.ask("What?", images=images, max_tokens=1).usage.media_tokens == tiny.TOKENS
    for images in ([RED, path], np.stack([RED, BLUE]), (p for p in (RED, BLUE))):
        assert model.ask("What?", images=images, max_tokens=1).usage.media_tokens == 2 * tiny.TOKENS
    assert model.ask("What?", images=None, stop=None, max_tokens=1).usage.media_tokens == 0


def test_a_conversation_longer_than_the_context_is_refused(model):
    with pytest.raises(UsageError, match=str(tiny.CONTEXT)):
        model.chat("the " * tiny.CONTEXT)


def test_a_damaged_graph_in_the_cache_is_made_again(directories, model):
    whole = model.chat("Hi", max_tokens=4)
    for name in ("model.json", "model.onnx", "weights.bin"):
        fresh = sensorium.load(directories["lora"], progress=False)
        path = fresh.parts._graph(Changes()) / name
        path.unlink()  # `model` has mapped the old file
        path.write_bytes(b"damaged")
        assert fresh.chat("Hi", max_tokens=4) == whole


@pytest.mark.parametrize("name", ["weights.bin", "model.onnx"])
def test_a_flipped_byte_in_a_prepared_graph_is_noticed(directories, model, name):
    directory = model.parts._graph(Changes())
    good = (directory / name).read_bytes()
    place = len(good) // 2
    (directory / name).unlink()  # `model` has mapped the old file
    (directory / name).write_bytes(good[:place] + bytes([good[place] ^ 0x40]) + good[place + 1 :])
    fresh = sensorium.load(directories["lora"], progress=False)
    assert fresh.parts._graph(Changes()) == directory
    assert (directory / name).read_bytes() == good


def test_a_copied_graph_is_read_once_and_not_made_again(directories, model, monkeypatch):
    directory = model.parts._graph(Changes())
    for path in directory.iterdir():
        os.utime(path, (1, 1))
    made = directory.stat().st_ino
    assert model.parts._graph(Changes()) == directory and directory.stat().st_ino == made
    monkeypatch.setattr("sensorium.hub.obtain.sha256_of", None)  # it would be called
    assert model.parts._graph(Changes()) == directory and directory.stat().st_ino == made


def test_an_intact_graph_that_cannot_be_opened_is_left_alone(directories, model, monkeypatch):
    from sensorium.backbones import engine

    def fail(*args, **options):
        raise SensoriumError("no memory.")

    fresh = sensorium.load(directories["lora"], progress=False)
    directory = fresh.parts._graph(Changes())
    made = directory.stat().st_ino
    monkeypatch.setattr(engine, "Engine", fail)
    with pytest.raises(SensoriumError, match="no memory"):
        fresh.parts.bare.get()
    assert directory.stat().st_ino == made


def test_questions_must_not_be_empty(model):
    for text in ("", "  "):
        with pytest.raises(UsageError, match="empty"):
            model.ask(text)
    with pytest.raises(SensoriumError):
        model.ask("what?", image=b"no picture")


def test_parallel_questions_equal_sequential_ones(model):
    pictures = [colour(40 * i, 255 - 40 * i, 90) for i in range(6)]
    alone = [model.ask("What?", image=p, max_tokens=8) for p in pictures]
    model._perception.forget()
    together: dict[int, str] = {}
    threads = [
        threading.Thread(target=lambda i=i: together.update({i: model.ask("What?", image=pictures[i], max_tokens=8)}))
        for i in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[i] for i in range(6)] == alone


# Classification
# --------------------------------------------------------------------------------------------------------


def test_probabilities_sum_to_one_and_depend_on_the_picture(model):
    red, blue = model.classify(RED, ["apple", "the sea", "an"]), model.classify(BLUE, ["apple", "the sea", "an"])
    assert sum(p for _, p in red) == pytest.approx(1)
    assert [p for _, p in red] == sorted((p for _, p in red), reverse=True)
    assert dict(red) != dict(blue)


def test_scores_are_the_log_probabilities_of_whole_answers(model):
    question = [Message("user", [sensorium.load_image(RED), "What?"])]
    scores = model.score(question, ["the an", "in"])
    tokenizer, end = model.parts.tokenizer.get(), model.parts.tokenizer.get().special("<|im_end|>")
    ids = [*tokenizer.encode("the an"), end]
    prepared = model.prepare(question)
    logits = prepared.engine.logits([*prepared.segments, Segment(ids=tuple(ids))]).astype(np.float64)
    logits = logits[prepared.rendered.length - 1 : -1]
    expected = sum(row[i] - np.log(np.exp(row).sum()) for row, i in zip(logits, ids))
    assert scores.logprobs[0] == pytest.approx(expected, abs=1e-4)
    assert scores.tokens.tolist() == [len(ids), len(tokenizer.encode("in")) + 1]
    assert scores.mean[0] == pytest.approx(expected / len(ids), abs=1e-4)


def test_blind_scores_do_not_depend_on_the_picture_but_keep_the_lora(model, plain):
    def blind(composed, pixels):
        question = [Message("user", [sensorium.load_image(pixels), "What?"])]
        return composed.score(question, ["apple"], blind=True).logprobs[0]

    assert blind(model, RED) == blind(model, BLUE)
    assert blind(model, RED) != blind(plain, RED)


def test_the_blind_prior_is_subtracted(model):
    labels = ["the", "apple pie"]
    all_of_it, none_of_it = (dict(model.classify(RED, labels, prior_weight=w, temperature=1)) for w in (1, 0))
    question = [Message("user", [sensorium.load_image(RED), "What is in this picture?"])]
    gain = model.score(question, [as_answer(label) for label in labels], blind=True).mean
    shift = np.log(all_of_it["the"] / all_of_it["apple pie"]) - np.log(none_of_it["the"] / none_of_it["apple pie"])
    assert shift == pytest.approx(gain[1] - gain[0], abs=1e-6)


@pytest.mark.parametrize(
    ("label", "answer"),
    [
        ("cat", "A cat."),
        ("old boat", "An old boat."),
        ("a red apple", "A red apple."),
        ("scissors", "Scissors."),
        ("glass", "A glass."),
        ("Paris", "Paris."),
        ("Eiffel Tower", "Eiffel Tower."),
        ("iPhone", "iPhone."),
        ("NASA", "NASA."),
        ("yes!", "Yes!"),
        ("bus", "A bus."),
        ("lens", "A lens."),
        ("Cat", "A cat."),
        ("Cats", "Cats."),
        ("Scissors", "Scissors."),
        ("TV", "TV."),
        ("Saturn", "Saturn."),
        ("Canada", "Canada."),
        ("green grass", "Green grass."),
        ("grass snake", "A grass snake."),
        ("people", "People."),
        ("cup of tea", "A cup of tea."),
        ("cups of tea", "Cups of tea."),
        ("man on a horse", "A man on a horse."),
        ("two dogs", "Two dogs."),
        ("in the kitchen", "In the kitchen."),
        ("my dog", "My dog."),
        ("...", "A ..."),
    ],
)
def test_labels_are_scored_as_the_model_would_say_them(label, answer):
    assert as_answer(label) == answer


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ([], "0 labels were given"),
        (["one"], "1 label was given"),
        (["a", "a"], "'a' was given twice"),
        (["a", " a "], "'a' was given twice"),
        (["a", ""], "a label is empty"),
        (["Cat", "dog", "cat"], "'Cat' and 'cat' differ in case"),
        (["red  apple", "red apple"], "differ in case or spaces"),
        ("cat", "the labels are 'cat'; give a list"),
        (None, "the labels are None; give a list"),
        (3, "the labels are 3; give a list"),
        (["cat", 3], "a label is 3; give every label as a text"),
        (["cat", "do\x1bg"], "control characters"),
        (["cat", "do\ng"], "line breaks"),
        (["cat", "do\udcffg"], "not valid Unicode"),
        (["cat", "d" * 201], "has 201 characters; use at most 200"),
    ],
)
def test_senseless_labels_are_refused(model, labels, reason):
    with pytest.raises(UsageError, match=reason):
        model.classify(RED, labels)


# Stop strings
# ----------------------------------------------------------------------------------------------------------


@given(st.text("ab", max_size=12), st.lists(st.text("ab", min_size=1, max_size=3), max_size=3), st.data())
def test_stopping_does_not_depend_on_how_the_text_is_cut(text, stops, data):
    def feed(pieces):
        stopper, shown = StopText(stops), ""
        for piece in pieces:
            shown += stopper.push(piece)
            assert text.startswith(shown)
        return shown + ("" if stopper.stopped else stopper.flush()), stopper.stopped

    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=4)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)])]
    assert feed(pieces) == feed(list(text)) == feed([text])
    shown, stopped = feed(pieces)
    assert stopped == any(stop in text for stop in stops)
    assert not any(stop in shown for stop in stops)


def test_a_possible_beginning_of_a_stop_string_is_held_back():
    stopper = StopText(["END"])
    assert [stopper.push(piece) for piece in ("xE", "N", "x", "EN", "D")] == ["x", "", "ENx", "", ""]
    assert stopper.stopped


def test_public_names_resolve_lazily():
    for name in sensorium.__all__:
        assert getattr(sensorium, name) is not None
    with pytest.raises(AttributeError):
        sensorium.nothing  # noqa: B018


def test_packages_that_threads_load_from_are_imported_before():
    """Two threads of which one imports a package and the other a module of it may lock each other out."""
    code = "import sys, sensorium.loading; print('sensorium.encoders.base' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True"]
