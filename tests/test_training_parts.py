"""What a stage may train besides projector and LoRA: the whole backbone, and new tokens; from files and directories."""

from __future__ import annotations

import json
import re
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image as Pillow

import tiny
import tiny_training
from sensorium.backbones.gguf import GGUF
from sensorium.backbones.hf_folder import HFFolder
from sensorium.backbones.new_tokens import WithNewTokens
from sensorium.backbones.spec import spec_from_gguf
from sensorium.backbones.tokenizer import Tokenizer
from sensorium.cli import run
from sensorium.errors import SensoriumError, UsageError
from sensorium.messages import Message
from sensorium.prompt import render

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from sensorium.training import checkpoint  # noqa: E402
from sensorium.training.backbone import digest_frozen, load_llama, part_of  # noqa: E402
from sensorium.training.hf_write import write_backbone  # noqa: E402
from sensorium.training.load_backbone import check_writable  # noqa: E402
from sensorium.training.new_tokens import NewTokens  # noqa: E402

NAMES = ["<one>", "<two>"]
EVERYTHING = [{"name": "all", "trains": ["projector", "tokens", "backbone"]}]


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """The tiny composition, the same with its language model as a directory, and samples in a file."""
    directory = tmp_path_factory.mktemp("material")
    model = tiny.write(directory / "model")
    with GGUF(model / "llm.gguf") as gguf:
        llm = load_llama(gguf, spec_from_gguf(gguf), None, torch.float32)
    other = tiny.write(directory / "hf", lora=False, projector=False)
    write_backbone(llm, model / "llm.gguf", other / "llm")
    text = (model / "composition.yaml").read_text().partition("projectors:")[0]
    changed = text.replace("file:llm.gguf", "file:llm").replace("format: gguf", "format: hf")
    (other / "composition.yaml").write_text(changed)
    samples = []
    for i, (colour, name) in enumerate([((200, 30, 30), "<one>"), ((30, 30, 200), "<two>")] * 6):
        Pillow.new("RGB", (40, 30), colour).save(directory / f"{i}.png")
        asked = [{"type": "image", "image": f"{i}.png"}, {"type": "text", "text": "Which, <one> or <two>?"}]
        turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": f"It is {name}."}]
        samples.append(json.dumps({"id": f"s{i}", "messages": turns}) + "\n")
    (directory / "samples.jsonl").write_text("".join(samples))
    return {"gguf": model, "hf": other}, directory / "samples.jsonl"


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SENSORIUM_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("SENSORIUM_OFFLINE", "1")
        yield


def recipe(material, form, directory, /, **changes):
    plan = tiny_training.recipe(material[0][form], Path("unused"), directory / "out", train__row_tokens=128)
    plan |= {
        "lora": None,
        "tokens": {"names": NAMES},
        "data": {"sets": [{"path": str(material[1])}]},
        "stages": EVERYTHING,
    }
    plan["train"] |= {"learning_rate": {"projector": 0.01, "tokens": 0.01, "backbone": 0.003}, "steps": 12}
    plan |= changes
    return tiny_training.write_recipe(directory / "recipe.yaml", {k: v for k, v in plan.items() if v is not None})


def train(path, *arguments, capfd):
    code = run(["train", str(path), *map(str, arguments)])
    out, err = capfd.readouterr()
    assert "Traceback" not in out + err
    return code, err


def losses(output):
    return {line["step"]: line["loss"] for line in map(json.loads, (output / "log.jsonl").read_text().splitlines())}


# A directory of a language model that came from a file ----------------------------------------------------------------


