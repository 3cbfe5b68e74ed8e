"""Composition files: validation with line numbers, seams, fingerprints, digests."""

from __future__ import annotations

import json

import numpy as np
import pytest

import tiny
from sensorium import config
from sensorium.composition import Composition, file_sha256
from sensorium.encoders.base import FeatureSpec, Grid, Sequence
from sensorium.errors import SensoriumError, UsageError
from sensorium.loading import Lazy, Parts
from sensorium.projectors.runtime import Projector
from sensorium.projectors.spec import tokens_for


@pytest.fixture
def directory(tmp_path, monkeypatch):
    monkeypatch.setenv("SENSORIUM_HOME", str(tmp_path / "home"))
    return tiny.write(tmp_path / "tiny")


def check(directory):
    """Load and check a composition; the sentence of the error, or an empty text."""
    try:
        Parts(Composition.find(directory), progress=False).check()
    except SensoriumError as error:
        assert "\n" not in str(error)
        return str(error)
    return ""


def edit(directory, old, new):
    path = directory / "composition.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def edit_manifest(directory, **changes):
    path = directory / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def relist(directory):
    files = {name: file_sha256(directory / name) for name in ("image.onnx", "image.safetensors", "lora.safetensors")}
    edit_manifest(directory, files=files)


def test_a_sound_composition_loads(directory):
    composition = Composition.find(directory)
    assert composition.name == "tiny"
    assert check(directory) == ""
    assert Composition.find(directory / "composition.yaml").name == "tiny"


def test_projector_only_and_text_only_compositions_load(tmp_path, monkeypatch):
    monkeypatch.setenv("SENSORIUM_HOME", str(tmp_path / "home"))
    assert check(tiny.write(tmp_path / "a", lora=False)) == ""
    bare = tiny.write(tmp_path / "b", lora=False, projector=False)
    (bare / "manifest.json").unlink()
    assert check(bare) == ""


@pytest.mark.parametrize("name", ["nowhere", "", "a/b/c", "../x", "mini\0", "\n", "x" * 5000])
def test_unknown_models_are_a_wrong_call(name):
    with pytest.raises(UsageError, match="is no model"):
        Composition.find(name)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (
            "quantization: fp32",
            "quantisation: fp32",
            r"line 7: unknown key 'backbone.quantisation'; did you mean 'quantization'",
        ),
        ("name: tiny", "name: tiny\nvoice: loud", "line 3: unknown key 'voice'; known keys: name"),
        ("quantization: fp32", "quantization: int2", "line 7: backbone.quantization is 'int2'"),
        ("name: tiny", "", "the key 'name' is missing"),
        ("name: tiny", "name: tiny\nname: twice", "line 3: the key 'name' stands here and on line 2"),
        ("name: tiny", "name: [tiny", "not valid YAML"),
        ("name: tiny", "name: !!python/object:os.system x", "not valid YAML"),
        ("name: tiny", "name: &a tiny", "line 2: anchors and aliases"),
        ("name: tiny", "name: *a", "line 2: anchors and aliases"),
        ("name: tiny", "name: ../../etc", "line 2: name is '../../etc'"),
        ("onnx: image.onnx", "onnx: ../image.onnx", "inside the composition's directory"),
        ("onnx: image.onnx", "onnx: /etc/passwd", "inside the composition's directory"),
        ("encoder: image", "encoder: sound", "reads the encoder 'sound'.*declared encoders: image"),
        ("template: chatml", "template: vicuna", "line 8: chat template 'vicuna' is unknown"),
        ("kind: mlp", "kind: wormhole", "projector kind 'wormhole' is unknown; known kinds: .*mlp"),
        ("kind: linear-patches", "kind: retina", "Encoder kind 'retina' is unknown"),
        ("pool: 2", "pool: 3", "pool=3 does not divide the encoder's grid of 4x4"),
        ("pool: 2", "pool: 0", "pool=0 must be a whole number"),
        ("pool: 2", "pool: true", "pool=True must be a whole number"),
        ("grid: 4", "grid: 4, colour: blue", "does not take these options"),
        ("active: media", "active: always", "lora.active is 'always'"),
        ("file:llm.gguf", "ftp:llm.gguf", "line 5: 'ftp:llm.gguf' is no source"),
    ],
)
def test_mistakes_in_the_file_are_wrong_calls_with_a_line(directory, old, new, reason):
    edit(directory, old, new)
    with pytest.raises(UsageError, match=reason) as caught:
        Parts(Composition.find(directory), progress=False).check()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "does not hold a mapping"),
        (b"- a\n- b\n", "does not hold a mapping"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"a: " + b"[" * 2000, "nested deeper"),
        (b"a: " + b"x" * (config.MAX_BYTES + 1), "larger than 256 KiB"),
        (b"a: [" + b"1," * 30_000 + b"]", "nested deeper or longer"),
        (b"a: \x00", "not valid YAML"),
        (b"? [a, b]\n: c\n", "a key must be a plain word"),
        (b"a: 1\n---\nb: 2\n", "not valid YAML"),
        (b"a: 2024-13-77\n", "not valid YAML|unknown key"),
    ],
)
def test_hostile_yaml_gets_one_sentence(directory, content, reason):
    (directory / "composition.yaml").write_bytes(content)
    with pytest.raises(UsageError, match=reason):
        Composition.find(directory)


