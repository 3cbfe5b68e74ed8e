"""The two-tower suite on planted models: hits, chance, which pictures are taken, the whole card."""

from __future__ import annotations

import json

import numpy as np
import pytest

import tiny_clip
import tiny_training
from sensorium.cli import run
from sensorium.errors import SensoriumError
from sensorium.evaluation.suites import clip
from sensorium.two_tower import TwoTower


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("SENSORIUM_HOME", str(tmp_path_factory.getbasetemp() / "eval-clip-home"))


@pytest.fixture
def catalogue(tmp_path):
    """A catalogue whose test half is every other noun, and a second style of one noun that training shows."""
    path = tiny_training.write_catalogue(tmp_path / "pictures")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    names = [name for name, _, _ in tiny_training.CUTOUTS]
    for row in rows:
        row["split"] = "test" if row["name"] in names[::2] and row["kind"] != "background" else "train"
    rows.append({**rows[0], "name": "banana", "also": [], "split": "test", "style": "emoji-3d"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_hit_counts_ties_against_itself():
    scores = np.array([[0.9, 0.1, 0.2], [0.5, 0.5, 0.1], [0.3, 0.2, 0.1]])
    np.testing.assert_array_equal(clip.hits(scores, 1), [True, False, False])
    np.testing.assert_array_equal(clip.hits(scores, 2), [True, True, False])
    np.testing.assert_array_equal(clip.hits(scores, 3), [True, True, True])
    assert not clip.hits(np.zeros((5, 5)), 4).any()


def test_pictures_are_of_the_test_half_one_a_noun_unseen_nouns_first(catalogue):
    material = clip.retrieval(catalogue, 100)
    assert len(material.texts) == len(set(material.texts)) == len(material.images)
    assert "a picture of a red banana" in material.texts
    assert material.new.tolist() == sorted(material.new.tolist(), reverse=True) and not material.new.all()
    assert material.images[0].shape == (clip.SIDE, clip.SIDE, 3) and (material.images[0][0, 0] == 255).all()
    again, fewer = clip.retrieval(catalogue, 100), clip.retrieval(catalogue, 3)
    assert clip.digest(material) == clip.digest(again) != clip.digest(fewer)
    with pytest.raises(SensoriumError, match="test half"):
        clip.retrieval(tiny_training.write_catalogue(catalogue.parent / "train-only"), 10)


def test_chance_counts_draws_without_replacement():
    right = np.array([[1, 0, 0, 0], [1, 1, 0, 0]], bool)
    assert clip.chance(right, 1) == pytest.approx((1 / 4 + 1 / 2) / 2)
    assert clip.chance(right, 2) == pytest.approx((1 / 2 + 5 / 6) / 2)
    assert clip.chance(right, 9) == 1.0


class Planted:
    """A model whose vectors of a picture and its text are the same, or have nothing to do with each other."""

    def __init__(self, right: bool) -> None:
        self.right, self.seen = right, 0
        self.image_encoder = self.text_encoder = self

    def get(self):
        return self

    def encode(self, images):
        self.seen += 1
        return np.full((1, 2, 3), self.seen, np.float32)

    def encode_text(self, texts):
        return np.arange(1, len(texts) + 1, dtype=np.float32)[:, None] * np.ones((1, 3), np.float32)

    def project_images(self, features):
        return np.eye(50, dtype=np.float32)[features[:, 0, 0].astype(int)]

    def project_texts(self, vectors):
        at = vectors[:, 0].astype(int)
        return np.eye(50, dtype=np.float32)[at if self.right else (at + 1) % len(at) + 1]


@pytest.mark.parametrize(("right", "value"), [(True, 1.0), (False, 0.0)])
def test_the_rows_of_planted_models(right, value):
    material = clip.Retrieval(
        [np.zeros((4, 4, 3), np.uint8)] * 20, ["a"] * 20, np.arange(20) < 10, ["nothing known"] * 20
    )
    rows = clip.retrieval_rows(Planted(right), material)
    assert [row.name for row in rows[:4]] == [
        "picture to text, R@1 of 20", "picture to text, R@5 of 20",
        "text to picture, R@1 of 20", "text to picture, R@5 of 20",
    ]  # fmt: skip
    assert len(rows) == 12 and rows[4].name.endswith("of 10")
    assert [row.chance for row in rows] == [0.05, 0.25, 0.05, 0.25, *[0.1, 0.5] * 4]
    assert {row.scores["model"].value for row in rows if "R@1" in row.name} == {value}
    assert all(set(row.scores) == {"model", "random heads"} for row in rows)
    assert rows[0].scores["model"].low > 0.8 or not right


def test_the_command(catalogue, tmp_path, monkeypatch, capsys):
    from sensorium.evaluation import photos
    from sensorium.evaluation import run as evaluation

    directory = tiny_clip.write(tmp_path / "model")
    monkeypatch.setattr(photos, "fetch_photos", lambda wanted, missing=None: {})
    monkeypatch.chdir(tmp_path)
    result = evaluation.evaluate(["clip"], model=directory, catalogue=catalogue, limit=12)
    card = result["suites"]["clip"]
    assert card["rows"] and all("random_heads" in row and row["ci95"] for row in card["rows"])
    assert (tmp_path / "results" / "clip.json").is_file() and "random heads" in (
        tmp_path / "results/clip.md"
    ).read_text()
    assert run(["eval", "clip", "--no-scenes", "--model", str(directory)]) == 1  # no photographs either
    assert "No picture" in capsys.readouterr().err


def test_the_temperature_makes_true_labels_probable(tmp_path, monkeypatch):
    from sensorium.evaluation import photos

    model = TwoTower(tiny_clip.write(tmp_path / "model"))
    files = {p.stem: p for p in tiny_clip.pictures(tmp_path / "pictures").glob("*.png")}
    made = [photos.Photo(name, "", "", "", "dev", "", (name,), (), (), (name,), ()) for name in files]
    monkeypatch.setattr(photos, "photos", lambda split: made)
    monkeypatch.setattr(photos, "fetch_photos", lambda wanted, missing=None: files)
    found = clip.fit_temperature(model)
    assert 0.005 <= found <= 0.5
    rows = clip.photo_rows(model, "dev", 0, [])
    assert [row.name for row in rows] == ["main thing, top 1 of 3", "main thing, top 5 of 3"]
    assert rows[1].scores["model"].value == 1.0 and rows[0].chance == pytest.approx(1 / 3)
