"""Hugging Face directories as language models: the same graph as from GGUF, the same numbers as transformers."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import hf_folders
import tiny
import tiny_llm
from sensorium.backbones.engine import Engine, Segment
from sensorium.backbones.gguf import GGUF
from sensorium.backbones.hf_folder import HFFolder, Unsupported
from sensorium.backbones.hf_spec import spec_of, why_not_onnx
from sensorium.backbones.onnx_graph import build
from sensorium.backbones.spec import spec_from_gguf
from sensorium.backbones.tokenizer import Tokenizer
from sensorium.errors import SensoriumError
from test_onnx_graph import IDS, nmse

ARCHITECTURES = [("llama", True), ("llama", False), ("qwen2", True), ("qwen3", False), ("gemma3", True)]
NASTY = [
    "", " ", "  a", "the then\nthan", "\t\r\n x", "été naïve", "日本語", "👩‍👩‍👧 family", "1234567", "a" * 300,
    "\u200b\u00a0", "<|im_start|>user", "<|im_end|><|im_end|>", "a<|endoftext|>b", "\x00\x01", "don't WON'T",
    "�", "… — “q”",
]  # fmt: skip


@pytest.mark.parametrize(("arch", "tied"), ARCHITECTURES)
def test_a_directory_gives_the_graph_of_its_gguf_conversion(tmp_path: Path, arch: str, tied: bool) -> None:
    graph = tiny_llm.prepared(tmp_path / "gguf", arch, tied=tied)
    with HFFolder(hf_folders.from_gguf(graph / "model.gguf", tmp_path / "hf")) as folder:
        assert why_not_onnx(folder) == ""
        build(folder, tmp_path / "graph", quantization="fp32")
    for name in ("weights.bin", "model.onnx"):
        assert (tmp_path / "graph" / name).read_bytes() == (graph / name).read_bytes(), name


@pytest.mark.parametrize(("arch", "tied"), ARCHITECTURES)
def test_what_transformers_saves_computes_what_transformers_computes(tmp_path: Path, arch: str, tied: bool) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    reference = tiny_llm.reference(tiny_llm.write_gguf(tmp_path / "model.gguf", arch, tied=tied))
    shards = {"max_shard_size": "100KB"} if arch == "qwen3" else {}
    bf16 = arch == "qwen2"
    (reference.to(torch.bfloat16) if bf16 else reference).save_pretrained(tmp_path / "hf", **shards)
    if bf16:  # the values that it kept
        reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    hf_folders.write_tokenizer(tmp_path / "hf", [chr(0x4E00 + i) for i in range(tiny_llm.VOCAB)], [], [])
    with HFFolder(tmp_path / "hf") as folder:
        assert (len(folder._files) > 3) == bool(shards)
        assert folder.tensors["token_embd.weight"].type == ("BF16" if bf16 else "F32")
        build(folder, tmp_path / "fp32", quantization="fp32")
        build(folder, tmp_path / "int8", quantization="int8")
    with torch.no_grad():
        wanted = reference(torch.tensor([IDS])).logits[0].numpy()
    assert nmse(Engine(tmp_path / "fp32", threads=1).logits([Segment(ids=IDS)]), wanted) < 1e-9
    assert 1e-9 < nmse(Engine(tmp_path / "int8", threads=1).logits([Segment(ids=IDS)]), wanted) < 2e-2


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_scaling": {"rope_type": "llama3", **LLAMA3}},
        {"rope_scaling": {"type": "linear", "factor": 4.0}},
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e3, **LLAMA3}},
        {"model_type": "mistral", "sliding_window": None},
    ],
)
def test_stretched_positions_are_those_of_transformers(tmp_path: Path, scaling: dict[str, Any]) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    directory = hf_folders.from_gguf(tiny_llm.write_gguf(tmp_path / "model.gguf"), tmp_path / "hf", **scaling)
    with HFFolder(directory) as folder:
        build(folder, tmp_path / "graph", quantization="fp32")
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    with torch.no_grad():
        wanted = model(torch.tensor([IDS])).logits[0].numpy()
    assert nmse(Engine(tmp_path / "graph", threads=1).logits([Segment(ids=IDS)]), wanted) < 1e-9


# -- the tokenizer


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The tiny GGUF with a byte-level BPE and ChatML, and its directory."""
    base = tmp_path_factory.mktemp("hf")
    tiny.write_gguf(base / "llm.gguf", np.random.default_rng(0))
    return base / "llm.gguf", hf_folders.from_gguf(base / "llm.gguf", base / "hf")


