"""What recipes of all kinds have in common: the kind itself, where the run writes, where its composition goes."""

from __future__ import annotations

from pathlib import Path

import pytest

from sensorium import hub
from sensorium.training.kinds import RUNS, kind_of

RECIPES = Path(__file__).parents[1] / "recipes"
SHIPPED = {"": "mini-image", "clip": "mini-clip", "listen": "mini-listen", "speak": "mini-speak"}


def shipped(kind):
    return RECIPES / f"{SHIPPED[kind]}.yaml"


def test_each_kind_has_a_recipe_and_a_run():
    assert set(SHIPPED) == set(RUNS)
    for kind in SHIPPED:
        assert kind_of(shipped(kind)) == kind
        assert kind_of(shipped(kind), ["kind=clip"]) == "clip"
    assert kind_of(RECIPES / "gone.yaml") == ""


@pytest.mark.parametrize(
    ("kind", "given"), [*((kind, "sing") for kind in SHIPPED), ("speak", "''"), ("", "[]"), ("clip", "null")]
)
def test_a_kind_that_there_is_not_is_told_all_that_there_are(sensorium, tmp_path, kind, given):
    code, out, err = sensorium("train", shipped(kind), "--set", f"kind={given}")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "--set" in err and "use clip, listen or speak, or leave the key out" in err
    (tmp_path / "r.yaml").write_text(f"name: x\nkind: {given}\n")
    code, out, err = sensorium("train", tmp_path / "r.yaml")
    assert code == 2 and "r.yaml, line 2: kind is" in err and "use clip, listen or speak" in err


@pytest.mark.parametrize("kind", SHIPPED)
def test_an_output_that_is_a_file_is_bad_usage_before_anything_loads(sensorium, kind, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr(hub, "fetch", lambda *_, **__: pytest.fail("a part was fetched"))
    code, out, err = sensorium("train", shipped(kind), "--set", "output=/dev/null")
    assert (code, out, err.count("\n")) == (2, "", 1) and "The output /dev/null is no directory" in err


@pytest.mark.parametrize("kind", ["listen", "speak"])
def test_features_are_of_pictures(sensorium, kind):
    pytest.importorskip("torch")
    code, out, err = sensorium("features", shipped(kind))
    assert (code, out, err.count("\n")) == (2, "", 1) and f"is of kind {kind}" in err
