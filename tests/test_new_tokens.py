"""New tokens at runtime: their rows in both engines, the bare backbone beside them, names, seams."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from safetensors.numpy import save_file

import hf_folders
import tiny
import tiny_llm
from sensorium.backbones.engine import Engine, SamplingParams, Segment
from sensorium.backbones.gguf import GGUF
from sensorium.backbones.new_tokens import NewRows, WithNewTokens
from sensorium.backbones.onnx_graph import build
from sensorium.backbones.spec import spec_from_gguf
from sensorium.backbones.tokenizer import Tokenizer
from sensorium.composition import Composition, file_sha256
from sensorium.errors import SensoriumError
from sensorium.loading import Parts
from sensorium.messages import parse_messages
from sensorium.model import Model
from test_engine import ids, picture

NAMES = ("<one>", "<two>", "<three>")
OWN = tiny_llm.VOCAB
PROMPT = [Segment(ids=(*ids(30, 1), OWN + 1)), Segment(embeds=picture(2), key="p"), Segment(ids=(OWN, 5, OWN + 2))]


def write_rows(path: Path, count: int = 3, dim: int = tiny.DIM, *, tied: bool = True, scale: float = 0.5) -> Path:
    random = np.random.default_rng(4)
    names = ["embeddings"] if tied else ["embeddings", "head"]
    save_file({name: random.normal(0, scale, (count, dim)).astype(np.float32) for name in names}, path)
    return path


def built(gguf: Path, directory: Path, **options) -> Path:
    with GGUF(gguf) as source:
        return build(source, directory, **options)


def logits(engine: Engine, prompt=PROMPT) -> np.ndarray:
    return engine.logits(prompt)


# Engines --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arch", "tied", "quantization"),
    [("llama", True, "fp32"), ("llama", True, "int8"), ("qwen2", False, "int8"), ("gemma3", True, "fp32")],
)
def test_rows_stand_behind_the_vocabulary_and_change_none_of_it(tmp_path, arch, tied, quantization):
    gguf = tiny_llm.write_gguf(tmp_path / "model.gguf", arch, tied=tied)
    rows = write_rows(tmp_path / "rows.safetensors", tied=tied)
    bare = Engine(built(gguf, tmp_path / "bare", quantization=quantization), threads=1)
    wide = Engine(built(gguf, tmp_path / "wide", quantization=quantization, new_tokens=rows), threads=1)
    assert (bare.spec.vocab, wide.spec.vocab) == (OWN, OWN + 3)
    read = NewRows(rows, bare.spec)
    scale = tiny_llm.DIM**0.5 if arch == "gemma3" else 1
    mixed = wide.embed([7, OWN + 2, 0, OWN])
    np.testing.assert_array_equal(mixed[[0, 2]], bare.embed([7, 0]))
    np.testing.assert_allclose(mixed[[1, 3]], read.embeddings[[2, 0]] * scale, rtol=1e-6)
    known = [Segment(ids=ids(20, 1)), Segment(embeds=picture(2))]
    np.testing.assert_array_equal(logits(wide, known)[:, :OWN], logits(bare, known))
    np.testing.assert_allclose(logits(wide)[:, OWN:], wide.hidden_states(PROMPT) @ read.head.T, rtol=1e-4, atol=1e-4)


def test_a_graph_without_new_tokens_has_the_bytes_it_had(tmp_path):
    """Take what new tokens add out of a graph: every byte of what is left is that of the bare one."""
    gguf = tiny_llm.write_gguf(tmp_path / "model.gguf", four_bits=True)
    rows = write_rows(tmp_path / "rows.safetensors")
    bare = built(gguf, tmp_path / "bare")
    wide = built(gguf, tmp_path / "wide", new_tokens=rows)
    assert not (bare / "model.json").read_text().count("new")
    own = (bare / "weights.bin").read_bytes()
    assert (wide / "weights.bin").read_bytes()[: len(own)] == own
    graph = onnx.load(wide / "model.onnx", load_external_data=False)
    added = [node for node in graph.graph.node if node.name in ("new_logits", "logits")]
    assert [node.op_type for node in added] == ["FusedMatMul", "Concat"]
    for node in added:
        graph.graph.node.remove(node)
    (matrix,) = (proto for proto in graph.graph.initializer if proto.name == "new_logits.weight")
    graph.graph.initializer.remove(matrix)
    graph.graph.output[0].type.tensor_type.shape.dim[2].dim_value -= 3
    left = graph.SerializeToString()
    for part in (b"own_logits.codes", b"own_logits.scales", b"own_logits.zeros", b"own_logits"):
        assert part in left
    for node in graph.graph.node:
        for names in (node.input, node.output):
            names[:] = [name.replace("own_logits", "logits") for name in names]
        node.name = node.name.replace("own_logits", "logits")
    for proto in graph.graph.initializer:
        proto.name = proto.name.replace("own_logits", "logits")
    assert graph.SerializeToString() == (bare / "model.onnx").read_bytes()


@pytest.mark.parametrize("arch", ["llama", "gemma3"])
def test_the_torch_engine_agrees(tmp_path, arch):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from sensorium.backbones.hf_folder import HFFolder
    from sensorium.backbones.hf_spec import spec_of
    from sensorium.backbones.torch_engine import TorchEngine, TorchModel

    gguf = tiny_llm.write_gguf(tmp_path / "model.gguf", arch, tied=arch == "gemma3")
    rows = write_rows(tmp_path / "rows.safetensors", tied=arch == "gemma3")
    lora = tmp_path / "lora.safetensors"
    tiny_llm.write_lora(lora)
    with HFFolder(hf_folders.from_gguf(gguf, tmp_path / "hf")) as folder:
        model = TorchModel(tmp_path / "hf", spec_of(folder), "cpu")
    bare, known = TorchEngine(model), [Segment(ids=ids(20, 1))]
    before = logits(bare, known)
    for name, changes in {"rows": {}, "both": {"lora": lora}}.items():
        onnx_engine = Engine(built(gguf, tmp_path / name, quantization="fp32", new_tokens=rows, **changes), threads=1)
        torch_engine = TorchEngine(model, new_tokens=rows, **changes)
        np.testing.assert_allclose(logits(torch_engine), logits(onnx_engine), rtol=1e-3, atol=2e-3)
        steps = [list(engine.generate(PROMPT, SamplingParams(max_tokens=9))) for engine in (onnx_engine, torch_engine)]
        assert [step.token for step in steps[0]] == [step.token for step in steps[1]]
        assert logits(torch_engine, known).shape[1] == OWN + 3
    np.testing.assert_array_equal(logits(bare, known), before)  # the same weights, what was added left out


def test_batches_take_new_tokens(tmp_path):
    """Rows long enough to be said: a batch says what each prompt says alone, new tokens among it."""
    gguf = tiny_llm.write_gguf(tmp_path / "model.gguf")
    rows = write_rows(tmp_path / "rows.safetensors", 8, scale=1.5)
    engine = Engine(built(gguf, tmp_path / "wide", new_tokens=rows), threads=1)
    prompts, params = [[Segment(ids=ids(n, n))] for n in (3, 9, 4)], SamplingParams(max_tokens=12)
    alone = [[step.token for step in engine.generate(prompt, params)] for prompt in prompts]
    together = list(zip(*([step and step.token for step in steps] for steps in engine.generate_batch(prompts, params))))
    assert [list(said) for said in together] == alone
    assert max(max(said) for said in alone) >= OWN


# Names ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def directory(tmp_path, monkeypatch):
    """The tiny composition with three new tokens."""
    monkeypatch.setenv("SENSORIUM_HOME", str(tmp_path / "home"))
    base = tiny.write(tmp_path / "tiny", lora=False)
    write_rows(base / "tokens.safetensors")
    declare(base)
    return base


def declare(base: Path, names=NAMES) -> None:
    path = base / "composition.yaml"
    text = path.read_text().partition("new_tokens:")[0]
    path.write_text(text + f"new_tokens: {{weights: tokens.safetensors, names: {json.dumps(list(names))}}}\n")
    relist(base)


def relist(base: Path) -> None:
    manifest = json.loads((base / "manifest.json").read_text())
    for name in (*manifest["files"], "tokens.safetensors"):
        if (base / name).exists():
            manifest["files"][name] = file_sha256(base / name)
    (base / "manifest.json").write_text(json.dumps(manifest))


def test_names_are_read_in_answers_and_shown_by_name(tmp_path):
    tiny.write_gguf(tmp_path / "llm.gguf", np.random.default_rng(0))
    with GGUF(tmp_path / "llm.gguf") as gguf:
        bare, first = Tokenizer.from_gguf(gguf), spec_from_gguf(gguf).vocab
    both = WithNewTokens(bare, NAMES, first)
    text = "say <one> the <|im_end|>"
    assert both.encode(text) == bare.encode(text) == bare.encode_answer(text)
    read = both.encode_answer("say <one><three>.")
    assert read == [*bare.encode("say "), first, first + 2, *bare.encode(".")]
    assert both.decode(read) == "say <one><three>." and not both.is_special(first)
    stream, half = both.stream(), "é".encode()[:1]
    cut = next(i for i in range(first) if bare.token_bytes(i) == half)
    assert stream.push(cut) + stream.push(first + 1) + stream.flush() == "�<two>"
    assert both.decode([both.special("<|im_end|>")]) == ""
    with pytest.raises(SensoriumError, match="outside the vocabulary"):
        both.token_bytes(first + 3)
    with pytest.raises(SensoriumError, match="outside the vocabulary"):
        bare.token_bytes(first)


def test_text_alone_is_the_bare_backbone_and_shares_its_graph(directory, tmp_path):
    base = tiny.write(tmp_path / "plain", lora=False, projector=False)
    text = (base / "composition.yaml").read_text()
    (base / "composition.yaml").write_text(text.replace("file:llm.gguf", f"file:{directory / 'llm.gguf'}"))
    plain = Model(Composition(base), 1, False).load()
    model = Model(Composition(directory), 1, False).load()
    turns = [{"role": "user", "content": "Which?"}, {"role": "assistant", "content": "<one>"}]
    turns.append({"role": "user", "content": "<two>?"})
    ours, theirs = (m.chat(turns, max_tokens=12, logprobs=3) for m in (model, plain))
    assert (ours, ours.logprobs) == (theirs, theirs.logprobs)
    prepared, wanted = (m.prepare(parse_messages(turns)) for m in (model, plain))
    assert prepared.rendered == wanted.rendered  # an answer's name, too, is plain text there
    np.testing.assert_array_equal(logits(prepared.engine, prepared.segments), logits(wanted.engine, wanted.segments))
    assert len([path for path in (tmp_path / "home" / "graphs").iterdir() if path.is_dir()]) == 1
    assert model.parts.media.get() is not model.parts.bare.get()
    assert plain.parts.media is plain.parts.bare


# Seams ----------------------------------------------------------------------------------------------------------------


def sentence(directory: Path) -> str:
    try:
        parts = Parts(Composition.find(directory), progress=False)
        parts.check()
        parts.media.get()
    except SensoriumError as error:
        assert "\n" not in str(error)
        return str(error)
    return ""


def test_new_tokens_that_fit_are_taken(directory):
    assert sentence(directory) == ""


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["<one>", "<one>", "<two>"], r"line \d+: new_tokens.names.*stands there twice"),
        (["<one>", "<two>", "<|im_end|>"], r"line \d+: '<\|im_end\|>' is a token of the backbone already"),
        (["<one>", "<two>", "the"], r"line \d+: 'the' is a token of the backbone already"),
        (["<one>", "<two>"], r"line \d+: the new tokens .* have embeddings of shape 3x64, but 2 names .* need 2x64"),
        (["<one>", "two words", "<two>"], r"line \d+: new_tokens.names.1 is 'two words'"),
        (["<one>", "x" * 65, "<two>"], r"line \d+: new_tokens.names.1"),
        ([], r"line \d+: new_tokens.names"),
        ([f"<{i}>" for i in range(4097)], r"line \d+: new_tokens.names"),
    ],
)
def test_names_that_cannot_be_are_refused(directory, names, reason):
    declare(directory, names)
    found = sentence(directory)
    assert re.search(reason, found), found


def damaged(**tensors):
    return lambda base: save_file(tensors, base / "tokens.safetensors")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (damaged(embeddings=np.zeros((3, 32), np.float32)), "have embeddings of shape 3x32, but 3 names .* need 3x64"),
        (damaged(rows=np.zeros((3, 64), np.float32)), "hold rows, but a backbone whose output head is its embedding"),
        (
            damaged(embeddings=np.zeros((3, 64), np.float32), head=np.zeros((3, 64), np.float32)),
            "hold embeddings and head, but",
        ),
        (damaged(embeddings=np.full((3, 64), np.nan, np.float32)), "hold values in embeddings that are not finite"),
        (damaged(embeddings=np.ones((), np.float32)), "have embeddings of shape one number"),
        (lambda base: (base / "tokens.safetensors").write_bytes(b"no"), "is not a safetensors file"),
        (lambda base: (base / "tokens.safetensors").unlink(), "tokens.safetensors is missing"),
    ],
)
def test_files_that_do_not_fit_are_refused(directory, damage, reason):
    damage(directory)
    relist(directory)
    found = sentence(directory)
    assert re.search(reason, found), found


def test_a_changed_file_and_tokens_that_nothing_could_use_are_refused(directory, tmp_path):
    write_rows(directory / "tokens.safetensors", scale=1.0)
    assert "tokens.safetensors has sha256" in sentence(directory)
    bare = tiny.write(tmp_path / "bare", lora=False, projector=False)
    write_rows(bare / "tokens.safetensors")
    declare(bare)
    assert "no projector is declared, so they could never be used" in sentence(bare)


def test_parts_lists_them(directory, capsys):
    from sensorium.parts import describe_parts, table

    described = describe_parts(Model(Composition(directory), 1, False).load())
    assert described["parts"][-1]["seam"] == "3 rows behind the vocabulary of 265; active: with pictures"
    table(described)
    assert "The new tokens are active only in conversations that hold pictures" in capsys.readouterr().out
