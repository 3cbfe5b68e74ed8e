"""Directions of words learnt from scenes, and the projector that starts from them."""

from __future__ import annotations

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from sensorium.projectors.concept import ConceptProjector  # noqa: E402
from sensorium.training.scene_store import SHARD, SceneStore  # noqa: E402
from sensorium.training.word_directions import (  # noqa: E402
    LEAST,
    NOTHING,
    covered,
    fit_words,
    gather,
    word_directions,
)

GRID, DIM = (4, 4), 32
NAMES = ("cat", "dog", "kite")


def thing(name, x=0.5, y=0.5, w=0.9, h=0.9):
    return {"name": name, "also": ["animal"] if name != "kite" else [], "x": x, "y": y, "w": w, "h": h}


def store(directory, scenes=120):
    """Scenes of one thing, which lights up channels of its own where it stands; a rare word stands in two."""
    rng = np.random.default_rng(0)
    own = {name: rng.random(DIM) < 0.25 for name in (*NAMES, "gnu")}
    features, labels = [], []
    for i in range(scenes):
        name = "gnu" if i in (3, 50) else NAMES[i % 3]
        o = thing(name, x=0.25 if i % 2 else 0.75, w=0.45)
        cells = rng.random((16, DIM)).astype(np.float32)
        cells[covered([o], GRID) == 0] += 2.0 * own[name]
        features.append(cells)
        labels.append({"kind": "single", "objects": [o]})
    np.save(directory / f"00000-{scenes}.npy", np.stack(features).astype(np.float16))
    (directory / f"00000-{scenes}.json").write_text(json.dumps(labels))
    return SceneStore(directory, scenes), own


def test_cells_belong_to_what_covers_them():
    assert covered([], GRID).tolist() == [NOTHING] * 16
    left = covered([thing("cat", x=0.25, w=0.4, h=2.0)], GRID).reshape(GRID)
    assert (left[:, :2] == 0).any() and (left[:, 3] == NOTHING).all()
    assert (covered([thing("cat"), thing("dog")], GRID) == 1).sum() == (covered([thing("dog")], GRID) == 0).sum()
    tiny = covered([thing("cat", x=0.99, y=0.99, w=0.01, h=0.01)], GRID)
    assert tiny[15] == 0 and (tiny == 0).sum() == 1


def test_rare_words_get_no_direction(tmp_path):
    scenes, _ = store(tmp_path)
    cells, classes, words = gather(scenes, GRID, seed=0)
    assert [name for name, _ in words] == sorted(NAMES) and LEAST > 2
    assert dict(words)["cat"] == ("animal",)
    assert len(cells) == len(classes) and set(classes) == {0, 1, 2, 3}


def test_learnt_directions_find_things_in_new_scenes(tmp_path):
    scenes, own = store(tmp_path)
    found = fit_words(scenes, GRID, epochs=60)
    rng = np.random.default_rng(9)
    for k, (name, _) in enumerate(found.words):
        fresh = rng.random((50, DIM)) + 2.0 * own[name]
        assert ((fresh @ found.weight.T + found.bias).argmax(1) == k).mean() > 0.9
    empty = rng.random((50, DIM))
    assert ((empty @ found.weight.T + found.bias).argmax(1) == len(found.words)).mean() > 0.9


def test_a_fit_is_kept_beside_the_store(tmp_path):
    scenes, _ = store(tmp_path)
    first = word_directions(scenes, GRID)
    (tmp_path / "00000-120.npy").rename(tmp_path / "gone.npy")  # a second fit would fail
    second = word_directions(scenes, GRID)
    assert first.words == second.words
    np.testing.assert_array_equal(first.weight, second.weight)
    assert SHARD > 120


def test_nothing_in_particular_says_nothing():
    torch.manual_seed(0)
    values = np.random.default_rng(0).normal(size=(7, 8)).astype(np.float32)
    values[-1] = 0
    directions = (np.zeros((7, DIM), np.float32), np.array([0, 0, 0, 0, 0, 0, 50.0], np.float32))
    projector = ConceptProjector(DIM, 8, GRID, hidden=4, directions=directions, words=values, learnt=3)
    plain = ConceptProjector(DIM, 8, GRID, hidden=4, directions=tuple(d[:4] for d in directions), words=values[:4])
    plain.load_state_dict({**projector.state_dict(), **{k: v for k, v in plain.state_dict().items() if k in (
        "keys.weight", "keys.bias", "values", "log_temperature", "gain")}})  # fmt: skip
    features = torch.rand(2, 16, DIM)
    torch.testing.assert_close(projector(features), plain(features))
