"""What a run did not touch goes along: a composition that hears still hears when its pictures were trained anew."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

import tiny

torch = pytest.importorskip("torch")

import sensorium  # noqa: E402
from sensorium.composition import Composition, file_sha256  # noqa: E402
from sensorium.encoders.base import FeatureSpec, Grid  # noqa: E402
from sensorium.projectors.spec import torch_class  # noqa: E402
from sensorium.training import inherit  # noqa: E402
from sensorium.training.write import write_composition  # noqa: E402


@pytest.fixture
def base(tmp_path, monkeypatch):
    monkeypatch.setenv("SENSORIUM_HOME", str(tmp_path / "home"))
    directory = tiny.write(tmp_path / "base", speech=True)
    manifest = json.loads((directory / "manifest.json").read_text())
    (directory / "manifest.json").write_text(json.dumps({**manifest, "listen": {"run": "of ears"}}))
    return Composition(directory)


def trained(base, directory, **changes):
    """A run of pictures, without the run."""
    plan = SimpleNamespace(
        name="seen", backbone=None, trains_backbone=False, lora=None, model_dump=lambda mode: {"recipe": "of pictures"},
        projector=SimpleNamespace(kind="mlp", options={"pool": tiny.POOL}),
    )  # fmt: skip
    vars(plan).update(changes)
    grid = (tiny.GRID, tiny.GRID) if isinstance(tiny.GRID, int) else tuple(tiny.GRID)
    features = FeatureSpec(tiny.FEATURES, Grid(*grid), None, base.manifest.frozen["encoders.image"])
    known = {name: base.manifest.frozen[name] for name in ("backbone", "encoders.image")}
    frozen = SimpleNamespace(composition=base, features=features, fingerprints=known, weights=None)
    projector = torch_class("mlp")(tiny.FEATURES, tiny.DIM, grid, pool=tiny.POOL)
    write_composition(plan, frozen, projector, SimpleNamespace(new_tokens=None), directory)
    return Composition(directory)


def test_new_eyes_keep_their_ears(base, tmp_path):
    made = trained(base, tmp_path / "made")
    assert made.spec.projectors["speech"] == base.spec.projectors["speech"]
    assert made.manifest.frozen["encoders.speech"] == base.manifest.frozen["encoders.speech"]
    assert made.manifest.model_extra["listen"] == {"run": "of ears"} and made.manifest.recipe == {
        "recipe": "of pictures"
    }
    assert made.spec.lora is None and not (made.directory / "lora.safetensors").exists()
    model = sensorium.load(made.directory, progress=False)
    question = sensorium.load_audio(np.random.default_rng(0).normal(0, 0.1, 8000).astype(np.float32), array_rate=16_000)
    before = sensorium.load(base.directory, progress=False)
    assert model.ask(audio=question, max_tokens=4) == before.ask(audio=question, max_tokens=4)
    assert model.ask("What?", image=np.zeros((8, 8, 3), np.uint8), max_tokens=2) is not None


@pytest.mark.parametrize("other", [{"backbone": "gemma3-270m"}])
def test_ears_for_another_language_model_are_left_behind(base, tmp_path, other):
    made = trained(base, tmp_path / "made", **other)
    assert "speech" not in made.spec.projectors and "speech" not in made.spec.encoders
    assert "listen" not in made.manifest.model_extra and "encoders.speech" not in made.manifest.frozen
    assert not (made.directory / "listen.onnx").exists()


def test_a_new_voice_stands_beside_all_the_rest(base, tmp_path):
    directory = tmp_path / "made"
    directory.mkdir()
    for name in ("speech.onnx", "speech.safetensors"):
        (directory / name).write_bytes(name.encode())
    ours = {"kind": "ctc", "generator": "speech", "weights": "speech.safetensors", "onnx": "speech.onnx"}
    changes = {"generators": {"speech": {"kind": "hibari"}}, "output_projectors": {"speech": ours}}
    inherit.write_beside(
        base, directory, ["speech.onnx", "speech.safetensors"], changes, {"generators.speech": "f"}, {}
    )
    made = Composition(directory)
    assert made.spec.projectors == base.spec.projectors and made.spec.lora == base.spec.lora
    assert made.manifest.frozen == {**base.manifest.frozen, "generators.speech": "f"}
    made.check_files([*made.trained_files, *made.output_files])
    again = tmp_path / "again"
    again.mkdir()
    (again / "listen.onnx").write_bytes(b"new")
    (again / "listen.safetensors").write_bytes(b"new")
    heard = {"projectors": {"speech": made.spec.projectors["speech"].model_dump(mode="json")}}
    inherit.write_beside(made, again, ["listen.onnx", "listen.safetensors"], heard, {}, {"listen": "anew"})
    assert Composition(again).manifest.files["listen.onnx"] == file_sha256(again / "listen.onnx")
    assert (again / "listen.onnx").read_bytes() == b"new"  # and not the one that was there before
    assert (again / "speech.onnx").read_bytes() == b"speech.onnx"
    renamed = tmp_path / "renamed"
    renamed.mkdir()
    for name in ("ears.onnx", "ears.safetensors"):
        (renamed / name).write_bytes(b"new")
    heard["projectors"]["speech"] |= {"onnx": "ears.onnx", "weights": "ears.safetensors"}
    inherit.write_beside(made, renamed, ["ears.onnx", "ears.safetensors"], heard, {}, {})
    assert not (renamed / "listen.onnx").exists()  # nobody names it any more