def test_the_directory_of_a_file_is_the_same_model(material):
    """Tokens, specials, template, numbers: what the runtime reads of both."""
    import sensorium

    compositions, _ = material
    with GGUF(compositions["gguf"] / "llm.gguf") as gguf, HFFolder(compositions["hf"] / "llm") as folder:
        ours, theirs = Tokenizer.from_gguf(gguf), Tokenizer.from_gguf(folder)
        one, two = spec_from_gguf(gguf), spec_from_gguf(folder)
        for text in ("the cat and 123 <|im_end|>", "\n  Ünïcode 🙂", ""):
            assert ours.encode(text) == theirs.encode(text)
        assert all(ours.special(name) == theirs.special(name) for name in tiny.SPECIALS)
        assert (ours.eos_ids, ours.bos_id, ours.add_bos) == (theirs.eos_ids, theirs.bos_id, theirs.add_bos)
        facts = (
            "arch",
            "dim",
            "layers",
            "heads",
            "kv_heads",
            "head_dim",
            "ffn",
            "vocab",
            "context",
            "tied",
            "template",
        )
        assert all(getattr(one, name) == getattr(two, name) for name in facts)
        for name in gguf.tensors:
            assert np.array_equal(gguf.load(name), folder.load(name)), name
    asked = [Message("user", "What is a cat?")]
    logits = []
    for directory in (
        tiny.write(compositions["gguf"].parent / "bare", lora=False, projector=False),
        compositions["hf"],
    ):
        prepared = sensorium.load(directory, progress=False).prepare(asked)
        logits.append(prepared.engine.logits(prepared.segments))
    np.testing.assert_allclose(logits[0], logits[1], rtol=1e-5, atol=1e-5)


def test_transformers_reads_it_too(material):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    directory = material[0]["hf"] / "llm"
    with GGUF(material[0]["gguf"] / "llm.gguf") as gguf:
        ours, llm = Tokenizer.from_gguf(gguf), load_llama(gguf, spec_from_gguf(gguf), None, torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    ids = ours.encode("the cat and 12")
    assert tokenizer.encode("the cat and 12", add_special_tokens=False) == ids
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") == ours.special("<|im_end|>")
    mask = torch.full((len(ids), len(ids)), -1e4).triu(1)[None, None]
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(directory)(input_ids=torch.tensor([ids])).logits[0]
        hidden = llm(llm.embed(torch.tensor([ids])), torch.arange(len(ids))[None], mask)[0]
    torch.testing.assert_close(llm.logits(hidden), theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"tokenizer.ggml.model": "llama"}, "a tokenizer of the kind 'llama'"), ({}, "a gemma3 model")],
)
def test_a_file_of_which_no_directory_can_be_written_is_refused(material, change, reason):
    with GGUF(material[0]["gguf"] / "llm.gguf") as gguf:
        spec = spec_from_gguf(gguf)
        check_writable(gguf, spec)
        gguf.metadata.update(change)
        with pytest.raises(SensoriumError, match=f"{reason}, of which no Hugging Face directory .* train a lora"):
            check_writable(gguf, spec if change else type(spec)(**{**vars(spec), "arch": "gemma3"}))


# Training all of it ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["gguf", "hf"])
def test_backbone_and_new_tokens_learn_and_the_runtime_loads_them(material, form, tmp_path, capfd):
    from safetensors.torch import load_file

    import sensorium

    code, err = train(recipe(material, form, tmp_path), capfd=capfd)
    assert code == 0, err
    assert re.search(r"backbone +[\d,]+ +trained +float32", err) and re.search(r"tokens +128 +trained", err)
    seen = losses(tmp_path / "out" / "all")
    assert np.mean([seen[s] for s in range(9, 12)]) < 0.6 * seen[0]
    output = tmp_path / "out" / "composition"
    assert {path.name for path in (output / "backbone").iterdir()} >= {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    }
    declared = yaml.safe_load((output / "composition.yaml").read_text())
    assert (declared["backbone"]["format"], declared["backbone"]["part"]["source"]) == ("hf", "file:backbone")
    assert declared["new_tokens"]["names"] == NAMES
    manifest = json.loads((output / "manifest.json").read_text())
    with HFFolder(output / "backbone") as folder:
        assert manifest["frozen"]["backbone"] == folder.fingerprint
    assert manifest["backbone"]["trained"] and manifest["backbone"]["from"] != folder.fingerprint
    assert "the backbone learnt, so text without media differs" in err and "bit for bit" not in err
    assert "All of backbone and projector learnt; " in err and "sha256" not in err  # of nothing
    rows = load_file(output / "tokens.safetensors")
    assert {name: tuple(value.shape) for name, value in rows.items()} == {"embeddings": (2, tiny.DIM)}
    before, after = (
        sensorium.load(d, progress=False).prepare([Message("user", "Hi")]) for d in (material[0]["hf"], output)
    )
    was, now = before.engine.logits(before.segments), after.engine.logits(after.segments)
    assert was.shape == now.shape and np.abs(was - now).max() > 0.05
    answer = sensorium.load(output, progress=False).ask("Which?", image=str(material[1].parent / "0.png"), max_tokens=3)
    assert answer.usage.media_tokens == 4


