"""Towers that learn: parity with the published encoders, what a run writes and holds, resuming, what is refused."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import yaml
from PIL import Image as Pillow

import tiny_clip
from sensorium import encoders
from sensorium.cli import run
from sensorium.composition import file_sha256
from sensorium.encoders.efficientnet_lite import EfficientNetLite
from sensorium.encoders.minilm import padded
from sensorium.errors import SensoriumError, UsageError
from sensorium.two_tower import TwoTower
from test_encoder_efficientnet import random_state

torch = pytest.importorskip("torch")

from safetensors.numpy import load_file, save_file  # noqa: E402

from sensorium.training import towers  # noqa: E402
from sensorium.training.clip_features import encode_pictures, pool  # noqa: E402
from sensorium.training.clip_run import train_clip  # noqa: E402
from sensorium.training.clip_sides import Learning, Tokens  # noqa: E402
from sensorium.training.data.formats.sample import MediaRef  # noqa: E402
from sensorium.training.features import EncoderPart, FeatureCache, digest  # noqa: E402

TEXTS = ["a red apple", "two dogs and a cat in a car", "dog", "a " * 200]
COLOURS = {"red apple": (210, 30, 30), "green tree": (30, 170, 40), "blue car": (30, 40, 220)}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("SENSORIUM_HOME", str(tmp_path_factory.getbasetemp() / "towers-home"))


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A folder of 12 pictures in folders named after their colours."""
    random, folder = np.random.default_rng(0), tmp_path_factory.mktemp("own")
    for name, colour in COLOURS.items():
        (folder / name).mkdir()
        for i in range(4):
            pixels = np.clip(random.normal(colour, 25, (12, 12, 3)), 0, 255).astype(np.uint8)
            Pillow.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A file with random weights of EfficientNet-Lite0, as safetensors."""
    path = tmp_path_factory.mktemp("network") / "lite0.safetensors"
    save_file(random_state(0), str(path))
    return path


@pytest.fixture
def base(tmp_path):
    return tiny_clip.write(tmp_path / "base", heads=False)


@pytest.fixture
def big(base, network):
    """The tiny composition with the network in place of the linear patches."""
    path = base / "composition.yaml"
    text = path.read_text().replace("linear-patches", "efficientnet-lite0").replace("grid: 4", "resolution: 128")
    path.write_text(text.replace("file:patches.npy", f"file:{network}"))
    return base


def recipe(tmp_path, own, unfreeze=("text",), **train):
    plan = {
        "kind": "clip",
        "name": "tiny-clip",
        "composition": str(tmp_path / "base"),
        "output": str(tmp_path / "out"),
        "heads": {"dim": 16},
        "unfreeze": list(unfreeze),
        "data": {"pairs": str(own)},
        "train": {
            "steps": 6, "batch": 6, "learning_rate": {"heads": 0.01, "towers": 0.001}, "warmup": 1, "log_every": 1,
            "dropout": 0.2, **train,
        },
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(plan))
    return tmp_path / "recipe.yaml"


def test_the_sentence_tower_gives_what_the_encoder_gives(base):
    encoder = encoders.create_text("minilm", base / "model.safetensors", threads=1)
    tower = towers.load("minilm", base / "model.safetensors")
    side = Learning(tower, Tokens(encoder.tokenize(TEXTS)))
    places = np.array([3, 0, 2, 0, 1])  # of several lengths, one twice
    with torch.no_grad():
        found = side.features(side.take(places)).numpy()
        ids, mask = padded(encoder.tokenize(TEXTS))
        plain = tower(torch.from_numpy(ids), torch.from_numpy(mask)).numpy()
    wanted = encoder.encode_text(TEXTS)
    np.testing.assert_allclose(plain, wanted, atol=1e-4)
    np.testing.assert_allclose(found, wanted[places], atol=1e-4)
    assert encoder.fingerprint_of(tower.published()) == encoder.spec.fingerprint


def test_the_picture_tower_gives_what_the_encoder_gives(network, own):
    encoder = EfficientNetLite(0, network, 128, threads=1)
    tower = towers.load("efficientnet-lite0", network)
    pictures = [np.asarray(Pillow.open(path)) for path in sorted(own.rglob("0.png"))]
    with torch.no_grad():
        found = tower(torch.from_numpy(np.stack([encoder.prepare(each) for each in pictures]))).numpy()
    np.testing.assert_allclose(found, encoder.encode(pictures), atol=1e-3)
    assert encoder.fingerprint_of(tower.published()) == encoder.spec.fingerprint


def test_what_a_trained_sentence_tower_leaves(base, own, tmp_path, capfd):
    assert run(["train", str(recipe(tmp_path, own))]) == 0
    err = capfd.readouterr().err
    assert re.search(r"encoders.text +[\d,]+ +trained", err) and re.search(r"encoders.image +frozen", err)
    written = tmp_path / "out" / "composition"
    before, after = load_file(base / "model.safetensors"), load_file(written / "text-tower.safetensors")
    moved = {name for name, value in after.items() if np.abs(value - before[name]).max() > 1e-4}
    assert {"encoder.layer.0.attention.self.query.weight", "embeddings.word_embeddings.weight"} <= moved
    model, start = TwoTower(written), TwoTower(base)
    assert model.spec.encoders.text.trained == "text-tower.safetensors" and not model.spec.encoders.image.trained
    tower = towers.load("minilm", written / "text-tower.safetensors")
    encoder = model.text_encoder.get()
    ids, mask = padded(encoder.tokenize(TEXTS))
    with torch.no_grad():
        found = tower(torch.from_numpy(ids), torch.from_numpy(mask)).numpy()
    np.testing.assert_allclose(found, encoder.encode_text(TEXTS), atol=1e-3)
    manifest = json.loads((written / "manifest.json").read_text())
    assert manifest["trained"] == {"encoders.text": encoder.spec.fingerprint}
    assert manifest["began"] == {"encoders.text": start.text_encoder.get().spec.fingerprint}
    assert manifest["frozen"] == {"encoders.image": start.image_encoder.get().spec.fingerprint}
    assert run(["search", str(own), "a blue car", "--top", "1", "--model", str(written)]) == 0
    # a run that begins from it and leaves it frozen hands it on
    again = train_clip(recipe(tmp_path, own, ()), [f"composition={written}", f"output={tmp_path / 'again'}"])
    assert file_sha256(again / "text-tower.safetensors") == file_sha256(written / "text-tower.safetensors")
    assert json.loads((again / "manifest.json").read_text())["trained"] == manifest["trained"]
    assert TwoTower(again).embed(text="a red apple").shape == (16,)


def test_a_picture_tower_learns_and_its_batch_norms_do_not(big, network, own, tmp_path):
    written = train_clip(recipe(tmp_path, own, ("text", "image"), steps=2))
    before, after = load_file(network), load_file(written / "image-tower.safetensors")
    moved = {name for name, value in after.items() if not np.array_equal(value, before[name])}
    assert {"_conv_stem.weight", "_blocks.3._depthwise_conv.weight", "_bn1.bias"} <= moved and set(before) == set(after)
    assert not [name for name in moved if "running" in name or name.startswith("_fc")]
    model = TwoTower(written)
    assert model.embed(own / "blue car" / "0.png").shape == model.embed(text="a car").shape == (16,)
    manifest = json.loads((written / "manifest.json").read_text())
    assert set(manifest["trained"]) == {"encoders.image", "encoders.text"} and not manifest["frozen"]


def test_what_is_held_is_watched(network):
    tower = towers.load("efficientnet-lite0", network).train()
    held = towers.held(tower)
    tower(torch.zeros(2, 64, 64, 3, dtype=torch.uint8)).sum().backward()
    with torch.no_grad():
        tower._conv_stem.weight.add_(1)
    assert towers.held(tower) == held
    tower._bn0.running_mean.add_(1e-3)
    assert towers.held(tower) != held


def test_a_resumed_run_ends_in_the_same_bits(base, own, tmp_path, monkeypatch):
    from sensorium.training import processes

    whole = train_clip(recipe(tmp_path, own))

    class Stops(processes.StopRequest):
        asked_so_far = 0

        def __call__(self):
            Stops.asked_so_far += 1
            return Stops.asked_so_far == 3

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(processes, "StopRequest", Stops)
        train_clip(recipe(tmp_path, own), [f"output={tmp_path / 'parts'}"])
    with pytest.raises(SensoriumError, match="unfreeze"):
        train_clip(recipe(tmp_path, own, ()), resume=tmp_path / "parts")
    parts = train_clip(recipe(tmp_path, own), resume=tmp_path / "parts")
    for name in ("text-tower.safetensors", "text.safetensors", "image.safetensors"):
        assert (whole / name).read_bytes() == (parts / name).read_bytes()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["unfreeze=[vision]"], "unfreeze"),
        (["unfreeze=[text, text]"], "twice"),
        (["unfreeze=text"], "unfreeze"),
        (["train.learning_rate.towers=0"], "learning_rate.towers"),
        (["train.learning_rate.tower=1.0e-5"], "did you mean 'towers'"),
        (["train.learning_rate=fast"], "learning_rate"),
        (["unfreeze=[image]"], "composition.yaml, line .*'linear-patches' cannot be unfrozen"),
    ],
)
def test_bad_values_are_refused_before_anything_is_loaded(base, own, tmp_path, changes, words):
    for name in ("patches.npy", "model.safetensors"):
        (base / name).unlink()
    with pytest.raises(UsageError, match=words) as error:
        train_clip(recipe(tmp_path, own), changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_bytes(b"\xff" * 64), "no safetensors file"),
        (lambda path: save_file({"x": np.zeros(3, np.float32)}, str(path)), "no .*BERT|not the weights of a BERT"),
        (lambda path: path.write_bytes(path.read_bytes()[:-4]), "no safetensors file"),
    ],
)
def test_hostile_trained_towers_are_one_sentence(tmp_path, change, words):
    directory = tiny_clip.write(tmp_path / "model")
    path, listing = directory / "text-tower.safetensors", directory / "manifest.json"
    path.write_bytes((directory / "model.safetensors").read_bytes())
    place = directory / "composition.yaml"
    place.write_text(place.read_text().replace("    kind: minilm", f"    kind: minilm\n    trained: {path.name}"))
    manifest = json.loads(listing.read_text())
    manifest["trained"] = {"encoders.text": manifest["frozen"].pop("encoders.text")}
    manifest["files"][path.name] = file_sha256(path)
    listing.write_text(json.dumps(manifest))
    assert TwoTower(directory).embed(text="a dog").shape == (tiny_clip.SPACE,)
    change(path)
    if path.is_file():
        with pytest.raises(SensoriumError, match="sha256"):
            TwoTower(directory).embed(text="a dog")
        manifest["files"][path.name] = file_sha256(path)
        listing.write_text(json.dumps(manifest))
    with pytest.raises(SensoriumError, match=words) as error:
        TwoTower(directory).embed(text="a dog")
    assert "\n" not in str(error.value)
    place.write_text(place.read_text().replace(path.name, f"../{path.name}"))
    with pytest.raises(UsageError, match="inside"):
        TwoTower(directory)


def test_a_trained_tower_that_the_manifest_does_not_name_is_refused(base, own, tmp_path):
    written = train_clip(recipe(tmp_path, own, steps=1))
    listing = written / "manifest.json"
    listing.write_text(listing.read_text().replace('"trained": {', '"trained": {}, "was": {'))
    with pytest.raises(SensoriumError, match=r"trained part 'encoders\.text' has fingerprint"):
        TwoTower(written).embed(text="a dog")


def test_picture_features_come_from_the_common_cache(base, own):
    part = EncoderPart("linear-patches", base / "patches.npy", {"grid": tiny_clip.GRID})
    files = [*sorted(own.rglob("*.png")), own / "none.png"]
    (own / "broken.png").write_bytes(b"no picture")
    encoder = part.create()
    rows, good = encode_pictures([*files, own / "broken.png"], part, encoder.spec)
    (own / "broken.png").unlink()
    assert good.tolist() == [True] * 12 + [False] * 2
    wanted = pool(encoder.encode([np.asarray(Pillow.open(path)) for path in files[:12]]))
    np.testing.assert_allclose(rows[:12], wanted, rtol=2e-3, atol=2e-3)
    with FeatureCache.of(part) as cache:  # as any other recipe opens it
        assert all(digest(MediaRef(str(path), path)) in cache for path in files[:12])


def test_the_features_command_fills_what_a_clip_recipe_reads(base, own, tmp_path, monkeypatch):
    monkeypatch.setenv("SENSORIUM_HOME", str(tmp_path / "home"))
    part = EncoderPart("linear-patches", base / "patches.npy", {"grid": tiny_clip.GRID})
    spec = part.create().spec
    assert run(["features", str(recipe(tmp_path, own, ()))]) == 0
    monkeypatch.setattr(encoders, "create", None)  # nothing is encoded any more
    assert encode_pictures(sorted(own.rglob("*.png")), part, spec)[1].all()


def test_the_scenes_of_an_unfrozen_tower_are_those_of_the_store(tmp_path, base):
    import tiny_training
    from sensorium.training.clip_material import gather
    from sensorium.training.clip_run import read_recipe
    from sensorium.training.scene_store import SceneStore

    catalogue = tiny_training.write_catalogue(tmp_path / "pictures")
    place = recipe(tmp_path, tmp_path)
    data = {"catalogue": str(catalogue), "scenes": 6, "seed": 3, "mix": {"single": 1.0}}
    place.write_text(yaml.safe_dump({**yaml.safe_load(place.read_text()), "data": data, "unfreeze": ["image"]}))
    model = TwoTower(base)
    encoder = model.image_encoder.get()
    material = gather(read_recipe(place), model, print)
    (batch,), _ = material.pixels(lambda picture: np.asarray(Pillow.fromarray(picture).resize((64, 64))))(np.arange(6))
    assert batch[0].shape == (6, 64, 64, 3) and material.pictures is None
    store = SceneStore(material.plan.directory(), 6)
    seen: list[np.ndarray] = []
    material.pixels(lambda picture: seen.append(picture) or picture[:1, :1])(np.arange(6))
    np.testing.assert_allclose(encoder.encode(seen), np.stack([store[i][0] for i in range(6)]), atol=2e-2)
