"""Two-tower models: vectors, seams, classify --head clip, bad inputs."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image as Pillow

import tiny
import tiny_clip
from sensorium import composition, load
from sensorium.errors import SensoriumError, UsageError
from sensorium.tasks.clip import TEMPLATES, classify_clip, label_vectors
from sensorium.two_tower import TwoTower


@pytest.fixture(scope="module")
def packaged(tmp_path_factory):
    base = tmp_path_factory.mktemp("packaged")
    tiny.write(base / "mini")
    tiny_clip.write(base / "mini-clip")
    return base


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch, packaged):
    monkeypatch.setenv("SENSORIUM_HOME", str(tmp_path_factory.getbasetemp() / "two-tower-home"))
    monkeypatch.setattr(composition, "PACKAGED", packaged)


@pytest.fixture
def model(packaged):
    return TwoTower("mini-clip", threads=1)


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("picture") / "red.png"
    Pillow.new("RGB", (30, 20), (200, 20, 20)).save(path)
    return path


def test_vectors_have_length_one_and_come_from_both_towers(model, picture):
    image, text = model.embed(picture), model.embed(text="a red apple")
    assert image.shape == text.shape == (tiny_clip.SPACE,) and image.dtype == np.float32
    np.testing.assert_allclose([np.linalg.norm(image), np.linalg.norm(text)], 1, atol=1e-6)
    pixels = np.asarray(Pillow.open(picture))
    np.testing.assert_allclose(model.embed_images([pixels] * 3)[2], image, atol=1e-6)
    assert model.embed_texts([]).shape == model.embed_images([]).shape == (0, tiny_clip.SPACE)
    for wrong in ({}, {"image": picture, "text": "a"}):
        with pytest.raises(UsageError, match="one of the two"):
            model.embed(**wrong)


def test_parts_are_those_of_a_composition(sensorium, packaged):
    code, out, err = sensorium("parts", "--model", "mini-clip", "--json")
    assert (code, err) == (0, "")
    told, parts = json.loads(out), {}
    assert told["model"] == "tiny-clip" and told["directory"] == str(packaged / "mini-clip")
    for part in told["parts"]:
        parts[part["name"]] = (part["kind"], part["state"], part["seam"])
        assert part["bytes"] > 0 and len(part["fingerprint"]) == 64
    assert parts == {
        "encoders.image": ("linear-patches", "frozen", "image -> features [4x4, 24]"),
        "encoders.text": ("minilm", "frozen", f"text -> features [{tiny_clip.DIM}]"),
        "heads.image": ("head", "trained", f"[16, 24] -> vector of length 1 [{tiny_clip.SPACE}]"),
        "heads.text": ("head", "trained", f"[1, {tiny_clip.DIM}] -> vector of length 1 [{tiny_clip.SPACE}]"),
    }
    code, out, _ = sensorium("parts", "--model", packaged / "mini-clip")
    assert code == 0 and all(name in out for name in parts)


def test_the_generative_model_embeds_through_it(model, picture):
    both = load("mini", threads=1, progress=False)
    np.testing.assert_allclose(both.embed(picture, head="clip"), model.embed(picture), atol=1e-6)
    np.testing.assert_allclose(both.embed(text="a dog"), model.embed(text="a dog"), atol=1e-6)
    assert both.embed(picture).shape == (tiny.FEATURES,)
    assert both.classify(picture, ["dog", "cat"], head="clip") == classify_clip(model, picture, ["dog", "cat"])
    for wrong in ({"head": "other"}, {"image": picture, "text": "a"}):
        with pytest.raises(UsageError):
            both.embed(**wrong)
    with pytest.raises(UsageError, match="head"):
        both.classify(picture, ["a", "b"], head="x")
    with pytest.raises(UsageError, match="prior_weight"):
        both.classify(picture, ["a", "b"], head="clip", prior_weight=1.0)


def test_classify_is_a_softmax_over_averaged_prompts(model, picture):
    labels = ["apple", "red", "a dog"]
    found = classify_clip(model, picture, labels)
    assert sum(p for _, p in found) == pytest.approx(1) and [p for _, p in found] == sorted((p for _, p in found))[::-1]
    prompts = [["An apple", "An apple"], ["A red", "A red"], ["A dog", "A dog"]]
    classes = []
    for (said, _), bare in zip(prompts, ("apple", "red", "dog")):
        vectors = model.embed_texts([t.replace("{bare}", bare).replace("{}", said) for t in TEMPLATES])
        mean = vectors.mean(0)
        classes.append(mean / np.linalg.norm(mean))
    scores = np.stack(classes) @ model.embed(picture) / 0.1
    wanted = np.exp(scores) / np.exp(scores).sum()
    assert dict(found) == {label: pytest.approx(float(p), abs=1e-5) for label, p in zip(labels, wanted)}
    np.testing.assert_allclose(np.linalg.norm(label_vectors(model, labels), axis=1), 1, atol=1e-6)
    flat = classify_clip(model, picture, labels, temperature=1e6)
    assert flat[0][1] == pytest.approx(1 / 3, abs=1e-4)
    for wrong in ({"temperature": 0}, {"temperature": float("nan")}, {"templates": []}, {"templates": "a {}"}):
        with pytest.raises(UsageError):
            classify_clip(model, picture, labels, **wrong)


def test_classify_head_clip_from_the_command_line(sensorium, picture, tmp_path):
    code, out, err = sensorium("classify", picture, "-l", "apple", "-l", "dog", "--head", "clip", "--json")
    assert (code, err) == (0, "")
    labels = json.loads(out)["labels"]
    assert {each["label"] for each in labels} == {"apple", "dog"}
    assert sum(each["probability"] for each in labels) == pytest.approx(1, abs=1e-5)
    (tmp_path / "broken.png").write_bytes(b"nothing")
    code, out, err = sensorium(
        "classify", picture, tmp_path / "broken.png", "-l", "a", "-l", "b", "--head", "clip", "--json"
    )
    assert code == 1 and "error" in json.loads(out)["files"][str(tmp_path / "broken.png")]
    for arguments, exit_code in (
        (["classify", picture, "-l", "a", "-l", "b", "--head", "x"], 2),
        (["classify", picture, "-l", "a", "--head", "clip"], 2),
        (["classify", picture, "-l", "a", "-l", "b", "--head", "clip", "--model", "nowhere"], 2),
        (["ask", "What?", "--model", "mini-clip"], 2),
        (["eval", "clip", "image"], 2),
    ):
        code, out, err = sensorium(*arguments)
        assert (code, out) == (exit_code, "") and len(err.splitlines()) == 1


def broken(packaged, tmp_path, change):
    directory = tiny_clip.write(tmp_path / "broken")
    change(directory)
    return directory


def edit(name, before, after):
    def change(directory):
        path = directory / name
        assert before in path.read_text()
        path.write_text(path.read_text().replace(before, after))

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: (d / "image.onnx").unlink(), "image.onnx is missing"),
        (lambda d: (d / "text.safetensors").write_bytes(b"x"), "sha256"),
        (lambda d: (d / "manifest.json").unlink(), "no trained heads"),
        (lambda d: (d / "manifest.json").write_text("{"), "not valid JSON"),
        (edit("composition.yaml", "grid: 4", "grid: 2"), "fingerprint"),
        (edit("composition.yaml", "kind: minilm", "kind: gpt"), "unknown"),
        (edit("composition.yaml", "temperature: 0.1", "temperature: 0"), "give a number above 0"),
        (edit("composition.yaml", "weights: image", "weight: image"), "weight"),
        (edit("composition.yaml", "onnx: text.onnx", "onnx: ../text.onnx"), "inside"),
        (edit("composition.yaml", "file:patches.npy", "file:none.npy"), "does not exist"),
        (edit("composition.yaml", "tokenizer: tokenizer.json", "tokenizer: none.json"), "cannot be read"),
        (edit("composition.yaml", "kind: clip", "kind: clap"), "kind"),
    ],
)
def test_what_does_not_fit_is_one_sentence(packaged, tmp_path, picture, change, words):
    directory = broken(packaged, tmp_path, change)
    with pytest.raises(SensoriumError, match=words) as error:
        model = TwoTower(directory)
        model.embed(text="a dog")
        model.embed(picture)
    assert "\n" not in str(error.value)


def test_heads_that_cannot_be_compared(tmp_path, picture):
    from sensorium.composition import file_sha256

    directory = tiny_clip.write(tmp_path / "uneven")
    tiny_clip.write_head(directory / "text.onnx", np.random.default_rng(0), 1, tiny_clip.DIM, outputs=8)
    manifest = json.loads((directory / "manifest.json").read_text())
    manifest["files"] |= {name: file_sha256(directory / name) for name in ("text.onnx", "text.safetensors")}
    (directory / "manifest.json").write_text(json.dumps(manifest))
    model = TwoTower(directory)
    model.embed(picture)
    with pytest.raises(SensoriumError, match="cannot be compared"):
        model.embed(text="a dog")


def test_other_models_are_told_apart(packaged, tmp_path):
    with pytest.raises(UsageError, match="two towers"):
        TwoTower("mini")
    with pytest.raises(UsageError, match="two-tower model"):
        load("mini-clip")
    with pytest.raises(UsageError, match="no two-tower model"):
        TwoTower(tmp_path)
    untrained = tiny_clip.write(tmp_path / "untrained", heads=False)
    with pytest.raises(SensoriumError, match="nothing was trained"):
        TwoTower(untrained).embed(text="a")
