"""The feature store and the stream over it: what a step sees follows from the recipe alone."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

import tiny
import tiny_training
from sensorium.backbones.gguf import GGUF
from sensorium.backbones.tokenizer import Tokenizer
from sensorium.encoders import create
from sensorium.errors import SensoriumError
from sensorium.training.class_features import ClassFeatures
from sensorium.training.data.scenes import load_items
from sensorium.training.data.stream import WORN_OR_HELD, SampleStream, class_names
from sensorium.training.scene_store import SceneStore, StorePlan, build

SHARD, GRID, DIM = 6, 4, 12


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    directory = tmp_path_factory.mktemp("material")
    catalogue = tiny_training.write_catalogue(directory)
    weights = directory / "patches.npy"
    np.save(weights, np.random.default_rng(0).normal(size=(2 * 2 * 3, DIM)).astype(np.float32))
    tiny.write_gguf(directory / "llm.gguf", np.random.default_rng(0))
    return directory, catalogue, weights


@pytest.fixture
def plan(material, tmp_path, monkeypatch):
    monkeypatch.setenv("SENSORIUM_HOME", str(tmp_path / "home"))
    _, catalogue, weights = material
    fingerprint = create("linear-patches", weights, grid=GRID).spec.fingerprint
    return StorePlan(catalogue, 10, 3, {}, "linear-patches", weights, {"grid": GRID}, fingerprint, SHARD)


def contents(plan):
    store = SceneStore(plan.directory(), plan.scenes, plan.shard)
    return [
        (np.asarray(features).tobytes(), json.dumps(labels))
        for features, labels in map(store.__getitem__, range(len(store)))
    ]


def test_a_store_holds_what_the_encoder_sees_of_the_scenes(plan):
    from sensorium.training.data.scenes import Pool, compose

    reports = []
    directory = build(plan, workers=1, report=lambda done, total: reports.append((done, total)))
    store = SceneStore(directory, plan.scenes, SHARD)
    assert len(store) == 10 and reports == [(0, 10), (6, 10), (10, 10)]
    pool, encoder = Pool(load_items(plan.catalogue)), create("linear-patches", plan.encoder_weights, grid=GRID)
    for index in (0, 7):
        scene = compose(pool, (3 << 32) + index)
        features, labels = store[index]
        np.testing.assert_allclose(features, encoder.encode([scene.pixels])[0], rtol=1e-3, atol=1e-3)
        assert labels == json.loads(json.dumps(scene.labels()))
    with pytest.raises(IndexError):
        store[10]
    cells = store.cells(30)
    assert cells.shape[1] == DIM and 10 <= len(cells) <= 60


def test_a_store_grows_and_shrinks_without_changing(plan):
    """Ten scenes, then twenty, then eight: the same scenes at the same places, however the shards were cut."""
    build(plan, workers=1)
    ten = contents(plan)
    larger = replace(plan, scenes=20)
    assert larger.directory() == plan.directory()
    build(larger, workers=1)
    twenty = contents(larger)
    assert len(twenty) == 20 and twenty[:10] == ten == contents(plan)
    smaller = replace(plan, scenes=8)
    done = []
    build(smaller, workers=1, report=lambda d, _: done.append(d))
    assert done == [8] and contents(smaller) == ten[:8]


@pytest.mark.timeout(900)
def test_processes_build_the_same_store(plan, monkeypatch, tmp_path):
    build(plan, workers=1)
    one = contents(plan)
    monkeypatch.setenv("SENSORIUM_HOME", str(tmp_path / "other"))
    build(plan, workers=2)
    assert contents(plan) == one


def test_what_determines_the_features_determines_the_directory(plan, tmp_path):
    other = tmp_path / "catalogue.jsonl"
    other.write_bytes(plan.catalogue.read_bytes() + b"\n")
    changes = [{"seed": 4}, {"mix": {"single": 1.0}}, {"fingerprint": "0" * 64}, {"catalogue": other}, {"shard": 5}]
    assert len({plan.directory(), *(replace(plan, **change).directory() for change in changes)}) == 6
    assert replace(plan, scenes=99).directory() == plan.directory()


def test_an_interrupted_build_goes_on(plan):
    directory = build(plan, workers=1)
    before = contents(plan)
    (directory / "00001-4.npy").unlink()  # what a kill between the two files of a shard leaves behind
    with pytest.raises(SensoriumError, match=r"00001-4\.npy cannot be read.*delete the file and run again"):
        SceneStore(directory, 10, SHARD)
    build(plan, workers=1)
    assert contents(plan) == before
    assert not [path for path in directory.iterdir() if path.suffix == ".tmp"]


@pytest.mark.parametrize("damage", [b"", b"noise" * 100, b"\x93NUMPY\x01\x00"])
def test_a_damaged_shard_is_one_sentence(plan, damage):
    directory = build(plan, workers=1)
    (directory / "00000.npy").write_bytes(damage)
    with pytest.raises(SensoriumError, match=r"00000\.npy cannot be read") as caught:
        SceneStore(directory, 10, SHARD)
    assert "\n" not in str(caught.value)


# The stream -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def stream(plan, material):
    build(replace(plan, scenes=18), workers=1)
    store = SceneStore(plan.directory(), 18, SHARD)
    items = load_items(plan.catalogue)
    with GGUF(material[0] / "llm.gguf") as gguf:
        tokenizer = Tokenizer.from_gguf(gguf)
    weight = np.random.default_rng(1).normal(size=(1000, DIM)).astype(np.float32)

    def make(rows=4, rank=0, share=0.0, **options):
        classes = ClassFeatures(weight, store.cells(100)) if share else None
        settings = {"rows": rows, "row_tokens": 400, "class_share": share, "seed": 5, "rank": rank, **options}
        return SampleStream(store, items, classes, (GRID, GRID), tokenizer, 4, **settings)

    make.tokenizer = tokenizer
    return make


def same(one, two):
    return np.array_equal(one[0], two[0]) and all(
        np.array_equal(getattr(one[1], name), getattr(two[1], name)) for name in ("ids", "labels", "branch", "weights")
    )


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_step_is_the_same_for_any_number_of_processes(stream, share):
    features, rows, _ = stream(4, share=share).batch(7)
    for rank in (0, 1):
        part, part_rows, _ = stream(2, rank, share=share).batch(7)
        assert np.array_equal(part, features[2 * rank : 2 * rank + 2])
        assert np.array_equal(part_rows.ids, rows.ids[2 * rank : 2 * rank + 2])
        assert np.array_equal(part_rows.weights, rows.weights[2 * rank : 2 * rank + 2])


def test_steps_differ_and_resuming_gives_the_same_ones(stream):
    whole = list(stream(share=0.3).batches(0, 5))
    resumed = list(stream(share=0.3).batches(3, 5))
    assert all(same(a, b) for a, b in zip(whole[3:], resumed)) and len(resumed) == 2
    assert not same(whole[0], whole[1])


def test_every_row_has_an_answer_to_learn(stream):
    for step in range(6):
        features, rows, _ = stream(share=0.3).batch(step)
        assert features.shape == (4, GRID * GRID, DIM) and features.dtype == np.float32
        assert ((rows.labels >= 0).sum(axis=1) > 0).all()


def test_yes_and_no_weigh_more(stream):
    _, rows, _ = stream(yesno_focus=3.0, questions={"yesno": 1.0}).batch(0)
    row, _, target, weight = rows.targets()
    words = {tokens[0] for tokens in map(stream.tokenizer.encode, ("Yes.", "No."))}
    first = [t for t, w in zip(target, weight) if w == 3.0]
    assert first and set(first) <= words
    assert len(first) == sum(len(set(rows.branch[r]) - {-1, 0}) for r in set(row))


def test_errors_of_the_drawing_thread_reach_the_loop(stream):
    with pytest.raises(SensoriumError, match=r"raise train\.row_tokens"):
        list(stream(row_tokens=32).batches(0, 3))
    mute = stream()
    mute.asker.ask = lambda *_: []
    with pytest.raises(SensoriumError, match="1000 scenes in a row allow none"):
        list(mute.batches(0, 1))


def test_leaving_early_ends_the_thread(stream):
    import threading

    before = threading.active_count()
    for _ in stream().batches(0, 1000):
        break
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not isinstance(thread, threading._DummyThread):
            thread.join(5)
    assert threading.active_count() <= before


def test_every_class_of_the_encoder_has_a_name_people_say():
    names = class_names()
    assert len(names) == 1000 and all(name and name == name.strip() for name, _ in names)
    assert set(dict(names)) >= WORN_OR_HELD  # a word that names no class would do nothing
    assert all("person" in also for name, also in names if name in WORN_OR_HELD)


def test_text_twins_ask_the_same_behind_words(stream):
    _, rows, twin = stream(twins=True).batch(3)
    _, plain, none = stream().batch(3)
    assert none is None
    np.testing.assert_array_equal(rows.ids, plain.ids)
    one, two = rows.targets(), twin.targets()
    np.testing.assert_array_equal(one[2], two[2])
    np.testing.assert_array_equal(one[0], two[0])
    assert twin.media == (0, 0)