def test_what_is_written_is_what_was_trained(material, tmp_path, capfd):
    """The runtime's logits for a training row are those of the weights in the checkpoint."""
    import sensorium

    stages = [{"name": "all", "trains": ["backbone"]}]
    code, err = train(recipe(material, "gguf", tmp_path, stages=stages, tokens=None), capfd=capfd)
    assert code == 0, err
    state = checkpoint.trained(tmp_path / "out" / "all")
    with GGUF(material[0]["gguf"] / "llm.gguf") as gguf:
        llm = load_llama(gguf, spec_from_gguf(gguf), None, torch.float32, master=True)
    with torch.no_grad():
        for name, parameter in llm.named_parameters():
            assert not torch.equal(parameter, state[f"backbone.{name}"]), name
            parameter.copy_(state[f"backbone.{name}"])
    prepared = sensorium.load(tmp_path / "out" / "composition", progress=False).prepare(
        [Message("user", "Hello there")]
    )
    ids = torch.tensor([prepared.rendered.ids()])
    mask = torch.full((ids.shape[1], ids.shape[1]), -1e4).triu(1)[None, None]
    with torch.no_grad():
        ours = llm.logits(llm(llm.embed(ids), torch.arange(ids.shape[1])[None], mask)[0]).numpy()
    np.testing.assert_allclose(prepared.engine.logits(prepared.segments), ours, rtol=1e-3, atol=1e-3)


def test_a_run_of_all_parts_is_resumed_to_the_same_end(material, tmp_path, capfd):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    stages = [{"name": "tokens", "trains": ["projector", "tokens"], "train": {"steps": 3}}, *EVERYTHING]
    one, two = (recipe(material, "gguf", tmp_path / name, stages=stages) for name in "ab")
    level = ("--set", "train.schedule=constant")  # or the rate would depend on where a run is meant to end
    assert train(one, "--set", "train.steps=6", *level, capfd=capfd)[0] == 0
    assert train(two, "--set", "train.steps=4", *level, capfd=capfd)[0] == 0
    (tmp_path / "b" / "out" / "all" / "done.json").unlink()
    code, err = train(two, "--set", "train.steps=6", *level, "--resume", tmp_path / "b" / "out", capfd=capfd)
    assert code == 0, err
    assert checkpoint.trained(tmp_path / "a" / "out" / "tokens").keys() >= {"tokens.new_tokens.embeddings"}
    assert not any(n.startswith("backbone.") for n in checkpoint.trained(tmp_path / "a" / "out" / "tokens"))
    states = [checkpoint.trained(tmp_path / name / "out" / "all") for name in "ab"]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_lora_on_a_directory_is_merged_by_the_runtime(material, tmp_path, capfd):
    import sensorium

    pytest.importorskip("peft")
    path = recipe(material, "hf", tmp_path, lora={"rank": 2, "alpha": 4}, tokens=None, stages=None)
    code, err = train(path, capfd=capfd)
    assert code == 0, err
    assert "text without media bit for bit the bare backbone's" in err
    model = sensorium.load(tmp_path / "out" / "composition", progress=False)
    assert model.ask("Which?", image=str(material[1].parent / "0.png"), max_tokens=3).usage.media_tokens == 4


# New tokens -----------------------------------------------------------------------------------------------------------


def llama(material, **options):
    with GGUF(material[0]["gguf"] / "llm.gguf") as gguf:
        return load_llama(gguf, spec_from_gguf(gguf), None, torch.float32, **options), Tokenizer.from_gguf(gguf)