def test_the_tokenizer_is_that_of_the_gguf_file(both: tuple[Path, Path]) -> None:
    with GGUF(both[0]) as gguf, HFFolder(both[1]) as folder:
        one, other = Tokenizer.from_gguf(gguf), Tokenizer.from_gguf(folder)
        assert (spec := spec_of(folder)) and spec.eos_ids == spec_from_gguf(gguf).eos_ids == other.eos_ids
    for text in NASTY:
        assert other.encode(text) == one.encode(text), text
        assert other.decode(other.encode(text)) == text
        assert not any(other.is_special(token) for token in other.encode(text))
    for name in tiny.SPECIALS:
        assert other.special(name) == one.special(name)
    assert (other.vocab_size, other.bos_id, other.add_bos) == (one.vocab_size, one.bos_id, one.add_bos)


def test_the_tokenizer_is_that_of_the_library_but_for_special_tokens(tmp_path: Path) -> None:
    """A pipeline as Gemma has it: spaces as U+2581, bytes where words lack, a template that adds <bos>."""
    tokenizers = pytest.importorskip("tokenizers")
    words = [
        "<pad>",
        "<eos>",
        "<bos>",
        "<unk>",
        *(f"<0x{i:02X}>" for i in range(256)),
        "▁",
        *"abcdefgh",
        "▁a",
        "ab",
        "\n\n",
    ]
    words += ["<start_of_turn>", "<h1>", "<unused0>"]
    library = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            {w: i for i, w in enumerate(words)}, [("▁", "a"), ("a", "b")], unk_token="<unk>", byte_fallback=True
        )
    )
    library.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    library.decoder = tokenizers.decoders.Sequence(
        [tokenizers.decoders.Replace("▁", " "), tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse()]
    )
    library.post_processor = tokenizers.processors.TemplateProcessing("<bos> $A", special_tokens=[("<bos>", 2)])
    library.add_special_tokens(["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>"])
    library.add_tokens([tokenizers.AddedToken(text, normalized=False) for text in ("\n\n", "<h1>", "<unused0>")])
    library.enable_truncation(5)
    gguf = tiny_llm.write_gguf(tmp_path / "model.gguf")
    directory = hf_folders.from_gguf(gguf, tmp_path / "hf")
    library.save(str(directory / "tokenizer.json"))
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 268]}))
    library.no_truncation()
    with HFFolder(directory) as folder:
        ours = Tokenizer.from_gguf(folder)
    assert (ours.bos_id, ours.add_bos, ours.eos_ids) == (2, True, frozenset({1, 268}))
    for text in ["a ab  abc\n\nd", " a", "日本", "ab" * 20, "\n\n\n"]:
        assert ours.encode(text) == library.encode(text, add_special_tokens=False).ids, text
        assert ours.decode(ours.encode(text)) == text
    for text in ["<bos>", "a<start_of_turn>b", "<h1>", "<eos><unk>", "<unused0>"]:
        ids = ours.encode(text)
        assert ours.decode(ids) == text and not any(ours.is_special(token) for token in ids)


# -- fingerprints


def test_the_fingerprint_changes_with_config_weights_and_tokenizer(both: tuple[Path, Path], tmp_path: Path) -> None:
    def of(change: Callable[[Path], None]) -> str:
        directory = hf_folders.from_gguf(both[0], tmp_path / str(len(list(tmp_path.iterdir()))))
        change(directory)
        with HFFolder(directory) as folder:
            return folder.fingerprint

    same = of(lambda d: None)
    assert same == of(lambda d: (d / "README.md").write_text("x") and None)
    others = {
        of(lambda d: hf_folders.edit(d / "config.json", rope_theta=2e4)),
        of(lambda d: hf_folders.edit(d / "tokenizer.json", version="2.0")),
        of(lambda d: flip(d / "model.safetensors")),
        of(lambda d: hf_folders.shard(d)),
    }
    assert len(others | {same}) == 5


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


# -- what no door may open


