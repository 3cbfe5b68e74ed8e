"""What a recipe lacks is said before anything is fetched."""

from __future__ import annotations

import json
from pathlib import Path

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
        ({"data__catalogue": "gone.jsonl"}, 2, "The catalogue gone.jsonl does not exist"),
        ({"data__catalogue": "gone.jsonl"}, 2, "correct data.catalogue (recipe.yaml, line 13)."),
        ({"data": {"sets": [{"path": "some.jsonl"}, {"path": "gone.jsonl"}]}}, 2, "(recipe.yaml, line 15)."),
        (
            {"data": {"sets": [{"path": "some.jsonl", "media": "/nope"}]}},
            2,
            "data.sets.0.media is '/nope', which is no",
        ),
        ({"data": {"sets": [{"path": "some.jsonl", "kind": "webdataset"}]}}, 1, "(recipe.yaml, line 14)."),
        ({"data": {"sets": [{"path": "odd.jsonl"}]}}, 1, "odd.jsonl holds no sample in its first records: "),
        ({"data": {"sets": [{"path": "empty.jsonl"}]}}, 1, "empty.jsonl is empty, so it is no data set"),
        ({"install": "/proc/x"}, 1, "install cannot write into /proc ("),
        ({"install": "out"}, 2, "install is out and the output is out"),
        ({"stages": [{"name": "a"}, {"name": "b", "train": {"device": "cuda"}}]}, 1, "train.device is cuda"),
    ],
)
def test_what_a_recipe_lacks(sensorium, tmp_path, monkeypatch, change, code, reason):
    monkeypatch.chdir(tmp_path)
    catalogue = tiny_training.write_catalogue(tmp_path / "pictures")
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    (tmp_path / "some.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    (tmp_path / "odd.jsonl").write_text('{"a": 1}\n' * 30)
    (tmp_path / "empty.jsonl").write_text("\n")
    plan = tiny_training.recipe(tiny.write(tmp_path / "model"), catalogue, "out", **change)
    said = sensorium("train", tiny_training.write_recipe(Path("recipe.yaml"), plan))
    assert said[0] == code and reason in said[2] and said[2].count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_value_of_the_command_line_is_blamed_there(sensorium, tmp_path):
    plan = tiny_training.recipe(tiny.write(tmp_path / "model"), tmp_path / "pictures", "out", stages=[{"name": "a"}])
    path = tiny_training.write_recipe(tmp_path / "recipe.yaml", plan)
    for changes, said in (
        ((), f"({path}, line 13)."),  # the stage has it from the whole recipe
        (("data.catalogue=gone",), "(--set 'data.catalogue=gone')."),
        (("stages.a.data.catalogue=gone", "train.steps=3"), "(--set 'stages.a.data.catalogue=gone')."),
    ):
        code, _, err = sensorium("train", path, *(word for change in changes for word in ("--set", change)))
        assert code == 2 and said in err, err


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