def test_new_rows_stand_behind_the_old_ones_and_alone_have_gradients(material):
    llm, _ = llama(material)
    ids, known = torch.tensor([[5, llm.shape.vocab + 1, 7, llm.shape.vocab]]), torch.tensor([[5, 6, 7]])
    bare = llm.embed(known)
    hidden = torch.randn(4, tiny.DIM)
    scores = llm.logits(hidden)
    before = digest_frozen(llm)
    llm.add_tokens(NAMES)
    assert torch.equal(llm.embed(known), bare) and torch.equal(llm.logits(hidden)[:, :-2], scores)
    assert torch.equal(llm.embed(ids)[0, 1], llm.new_tokens.embeddings[1].to(bare.dtype))
    loss = llm.embed(ids).sum() + torch.nn.functional.cross_entropy(llm.logits(hidden), ids[0])
    loss.backward()
    learnt = {name for name, p in llm.named_parameters() if p.grad is not None}
    assert learnt == {"new_tokens.embeddings"} and {part_of(name) for name in learnt} == {"tokens"}
    assert digest_frozen(llm) == before


def test_a_head_of_its_own_gets_rows_of_its_own_and_a_scaled_table_scales_them():
    table, head = torch.randn(50, 8), torch.randn(50, 8)
    rows = NewTokens(NAMES, 50, table, head, scale=3.0)
    assert set(rows.saved()) == {"embeddings", "head"}
    embedded = rows.embed(torch.tensor([51]), lambda ids: table[ids] * 3.0)
    assert torch.equal(embedded[0], rows.embeddings[1] * 3.0)
    torch.testing.assert_close(rows.logits(torch.ones(1, 8))[0], rows.head.sum(1))
    away = (rows.embeddings - table.mean(0)).abs().max()
    assert 0 < away < 0.2  # near the mean row, and not two alike


def test_a_name_is_a_token_in_answers_alone(material):
    _, tokenizer = llama(material)
    names = [*NAMES, "<one"]
    both = WithNewTokens(tokenizer, names, 1000)
    turns = [Message("user", "say <one>"), Message("assistant", "a <one><two> b <one c")]
    rendered = render(turns, both, generate=False)
    said = [i for span in rendered.spans if span.target for i in span.ids]
    plain = [*tokenizer.encode("a "), 1000, 1001, *tokenizer.encode(" b "), 1002, *tokenizer.encode(" c")]
    assert said == [*plain, tokenizer.special("<|im_end|>")]
    assert not any(i >= 1000 for span in rendered.spans if not span.target for i in span.ids)
    assert both.special("<two>") == 1001 and both.special("<|im_end|>") == tokenizer.special("<|im_end|>")


def test_a_name_that_the_backbone_has_is_refused(material):
    _, tokenizer = llama(material)
    with pytest.raises(UsageError, match=r"'<\|im_end\|>', which the backbone has already"):
        WithNewTokens(tokenizer, ["<|im_end|>"], 1000)


# Epochs ---------------------------------------------------------------------------------------------------------------


def test_epochs_are_counted_before_the_first_step(material, tmp_path, capfd):
    """Twelve samples, one a row of two rows: six steps an epoch, each sample seen as often as there are epochs."""
    changes = {"stages": None, "tokens": None}
    path = recipe(material, "gguf", tmp_path, **changes)
    sets = (
        "--set",
        "train.steps=null",
        "--set",
        "train.epochs=2",
        "--set",
        "train.rows=2",
        "--set",
        "train.row_tokens=64",
    )
    code, err = train(path, *sets, "--set", "train.schedule=linear", capfd=capfd)
    assert code == 0, err
    lines = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(12))
    assert lines[-1]["rate"] == pytest.approx(0.03 + 0.97 / 12)
    assert re.search(r"^12 steps of 2 rows", err, re.M)


def test_data_too_small_for_a_step_are_said(material, tmp_path, capfd):
    path = recipe(material, "gguf", tmp_path, stages=None, tokens=None)
    sets = ("--set", "train.steps=null", "--set", "train.epochs=2", "--set", "train.rows=32")
    code, err = train(path, *sets, capfd=capfd)
    assert code == 1 and "lower train.rows" in err, err