def header(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Rewrite the header of the weights."""

    def damage(directory: Path) -> None:
        path = directory / "model.safetensors"
        data = path.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        fields = json.loads(data[8 : 8 + length])
        text = change(fields)
        text = text if isinstance(text, bytes) else json.dumps(fields).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])

    return damage


def tensors(change: Callable[[dict[str, np.ndarray]], Any]) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        state = load_file(directory / "model.safetensors")
        change(state)
        save_file(state, directory / "model.safetensors")

    return damage


def config(**changes: Any) -> Callable[[Path], None]:
    return lambda d: hf_folders.edit(d / "config.json", **changes)


def tokens(**changes: Any) -> Callable[[Path], None]:
    return lambda d: hf_folders.edit(d / "tokenizer.json", **changes)


def index(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        hf_folders.shard(directory)
        path = directory / "model.safetensors.index.json"
        data = json.loads(path.read_text())
        change(data)
        path.write_text(json.dumps(data))

    return damage


def pickled(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")


def fifo(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    os.mkfifo(directory / "model.safetensors")


Q = "model.layers.0.self_attn.q_proj.weight"
BIG = 1 << 62
BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda d: (d / "config.json").unlink(), "no file config.json"),
    "config no json": (lambda d: (d / "config.json").write_text("{"), "config.json that is no JSON"),
    "config a list": (lambda d: (d / "config.json").write_text("[]"), "holds no mapping"),
    "config deep": (lambda d: (d / "config.json").write_text("[" * 100_000), "no JSON"),
    "config large": (lambda d: (d / "config.json").write_text(" " * (5 << 20)), "more than 4 MiB"),
    "size missing": (config(hidden_size=None), "gives None for hidden_size"),
    "size a text": (config(num_attention_heads="4"), "gives '4' for num_attention_heads"),
    "size negative": (config(num_key_value_heads=-2), "gives -2 for num_key_value_heads"),
    "size true": (config(intermediate_size=True), "gives True for intermediate_size"),
    "layers beyond all": (config(num_hidden_layers=1_000_000_000), "claims 1000000000 layers"),
    "layers too many": (config(num_hidden_layers=9), "lacks the tensor 'model.layers.2"),
    "heads that do not divide": (config(num_attention_heads=3), "3 heads of width 16 over 2"),
    "width of another model": (config(hidden_size=128), "no embedding matrix of the width"),
    "theta nan": (config(rope_theta=float("nan")), "nan for rope_theta"),
    "rope no mapping": (config(rope_scaling="linear"), "for its rotary embedding"),
    "vocabulary of another model": (config(vocab_size=7), "its embeddings are 7"),
    "vocabulary huge": (config(vocab_size=(1 << 31) - 1), "claims a vocabulary"),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), "neither model.safetensors nor"),
    "a pickle": (pickled, "pytorch_model.bin, a form that can run code"),
    "an adapter": (lambda d: (d / "adapter_config.json").write_text("{}"), "is an adapter"),
    "weights a pipe": (fifo, "no regular file"),
    "weights empty": (lambda d: (d / "model.safetensors").write_bytes(b""), "fewer than 8 bytes"),
    "weights a web page": (lambda d: (d / "model.safetensors").write_bytes(b"<!DOCTYPE html>"), "claims a header of"),
    "weights cut off": (lambda d: os.truncate(d / "model.safetensors", 50_000), "ends before its tensor"),
    "header no json": (header(lambda f: b"{" * 99), "header that cannot be read"),
    "header a list": (header(lambda f: b"[1]"), "no list of tensors"),
    "header twice": (header(lambda f: b'{"a": {}, "a": {}}'), "the key 'a' twice"),
    "tensor of no type": (header(lambda f: f[Q].update(dtype="Q4")), "unknown type 'Q4'"),
    "tensor of integers": (tensors(lambda t: t.update({Q: t[Q].astype(np.int32)})), "stores .* as I32"),
    "shape negative": (header(lambda f: f[Q].update(shape=[-64, 64])), "senselessly"),
    "shape huge": (header(lambda f: f[Q].update(shape=[BIG, 64])), "senselessly"),
    "shape of other bytes": (header(lambda f: f[Q].update(shape=[64, 65])), "which takes"),
    "offsets overlap": (header(lambda f: f[Q].update(data_offsets=[0, 16384])), "overlap"),
    "offsets outside": (header(lambda f: f[Q].update(data_offsets=[BIG // 8, BIG // 8 + 16384])), "ends before"),
    "offsets backwards": (header(lambda f: f[Q].update(data_offsets=[16384, 0])), "gives -16384 bytes"),
    "tensor missing": (tensors(lambda t: t.pop(Q)), f"lacks the tensor '{Q}'"),
    "tensor of another shape": (tensors(lambda t: t.update({Q: t[Q][:32]})), f"{Q} of the shape"),
    "tensor of no such model": (tensors(lambda t: t.update(x=t[Q])), "'x', which no llama model has"),
    "values not finite": (tensors(lambda t: t[Q].fill(np.nan)), "not finite"),
    "index without a map": (index(lambda i: i.pop("weight_map")), "without a weight_map"),
    "index climbs": (index(lambda i: i["weight_map"].update({Q: "../x.safetensors"})), "no file inside it"),
    "index absolute": (index(lambda i: i["weight_map"].update({Q: "/etc/passwd"})), "no file inside it"),
    "index of a pickle": (index(lambda i: i["weight_map"].update({Q: "x.bin"})), "no file inside it"),
    "index of no file": (index(lambda i: i["weight_map"].update({Q: "x.safetensors"})), "does not exist"),
    "index of other tensors": (index(lambda i: i["weight_map"].update(y=i["weight_map"][Q])), "does not hold"),
    "no tokenizer": (lambda d: (d / "tokenizer.json").unlink(), "no tokenizer.json"),
    "tokenizer of another kind": (tokens(model={"type": "Unigram", "vocab": []}), "'Unigram'"),
    "tokenizer ids": (tokens(model={"type": "BPE", "vocab": {"a": -1}, "merges": []}), "gives the id -1"),
    "added tokens": (tokens(added_tokens=[{"id": "x"}]), "without text or id"),
    "merges of nothing": (tokens(model={"type": "BPE", "vocab": {"a": 1}, "merges": ["q r"]}), "cannot be used"),
    "pipeline of nothing": (tokens(pre_tokenizer={"type": "ByteLevel", "nested": 3}), "cannot be used"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_directories_end_in_one_sentence(both: tuple[Path, Path], tmp_path: Path, name: str) -> None:
    damage, says = BAD[name]
    directory = hf_folders.from_gguf(both[0], tmp_path / "hf")
    damage(directory)
    with pytest.raises(SensoriumError, match=says) as error, HFFolder(directory) as folder:
        _ = folder.tensors
        spec_from_gguf(folder)
        Tokenizer.from_gguf(folder)
        build(folder, tmp_path / "graph")
    text = str(error.value)
    assert text.endswith(".") and "\n" not in text and len(text) < 600 and str(directory) in text


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model_type": "gpt2"}, "type 'gpt2'"),
        ({"model_type": ["llama"]}, r"type \['llama'\]"),
        ({"hidden_act": "gelu"}, "activation 'gelu'"),
        ({"attention_bias": True}, "attention_bias"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"partial_rotary_factor": 0.5}, "part of each head"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "'yarn'"),
        ({"model_type": "mistral", "sliding_window": 8}, "sliding window of 8"),
        ({"model_type": "qwen2", "use_sliding_window": True}, "use_sliding_window"),
        ({"model_type": "gemma3_text", "layer_types": ["full_attention"] * 2}, "every sixth"),
        ({"model_type": "gemma3_text", "final_logit_softcapping": 30.0}, "softcapping"),
        ({"model_type": "gemma3_text", "query_pre_attn_scalar": 99}, "another width"),
    ],
)  # fmt: skip
def test_what_a_graph_would_leave_out_is_for_another_engine(
    both: tuple[Path, Path], tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    extra = {"sliding_window": 8, "query_pre_attn_scalar": 16} if "gemma3_text" in changes.values() else {}
    directory = hf_folders.from_gguf(both[0], tmp_path / "hf", **{**extra, **changes})
    with HFFolder(directory) as folder:
        with pytest.raises(Unsupported, match=says):
            _ = folder.tensors
        assert spec_of(folder).dim == tiny.DIM  # what the torch engine needs is known all the same


def test_code_of_a_repository_is_not_looked_at(both: tuple[Path, Path], tmp_path: Path) -> None:
    directory = hf_folders.from_gguf(
        both[0], tmp_path / "hf", auto_map={"AutoModelForCausalLM": "evil.Model"}, trust_remote_code=True
    )
    (directory / "evil.py").write_text("raise SystemExit('run')")
    with HFFolder(directory) as folder:
        assert why_not_onnx(folder) == ""
