"""`backbone:` of a recipe: names of the table, files, files of packages; and what is said of anything else."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import yaml

import hf_folders
import tiny
import tiny_training
from gguf_bytes import STRING, entry, header
from hub_server import File, make_wheel, sha256
from sensorium import hub
from sensorium.backbones import choice
from sensorium.backbones.gguf import GGUF
from sensorium.backbones.hf_folder import HFFolder
from sensorium.backbones.tokenizer import Tokenizer
from sensorium.composition import Composition
from sensorium.errors import SensoriumError, UsageError
from sensorium.prompt import TEMPLATES

pytest_plugins = ["hub_fixtures"]


@pytest.fixture
def llm(tmp_path):
    tiny.write_gguf(tmp_path / "other.gguf", np.random.default_rng(9))
    return tmp_path / "other.gguf"


def test_the_table_pins_every_part_and_knows_every_template():
    assert {"smollm2-135m", "gemma3-270m"} <= set(choice.known())
    for name, config in choice.known().items():
        part = config.part
        assert choice.resolve(name) == config and config.template in TEMPLATES
        assert part.licence and part.size and len(part.sha256) == 64
        for pinned in part.pieces or (part,):
            hub.Part(pinned.source, pinned.file, pinned.sha256)
            assert pinned.source.startswith("pypi:") and "==" in pinned.source
    assert choice.known()["smollm2-135m"].part.sha256 == Composition.find("mini").spec.backbone.part.sha256


def test_a_file_gets_the_digest_and_the_template_that_it_has(llm):
    config = choice.resolve(f"file:{llm}")
    with GGUF(llm) as gguf:
        assert config.part.sha256 == gguf.fingerprint
    assert config.part.size == llm.stat().st_size
    assert config.template == "chatml" and config.part.source == f"file:{llm}"


def test_a_hugging_face_directory_is_taken_as_it_is(tmp_path, llm):
    directory = hf_folders.from_gguf(llm, tmp_path / "directory")
    hf_folders.write_tokenizer(directory, tiny.vocabulary(), tiny.MERGES, tiny.SPECIALS)
    config = choice.resolve(f"file:{directory}")
    assert (config.format, config.template, config.part.source) == ("hf", "chatml", f"file:{directory}")
    with HFFolder(directory) as folder:
        tokenizer = Tokenizer.from_gguf(folder)
    assert tokenizer.eos_id in tokenizer.eos_ids


@pytest.mark.parametrize(
    ("template", "found"), [(None, "plain"), ("<start_of_turn>", "gemma"), ("<|im_start|>", "chatml"), ("[INST]", "")]
)
def test_a_model_is_talked_to_as_it_was_tuned_and_plainly_where_it_was_not(tmp_path, template, found):
    path = tmp_path / "x.gguf"
    path.write_bytes(header([entry("tokenizer.chat_template", STRING, template)] if template else []))
    with GGUF(path) as gguf:
        if found:
            assert choice.template_of(gguf) == found
        else:
            with pytest.raises(SensoriumError, match="'mistral'; known are chatml, gemma, plain"):
                choice.template_of(gguf)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("gemma", "known backbones: smollm2-135m, gemma3-270m; others are given as file:PATH of a"),
        ("pypi:x==1", "known backbones"),
        ("file:nowhere.gguf", "does not exist; give a .gguf file"),
        ("pypi:x#y.gguf", "does not name one pypi part exactly"),
        ("hf:../x@main#y.gguf", "exactly"),
        ("hf:some/llm@main", "give the commit"),
        ("file:.", "directory without a config.json"),
        ("https://example.org/x.gguf", "known backbones"),
        ("x" * 5000, "known backbones"),
    ],
)
def test_a_recipe_with_a_wrong_backbone_is_refused_before_anything_loads(tmp_path, text, reason):
    from sensorium.training.recipe import load_recipe

    plan = tiny_training.recipe(tmp_path / "model", tmp_path / "catalogue.jsonl", tmp_path / "out")
    path = tiny_training.write_recipe(tmp_path / "recipe.yaml", plan)
    with pytest.raises(UsageError, match=reason if len(text) < 1000 else "backbone") as caught:
        load_recipe(path, [f"backbone={text}"])
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    with pytest.raises(UsageError, match=reason):
        choice.check(text)


def test_a_file_of_a_package_is_pinned_to_what_came_first(hub_home, server, monkeypatch, llm):
    def publish(data):
        wheel = make_wheel("some-llm", "1.0", {"some_llm/a.gguf": data})
        server.files["/files/some_llm-1.0-py3-none-any.whl"] = File(wheel)
        listed = {"filename": "some_llm-1.0-py3-none-any.whl", "url": "/files/some_llm-1.0-py3-none-any.whl"}
        page = {
            "meta": {"api-version": "1.0"},
            "name": "some-llm",
            "files": [{**listed, "hashes": {"sha256": sha256(wheel)}}],
        }
        server.files["/simple/some-llm/"] = File(json.dumps(page).encode(), "application/vnd.pypi.simple.v1+json")
        return sha256(wheel)

    monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple")
    text = "pypi:some-llm==1.0#some_llm/a.gguf"
    first = publish(llm.read_bytes())
    config = choice.resolve(text, progress=False)
    assert (config.part.sha256, config.part.file, config.template) == (first, "some_llm/a.gguf", "chatml")
    assert not [path for path in (hub_home / "archives").iterdir() if not path.name.endswith(".lock")]
    asked = len(server.asked(".whl"))
    assert choice.resolve(text) == config and len(server.asked(".whl")) == asked  # remembered
    publish(llm.read_bytes() + b"\0" * 32)
    shutil.rmtree(hub_home / "parts")
    with pytest.raises(SensoriumError, match="not the pinned"):
        choice.resolve(text, progress=False)


def test_a_package_that_does_not_exist_is_one_sentence(hub_home, server, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple")
    with pytest.raises(SensoriumError, match=r"pypi:none-such==1\.0 could not be fetched") as caught:
        choice.resolve("pypi:none-such==1.0#x.gguf", progress=False)
    assert "\n" not in str(caught.value)
    monkeypatch.setenv("SENSORIUM_OFFLINE", "1")
    with pytest.raises(SensoriumError, match="SENSORIUM_OFFLINE"):
        choice.resolve("pypi:none-such==1.0#x.gguf", progress=False)


def test_another_backbone_takes_nothing_along_that_was_trained_for_the_first(tmp_path, llm):
    base = Composition.find(tiny.write(tmp_path / "model"))
    assert base.trained_files
    other = base.over(choice.resolve(f"file:{llm}"))
    assert other.spec.encoders == base.spec.encoders and other.part("backbone").source == f"file:{llm}"
    assert (other.spec.projectors, other.spec.lora, other.manifest, other.trained_files) == ({}, None, None, [])
    assert base.spec.projectors and base.trained_files  # the first is as it was


def test_a_run_with_another_backbone_carries_it_and_is_not_resumed_with_a_third(tmp_path, llm, monkeypatch):
    pytest.importorskip("torch")
    import sensorium
    from sensorium.training.run import train

    monkeypatch.setenv("SENSORIUM_HOME", str(tmp_path / "home"))
    catalogue = tiny_training.write_catalogue(tmp_path / "pictures")
    plan = tiny_training.recipe(tiny.write(tmp_path / "model"), catalogue, tmp_path / "out", train__steps=2)
    path = tiny_training.write_recipe(tmp_path / "recipe.yaml", plan)
    trained = train(path, [f"backbone=file:{llm}", "name=other"])
    written = yaml.safe_load((trained / "composition.yaml").read_text())
    assert written["name"] == "other" and written["backbone"]["part"]["source"] == f"file:{llm}"
    with GGUF(llm) as gguf:
        assert written["backbone"]["part"]["sha256"] == gguf.fingerprint
        assert json.loads((trained / "manifest.json").read_text())["frozen"]["backbone"] == gguf.fingerprint
    picture = np.zeros((32, 32, 3), np.uint8)
    assert isinstance(str(sensorium.load(trained, progress=False).ask("What?", picture, max_tokens=2)), str)
    with pytest.raises(SensoriumError, match="was written with backbone = "):
        train(path, ["name=other", "backbone=null"], tmp_path / "out")
    with pytest.raises(UsageError, match=r"was begun with backbone=file:.*; add --set backbone=file:"):
        train(path, ["name=other"], tmp_path / "out")
    llm.write_bytes(llm.read_bytes()[:-4] + b"\1\1\1\1")  # what was trained against is no longer there
    with pytest.raises(SensoriumError, match="pinned"):
        sensorium.load(trained, progress=False)


def test_embeddings_enter_a_projector_in_a_unit_that_keeps_rates_meaningful(tmp_path):
    torch = pytest.importorskip("torch")
    from types import SimpleNamespace

    from sensorium.training.projectors import USUAL_SCALE, embedding_unit

    def backbone(scale):
        table = torch.randn(300, 64, generator=torch.Generator().manual_seed(0)) * scale
        return SimpleNamespace(
            shape=SimpleNamespace(vocab=300), device=torch.device("cpu"), embed=lambda ids: table[ids]
        )

    assert [embedding_unit(backbone(USUAL_SCALE * times)) for times in (1.0, 0.9, 7.6, 0.25)] == [1, 1, 8, 0.25]