# Cost and choice ------------------------------------------------------------------------------------------------------


def test_memory_counts_what_learns(material):
    """Weights, gradient and two moments in float32; in bf16 a cast of each matrix as well."""
    from types import SimpleNamespace

    from sensorium.training.overview import memory
    from sensorium.training.recipe import TrainRecipe

    train = TrainRecipe.model_validate({"steps": 1, "rows": 2, "learning_rate": {"projector": 0.1}})
    stage, projector = SimpleNamespace(train=train), torch.nn.Linear(2, 2)
    for parameter in projector.parameters():
        parameter.requires_grad_(False)
    llm, _ = llama(material)
    weights = sum(p.numel() for p in llm.parameters())
    still = memory(stage, projector, llm)
    for parameter in llm.parameters():
        parameter.requires_grad_(True)
    assert memory(stage, projector, llm) - still == 12 * weights
    with GGUF(material[0]["gguf"] / "llm.gguf") as gguf:
        coarse = load_llama(gguf, spec_from_gguf(gguf), None, torch.bfloat16)
        master = load_llama(gguf, spec_from_gguf(gguf), None, torch.bfloat16, master=True)
    matrices = sum(p.numel() for p in master.parameters() if p.ndim > 1)
    assert memory(stage, projector, master) - memory(stage, projector, coarse) == (4 - 2 + 2) * matrices


def test_a_stage_that_no_memory_could_hold_is_refused_before_the_first(material, tmp_path, capfd):
    later = [{"name": "small", "train": {"steps": 1}}, {"name": "large", "train": {"rows": 65536, "row_tokens": 8192}}]
    path = recipe(material, "gguf", tmp_path, stages=later, tokens=None)
    code, err = train(path, capfd=capfd)
    assert code == 1 and "part  " not in err
    assert "Stage large needs about" in err and "; lower train.rows (65536) or train.row_tokens (8192)." in err


def test_what_to_lower_depends_on_what_takes_the_memory(material, monkeypatch):
    from types import SimpleNamespace

    from sensorium.training import overview
    from sensorium.training.recipe import StageRecipe

    def stage(**train):
        values = {"steps": 1, "rows": 2, "learning_rate": {"projector": 0.1}, **train}
        return StageRecipe.model_validate({"name": "a", "data": {"scenes": 1}, "train": values})

    projector, (llm, _) = torch.nn.Linear(2, 2), llama(material)
    needs = overview.memory(stage(), projector, llm)
    for has, train, said in (
        (needs, {}, ""),
        (0, {}, ""),  # nobody knows
        (needs - 1, {}, r"this machine has 0\.\d GB; lower train\.rows \(2\) or train\.row_tokens \(160\)\."),
        (1e6, {}, "train fewer parts, or choose a smaller backbone"),
        (1e6, {"processes": 2}, r"lower train\.processes \(2\), or divide the model with train\.sharding=full"),
    ):
        monkeypatch.setattr(overview, "total", lambda _, has=has: has)
        with pytest.raises(SensoriumError, match=said) if said else nullcontext():
            overview.check_memory(stage(**train), projector, llm)
    plan = SimpleNamespace(train=SimpleNamespace(sharding="full", processes=1))
    assert "divides nothing in one process" in overview.divided_how(plan)


def test_set_puts_a_directory_in_the_place_of_the_backbone(material, tmp_path, capfd):
    path = recipe(material, "gguf", tmp_path, stages=None, tokens=None)
    folder = material[0]["hf"] / "llm"
    code, err = train(path, "--set", f"backbone=file:{folder}", "--set", "train.steps=2", capfd=capfd)
    assert code == 0, err
    output = tmp_path / "out" / "composition"
    declared = yaml.safe_load((output / "composition.yaml").read_text())["backbone"]
    assert (declared["format"], declared["part"]["source"]) == ("hf", f"file:{folder}")
    assert run(["ask", "Hello", "--model", str(output), "--max-tokens", "2"]) == 0