def test_feature_grid_mismatch_names_both_parts_both_shapes_and_the_file(directory):
    from sensorium.encoders import create

    edit(directory, "grid: 4", "grid: 8")
    wide = create("linear-patches", directory / "patches.npy", grid=8).spec.fingerprint
    backbone = json.loads((directory / "manifest.json").read_text())["frozen"]["backbone"]
    edit_manifest(directory, frozen={"backbone": backbone, "encoders.image": wide})
    sentence = check(directory)
    for needed in ("composition.yaml, line", "image.onnx", "16 x 24", "linear-patches", "64 x 24"):
        assert needed in sentence


def test_backbone_width_mismatch_names_both_parts(directory):
    tiny.write_projector(directory / "image.onnx", np.random.default_rng(0), dim=96)
    relist(directory)
    sentence = check(directory)
    for needed in ("image.onnx", "width 96", "llm", "width 64", "composition.yaml, line"):
        assert needed in sentence


def test_token_count_mismatch_is_found(directory):
    edit(directory, "pool: 2", "pool: 1")
    assert "means 16 tokens, but the projector 'image' (image.onnx) gives 4" in check(directory)


def test_other_frozen_parts_are_refused(directory):
    np.save(directory / "patches.npy", np.ones((48, 24), np.float32))
    assert "The frozen part 'encoders.image' has fingerprint" in check(directory)
    tiny.write_gguf(directory / "llm.gguf", np.random.default_rng(7))
    assert "The frozen part 'backbone' has fingerprint" in check(directory)


def test_a_manifest_without_fingerprints_is_refused(directory):
    edit_manifest(directory, frozen={})
    assert "holds no fingerprint of the frozen part 'backbone'" in check(directory)


def test_changed_and_missing_trained_files_are_refused(directory):
    data = bytearray((directory / "image.onnx").read_bytes())
    data[-1] ^= 1
    (directory / "image.onnx").write_bytes(data)
    assert "was changed or damaged" in check(directory)
    (directory / "image.onnx").unlink()
    assert "image.onnx is missing" in check(directory)


def test_manifest_faults_are_refused(directory):
    edit_manifest(directory, schema=99)
    assert "schema is 99" in check(directory)
    (directory / "manifest.json").write_text("{")
    assert "not valid JSON" in check(directory)
    (directory / "manifest.json").write_text("[" * 100_000)
    assert "not valid JSON" in check(directory)
    (directory / "manifest.json").unlink()
    assert "manifest.json is missing" in check(directory)
    assert Composition.find(directory).manifest is None  # training begins with such a composition


def test_lora_of_another_width_or_depth_is_refused(directory):
    tiny.write_lora(directory / "lora.safetensors", np.random.default_rng(0), dim=96)
    relist(directory)
    assert "the backbone down_proj needs 64 x r" in check(directory)
    tiny.write_lora(directory / "lora.safetensors", np.random.default_rng(0), layers=3)
    relist(directory)
    assert "changes layer 2, but the backbone has 2 layers" in check(directory)
    (directory / "lora.safetensors").write_bytes(b"\xff" * 64)
    relist(directory)
    assert "is not a safetensors file" in check(directory)


def test_another_template_than_the_backbones_is_refused(directory, monkeypatch):
    from sensorium import prompt

    monkeypatch.setitem(prompt.TEMPLATES, "llama3", prompt.TEMPLATES["chatml"])
    edit(directory, "template: chatml", "template: llama3")
    assert "declares the chat template 'llama3'" in check(directory)
    assert "was tuned with 'chatml'" in check(directory)


def test_a_projector_that_is_no_projector_is_refused(tmp_path):
    (tmp_path / "p.onnx").write_bytes(b"not onnx")
    with pytest.raises(SensoriumError, match="is not a projector"):
        Projector(tmp_path / "p.onnx")
    with pytest.raises(SensoriumError, match="does not exist"):
        Projector(tmp_path / "q.onnx")


def test_projection_does_not_depend_on_the_batch(directory):
    projector = Projector(directory / "image.onnx", threads=1)
    features = np.random.default_rng(0).normal(size=(3, 16, 24)).astype(np.float32)
    together = projector(features)
    assert together.shape == (3, 4, 64)
    for i in range(3):
        assert (projector(features[i : i + 1])[0] == together[i]).all()
    with pytest.raises(SensoriumError, match="not finite"):
        projector(np.full((1, 16, 24), np.nan, np.float32))


def test_token_counts():
    grid = FeatureSpec(1280, Grid(8, 8), None, "f")
    assert tokens_for("mlp", {}, grid) == 64
    assert tokens_for("mlp", {"pool": 2}, grid) == 16
    assert tokens_for("resampler", {"queries": 5}, grid) == 5
    assert tokens_for("concept", {}, grid) == 17 and tokens_for("concept", {"pool": 4, "learnt": 3}, grid) == 5
    for kind, options in (("mlp", {"pool": 0}), ("mlp", {"hidden": 0}), ("concept", {"pool": True})):
        with pytest.raises(UsageError, match="must be a whole number of 1 or more"):
            tokens_for(kind, options, grid)
    with pytest.raises(UsageError, match="known kinds: concept, mlp, resampler"):
        tokens_for("qformer", {}, grid)
    with pytest.raises(UsageError, match="pools a grid"):
        tokens_for("mlp", {}, FeatureSpec(384, Sequence(), 50.0, "f"))


def test_lazy_makes_once_and_keeps_the_error():
    made = []
    lazy = Lazy(lambda: made.append(1) or len(made))
    lazy.start()
    assert lazy.get() == lazy.get() == 1

    def fail():
        made.append(1)
        raise SensoriumError("no")

    broken = Lazy(fail)
    for _ in range(2):
        with pytest.raises(SensoriumError, match="no"):
            broken.get()
    assert len(made) == 2
