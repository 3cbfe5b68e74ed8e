"""What recipes of all kinds have in common: the kind itself, where the run writes, where its composition goes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import tiny
from sensorium import hub
from sensorium.composition import Composition
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


@pytest.mark.parametrize("kind", SHIPPED)
def test_a_composition_that_is_none_leaves_no_output_behind(sensorium, kind, tmp_path):
    pytest.importorskip("torch")
    bad = tiny.write(tmp_path / "bad")
    (bad / "composition.yaml").write_text("name: bad\nbackbone: 3\n")
    for given in ("no-such-model", bad):
        changes = ("--set", f"composition={given}", "--set", f"output={tmp_path / 'out'}")
        code, out, err = sensorium("train", shipped(kind), *changes)
        assert (code, out, err.count("\n")) == (2, "", 1) and str(given) in err
        assert not (tmp_path / "out").exists()


def test_who_listens_needs_a_backbone_that_it_can_read(sensorium, tmp_path):
    pytest.importorskip("torch")
    model = tiny.write(tmp_path / "model")
    text = (model / "composition.yaml").read_text()
    (model / "composition.yaml").write_text(text.replace("format: gguf", "format: hf"))
    changes = ("--set", f"composition={model}", "--set", f"output={tmp_path / 'out'}")
    code, _, err = sensorium("train", shipped("listen"), *changes)
    assert code == 2 and "has no backbone in a GGUF file" in err and not (tmp_path / "out").exists()


class Trained:
    """What a run writes, without the run."""

    def __call__(self, plan, base, output, resume, start=None):
        self.output = output / "composition"
        shutil.copytree(base.directory, self.output)
        return self

    def run(self):
        return self.output


@pytest.mark.parametrize(("kind", "work"), [("listen", "ListenRun"), ("speak", "_run")])
def test_what_hears_or_speaks_is_installed_as_well(sensorium, tmp_path, monkeypatch, kind, work):
    pytest.importorskip("torch")
    monkeypatch.setattr(f"sensorium.training.{kind}_run.{work}", Trained())
    model = tiny.write(tmp_path / "model", speech=True)
    changes = [f"composition={model}", f"output={tmp_path / 'out'}", f"install={tmp_path / 'there'}"]
    given = [word for change in changes for word in ("--set", change)]
    code, out, err = sensorium("train", shipped(kind), *given)
    assert (code, out) == (0, f"{tmp_path / 'out' / 'composition'}\n"), err
    assert f"Installed: {tmp_path / 'there'}\n" in err and "install: " in (tmp_path / "out" / "recipe.yaml").read_text()
    installed = Composition.find(tmp_path / "there")
    installed.check_files()
    assert "speech" in installed.spec.projectors and (tmp_path / "there" / "listen.onnx").is_file()
    wrong = [*given, "--set", f"install={tmp_path}", "--set", f"output={tmp_path / 'other'}"]
    code, _, err = sensorium("train", shipped(kind), *wrong)
    assert code == 2 and "neither inside the other" in err and not (tmp_path / "other").exists()


@pytest.mark.parametrize("kind", ["listen", "speak"])
def test_features_are_of_pictures(sensorium, kind):
    pytest.importorskip("torch")
    code, out, err = sensorium("features", shipped(kind))
    assert (code, out, err.count("\n")) == (2, "", 1) and f"is of kind {kind}" in err
