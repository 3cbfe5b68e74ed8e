"""What a recipe lacks is said before anything is fetched."""

from __future__ import annotations

import pytest

import tiny
import tiny_clip
import tiny_training
from sensorium import hub

torch = pytest.importorskip("torch")


@pytest.fixture(autouse=True)
def nothing_is_fetched(monkeypatch):
    monkeypatch.setattr(hub, "fetch", lambda *_, **__: pytest.fail("a part was fetched"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.parametrize(
    ("change", "code", "reason"),
    [
        ({"train__device": "cuda"}, 1, "train.device is cuda, and this machine has no GPU"),
        ({"data": {"sets": [{"path": "gone.jsonl"}]}}, 2, "gone.jsonl does not exist"),
        ({"data__catalogue": "gone.jsonl"}, 1, "The catalogue gone.jsonl does not exist"),
        ({"install": "out"}, 2, "install is out and the output is out"),
        ({"stages": [{"name": "a"}, {"name": "b", "train": {"device": "cuda"}}]}, 1, "train.device is cuda"),
    ],
)
def test_what_a_recipe_lacks(sensorium, tmp_path, monkeypatch, change, code, reason):
    monkeypatch.chdir(tmp_path)
    catalogue = tiny_training.write_catalogue(tmp_path / "pictures")
    plan = tiny_training.recipe(tiny.write(tmp_path / "model"), catalogue, "out", **change)
    said = sensorium("train", tiny_training.write_recipe(tmp_path / "recipe.yaml", plan))
    assert said[0] == code and reason in said[2] and said[2].count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ({"pairs": "gone"}, "gone is neither a folder nor a JSONL file; correct data.pairs"),
        ({"scenes": 3, "catalogue": "gone.jsonl"}, "The catalogue gone.jsonl does not exist"),
    ],
)
def test_what_a_clip_recipe_lacks(sensorium, tmp_path, monkeypatch, data, reason):
    monkeypatch.chdir(tmp_path)
    base = tiny_clip.write(tmp_path / "base", heads=False)
    plan = {"kind": "clip", "name": "c", "composition": str(base), "output": "out", "data": data, "train": {"steps": 1}}
    said = sensorium("train", tiny_training.write_recipe(tmp_path / "recipe.yaml", plan))
    assert said[0] in (1, 2) and reason in said[2] and said[2].count("\n") == 1
    assert not (tmp_path / "out").exists()
