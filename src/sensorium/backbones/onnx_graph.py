"""Rewrites a language model (a GGUF file or a Hugging Face directory) as an ONNX graph that takes embeddings, so that
it runs without torch.

`build` writes a directory that `engine.Engine` opens:

    model.onnx     the graph: fused norms, `GroupQueryAttention` with rotary tables, `MatMulNBits` weights
    reading.onnx   for small models of four-bit weights, a second graph that reads prompts faster (see `graph_rows`)
    weights.bin    every large tensor, at aligned offsets, so that ONNX Runtime and numpy can map it
    model.json     `BackboneSpec`, quantisation, where the embedding matrix lies, the version of this writer, whether
                   there is a `reading.onnx`

With rows of new tokens, `vocab` counts these too, and `logits` has them behind those of the backbone's own tokens.

Inputs are `inputs_embeds` float32 [B, S, dim], `seqlens_k` int32 [B] (past + S - 1 of each sequence), `total` int32
(the largest past + S), `positions` int64 [P] (which of the S positions get logits) and, for each layer,
`past.{i}.key|value` float32 [B, kv_heads, capacity, head_dim]. Outputs are `logits` [B, P, vocab], `hidden` [B, P, dim]
(after the last norm) and `present.{i}.key|value`, which may be the very buffers of the inputs: then nothing is copied.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sensorium.backbones import nibbles
from sensorium.backbones.graph_parts import MS, Parts
from sensorium.backbones.graph_products import blocks_product, float_product, nibbles_product
from sensorium.backbones.graph_rows import rows_product
from sensorium.backbones.graph_runner import DECODING, READING
from sensorium.backbones.lora import LoRA
from sensorium.backbones.new_tokens import NewRows
from sensorium.backbones.nibbles import Nibbles
from sensorium.backbones.quantize import Blocks, quantize, recode, stack
from sensorium.backbones.source import WeightSource
from sensorium.backbones.spec import BackboneSpec, spec_from_gguf
from sensorium.backbones.traits import Traits
from sensorium.errors import SensoriumError, UsageError

if TYPE_CHECKING:
    import onnx

WRITER_VERSION = 4
QUANTIZATIONS = ("int8", "fp32")
# Rotary tables take 256 bytes per position and head dimension 64; longer contexts than this are asked for explicitly.
DEFAULT_MAX_CONTEXT = 32768
# A second graph for prompts has weights of its own, a byte each: only models that are small anyway get one.
READING_WEIGHTS = 256 << 20

_OPSET = 17

Progress = Callable[[int, int], None]


def build(
    gguf: WeightSource,
    out_dir: Path,
    *,
    quantization: str = "int8",
    lora: Path | None = None,
    new_tokens: Path | None = None,
    progress: Progress | None = None,
    max_context: int | None = None,
) -> Path:
    """Write the graph of `gguf` into `out_dir` (made if need be) and return `out_dir`.

    Args:
        gguf: an open model (see `source.WeightSource`) of the architectures `llama`, `qwen2`, `qwen3` or `gemma3`.
        quantization: "int8" (eight-bit activations; weights in blocks of 32, of four bits where the file has four, see
            `nibbles`, else of eight, see `quantize`) or "fp32" (the dequantised weights: 4 bytes each).
        lora: a safetensors file (see `lora.LoRA`). It becomes further columns of four-bit weights, and is merged into
            others before these are quantised.
        new_tokens: a safetensors file of further rows of the vocabulary (see `new_tokens.NewRows`), float32 in either
            quantization: they are few.
        progress: called with (layers done, layers in all) after each layer.
        max_context: the most positions the graph can hold, at most the model's own; by default 32,768.

    Raises:
        UsageError: `quantization` or `max_context` is senseless.
        SensoriumError: the model, the LoRA or the new tokens cannot be represented; one sentence says why.
    """
    if quantization not in QUANTIZATIONS:
        raise UsageError(f"quantization={quantization!r} is unknown; use {' or '.join(QUANTIZATIONS)}.")
    if max_context is not None and max_context < 1:
        raise UsageError(f"max_context={max_context} leaves no room for a token; give 1 or more.")
    spec = spec_from_gguf(gguf)
    context = min(spec.context, max_context or DEFAULT_MAX_CONTEXT)
    traits = Traits.of(gguf, spec)
    adapter = LoRA(lora, spec) if lora else None
    rows = NewRows(new_tokens, spec) if new_tokens else None
    out_dir.mkdir(parents=True, exist_ok=True)
    with (out_dir / "weights.bin").open("wb") as file:
        report = progress or (lambda done, total: None)
        writer = _Writer(gguf, spec, traits, quantization == "int8", adapter, rows, Parts(file), context)
        (out_dir / DECODING).write_bytes(writer.model(report).SerializeToString())
        reads = writer.quantized and _reads(gguf, spec)
        if reads:
            (out_dir / READING).write_bytes(writer.for_reading().model(lambda done, total: None).SerializeToString())
    facts = {
        "writer": WRITER_VERSION,
        "quantization": quantization,
        "lora": adapter.sha256 if adapter else None,
        "context": context,
        "reading": reads,
        "embeddings": writer.embeddings,
        "spec": {**dataclasses.asdict(spec), "vocab": writer.vocab, "eos_ids": sorted(spec.eos_ids)},
    }
    if rows:
        facts["new_tokens"] = rows.sha256
    (out_dir / "model.json").write_text(json.dumps(facts, indent=1))
    return out_dir


class _Writer:
    def __init__(
        self,
        gguf: WeightSource,
        spec: BackboneSpec,
        traits: Traits,
        quantized: bool,
        lora: LoRA | None,
        rows: NewRows | None,
        parts: Parts,
        context: int,
        reading: bool = False,
    ) -> None:
        self.reading = reading
        self.gguf, self.spec, self.traits, self.quantized = gguf, spec, traits, quantized
        self.lora, self.rows, self.parts, self.context = lora, rows, parts, context
        self.vocab = spec.vocab + (len(rows) if rows else 0)
        self.embeddings: dict[str, Any] = {}

    def for_reading(self) -> _Writer:
        """The writer of the graph for prompts, over the same file."""
        parts = self.parts.beside()
        return _Writer(
            self.gguf, self.spec, self.traits, self.quantized, self.lora, self.rows, parts, self.context, reading=True
        )

    # -- the whole graph ----------------------------------------------------------------------------------------

    def model(self, progress: Progress) -> onnx.ModelProto:
        from onnx import TensorProto, helper

        spec = self.spec
        floats = TensorProto.FLOAT
        inputs = [
            helper.make_tensor_value_info("inputs_embeds", floats, ["batch", "sequence", spec.dim]),
            helper.make_tensor_value_info("seqlens_k", TensorProto.INT32, ["batch"]),
            helper.make_tensor_value_info("total", TensorProto.INT32, []),
            helper.make_tensor_value_info("positions", TensorProto.INT64, ["chosen"]),
        ]
        outputs = [
            helper.make_tensor_value_info("logits", floats, ["batch", "chosen", self.vocab]),
            helper.make_tensor_value_info("hidden", floats, ["batch", "chosen", spec.dim]),
        ]
        for i in range(spec.layers):
            for part in ("key", "value"):
                shape: list[str | int | None] = ["batch", spec.kv_heads, "capacity", spec.head_dim]
                inputs.append(helper.make_tensor_value_info(f"past.{i}.{part}", floats, shape))
                outputs.append(helper.make_tensor_value_info(f"present.{i}.{part}", floats, shape))
        for theta in sorted({self.traits.theta(i) for i in range(spec.layers)}):
            cos, sin = self.traits.rotary(theta, self.context)
            self.parts.tensor(f"cos.{theta:g}", cos)
            self.parts.tensor(f"sin.{theta:g}", sin)
        # `stream` is the residual stream, `x` its normed copy that the next sublayer reads.
        stream = "inputs_embeds"
        x = self._norm(stream, "blk.0.attn_norm.weight", "l0.attn_norm")
        for i in range(spec.layers):
            x, stream = self._layer(i, x, stream)
            progress(i + 1, spec.layers)
        self.parts.node("Gather", [x, "positions"], ["hidden"], axis=1)
        self._head()
        graph = helper.make_graph(self.parts.nodes, "llm", inputs, outputs, self.parts.protos)
        opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid(MS, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8, producer_name="sensorium")

    def _layer(self, i: int, x: str, stream: str) -> tuple[str, str]:
        spec, last = self.spec, i == self.spec.layers - 1
        after = "output_norm.weight" if last else f"blk.{i + 1}.attn_norm.weight"
        query, key, value = self._attention_inputs(i, x)
        theta, past = self.traits.theta(i), [f"past.{i}.key", f"past.{i}.value"]
        self.parts.node(
            "GroupQueryAttention",
            [query, key, value, *past, "seqlens_k", "total", f"cos.{theta:g}", f"sin.{theta:g}"],
            [f"l{i}.attention", f"present.{i}.key", f"present.{i}.value"],
            MS,
            num_heads=spec.heads,
            kv_num_heads=spec.kv_heads,
            scale=self.traits.attention_scale,
            do_rotary=1,
            rotary_interleaved=int(self.traits.interleaved),
            local_window_size=self.traits.window(i),
        )
        out = self._linear(i, f"l{i}.attention", ["o_proj"], f"l{i}.o")
        if self.traits.post_norms:
            out = self._norm(out, f"blk.{i}.post_attention_norm.weight", f"l{i}.post_attention")
        x, stream = self._add_norm(stream, out, f"blk.{i}.ffn_norm.weight", f"l{i}.ffn_norm")
        self._linear(i, x, ["gate_proj", "up_proj"], f"l{i}.gate_up")
        self.parts.node("Split", [f"l{i}.gate_up"], [f"l{i}.gate", f"l{i}.up"], axis=-1)
        # QuickGelu with alpha 1 is x * sigmoid(x), that is SiLU, in one operator.
        if self.traits.activation == "silu":
            self.parts.node("QuickGelu", [f"l{i}.gate"], [f"l{i}.active"], MS, alpha=1.0)
        else:
            self.parts.node("FastGelu", [f"l{i}.gate"], [f"l{i}.active"], MS)
        self.parts.node("Mul", [f"l{i}.active", f"l{i}.up"], [f"l{i}.product"])
        out = self._linear(i, f"l{i}.product", ["down_proj"], f"l{i}.down")
        if self.traits.post_norms:
            out = self._norm(out, f"blk.{i}.post_ffw_norm.weight", f"l{i}.post_ffw")
        return self._add_norm(stream, out, after, f"l{i}.out")

    def _attention_inputs(self, i: int, x: str) -> tuple[str, str, str]:
        """Query, key and value [B, S, heads * head_dim]; packed into the query alone where nothing comes between."""
        spec = self.spec
        packed = self._linear(i, x, ["q_proj", "k_proj", "v_proj"], f"l{i}.qkv")
        if spec.qkv_bias:
            biases = [self.gguf.load(f"blk.{i}.attn_{part}.bias") for part in "qkv"]
            packed = self.parts.node(
                "Add", [packed, self.parts.tensor(f"l{i}.qkv.bias", np.concatenate(biases))], [f"l{i}.biased"]
            )
        if not spec.qk_norm:
            return packed, "", ""
        sizes = np.array([spec.heads, spec.kv_heads, spec.kv_heads]) * spec.head_dim
        names = [f"l{i}.q", f"l{i}.k", f"l{i}.v"]
        self.parts.node("Split", [packed, self.parts.tensor(f"l{i}.sizes", sizes.astype(np.int64))], names, axis=-1)
        return self._head_norm(i, "q", spec.heads), self._head_norm(i, "k", spec.kv_heads), names[2]

    def _head_norm(self, i: int, part: str, heads: int) -> str:
        """RMS norm over each head of a query or key."""
        name = f"l{i}.{part}"
        split = self.parts.tensor(f"{name}.heads", np.array([0, 0, heads, self.spec.head_dim], np.int64))
        joined = self.parts.tensor(f"{name}.joined", np.array([0, 0, heads * self.spec.head_dim], np.int64))
        self.parts.node("Reshape", [name, split], [f"{name}.split"])
        self._norm(f"{name}.split", f"blk.{i}.attn_{part}_norm.weight", f"{name}.normed")
        return self.parts.node("Reshape", [f"{name}.normed", joined], [f"{name}.ready"])

    # -- operators ----------------------------------------------------------------------------------------------

    def _norm(self, x: str, weight: str, name: str) -> str:
        scale = self.parts.tensor(f"{name}.weight", self.gguf.load(weight))
        return self.parts.node(
            "SimplifiedLayerNormalization", [x, scale], [name], axis=-1, epsilon=self.spec.rms_eps, stash_type=1
        )

    def _add_norm(self, stream: str, x: str, weight: str, name: str) -> tuple[str, str]:
        """The norm of `stream + x`, and that sum."""
        scale = self.parts.tensor(f"{name}.weight", self.gguf.load(weight))
        outputs = [name, "", "", f"{name}.sum"]
        self.parts.node("SkipSimplifiedLayerNormalization", [stream, x, scale], outputs, MS, epsilon=self.spec.rms_eps)
        return name, f"{name}.sum"

    def _linear(self, i: int, x: str, names: list[str], name: str) -> str:
        """`x` times the stacked weights of some projections of layer `i`: fewer, larger products are faster."""
        if not self.quantized or self.reading:
            weight = np.concatenate([self._floats(i, part) for part in names])
            if self.quantized:
                return rows_product(self.parts, x, weight, name, self._most(i, names[0]))
            return float_product(self.parts, x, weight, name)
        matrices = [self._nibbles(i, part) for part in names]
        found = [matrix for matrix in matrices if matrix is not None]
        if len(found) == len(names):
            low_rank = self.lora.low_rank(i, names, self.traits.interleaved) if self.lora else None
            return nibbles_product(self.parts, x, nibbles.stack(found), name, low_rank)
        return blocks_product(self.parts, x, stack([self._blocks(i, part) for part in names]), name)

    def _most(self, i: int, part: str) -> float | None:
        """The largest magnitude that an input of these projections can have; None where it does not come from a
        norm."""
        norm = {"q_proj": "attn_norm", "gate_proj": "ffn_norm"}.get(part)
        if norm is None:
            return None
        return float(np.abs(self.gguf.load(f"blk.{i}.{norm}.weight")).max()) * self.spec.dim**0.5

    def _blocks(self, i: int, part: str) -> Blocks:
        touched = self.lora is not None and self.lora.touches(i, part)
        blocks = None if touched else self._recoded(_tensor(i, part))
        return blocks or quantize(self._floats(i, part))

    def _nibbles(self, i: int, part: str) -> Nibbles | None:
        name = _tensor(i, part)
        info = self.gguf.tensors[name]
        return nibbles.read(self.gguf.raw(name), info.type, info.shape[1])

    def _floats(self, i: int, part: str) -> np.ndarray:
        weight = self.gguf.load(_tensor(i, part))
        if self.lora and self.lora.touches(i, part):
            weight += self.lora.delta(i, part, self.traits.interleaved)
        return weight

    def _head(self) -> None:
        """The output head and the embedding matrix. New tokens have a small product of their own, so that the numbers
        of the backbone's own tokens cannot change."""
        if self.rows is None:
            self._own_head("logits")
            return
        self._own_head("own_logits")
        float_product(self.parts, "hidden", self.rows.head, "new_logits")
        self.parts.node("Concat", ["own_logits", "new_logits"], ["logits"], axis=-1)
        if self.reading:
            return
        at = self.parts.append(self.rows.embeddings)
        self.embeddings |= {"new_rows": len(self.rows), "new": at}

    def _own_head(self, name: str) -> None:
        """The backbone's head and its embedding matrix: the same bytes of the file where the two are tied."""
        gguf, tied = self.gguf, self.spec.tied
        source = "token_embd.weight" if tied else "output.weight"
        if not self.quantized:
            weight = gguf.load(source)
            float_product(self.parts, "hidden", weight, name)
            table = weight if tied else gguf.load("token_embd.weight")
            self._embed_floats(table, self.parts.offset(f"{name}.weight", table) if tied else None)
            return
        exact = self._recoded(source)
        blocks = exact or quantize(gguf.load(source))
        blocks_product(self.parts, "hidden", blocks, name)
        if self.reading:
            return
        if exact is None or not tied:
            exact = None if tied else self._recoded("token_embd.weight")
        if exact is None:
            self._embed_floats(gguf.load("token_embd.weight"), None)
            return
        arrays: dict[str, np.ndarray] = {"codes": exact.codes, "scales": exact.scales, "zeros": exact.zeros}
        prefix = name if tied else "embeddings"
        places = {part: self.parts.offset(f"{prefix}.{part}", array) for part, array in arrays.items()}
        self.embeddings = {"kind": "blocks", "scale": self.traits.embedding_scale, **places}

    def _recoded(self, name: str) -> Blocks | None:
        info = self.gguf.tensors[name]
        return recode(self.gguf.raw(name), info.type, info.shape[1])

    def _embed_floats(self, table: np.ndarray, at: int | None) -> None:
        # Half precision halves the file; its error is 1/2048 at most, far below that of any quantised weight.
        half = self.quantized and float(np.abs(table).max()) < 6e4
        offset = self.parts.append(table.astype(np.float16) if half else table) if at is None else at
        kind = "float16" if half else "float32"
        self.embeddings = {"kind": kind, "scale": self.traits.embedding_scale, "values": offset}


_NAMES = {
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
}


def _reads(gguf: WeightSource, spec: BackboneSpec) -> bool:
    """Whether prompts get a graph of their own: the layers have four bits, so that eight for a whole row lose little
    more, and are small."""
    matrices = [gguf.tensors[_tensor(i, part)] for i in range(spec.layers) for part in _NAMES]
    four_bits = all(info.type in nibbles.TYPES and info.shape[1] % nibbles.BLOCK == 0 for info in matrices)
    return four_bits and sum(math.prod(info.shape) for info in matrices) <= READING_WEIGHTS


def _tensor(layer: int, part: str) -> str:
    return f"blk.{layer}.{_NAMES[part]}.weight"


def read_facts(directory: Path) -> dict[str, Any]:
    """The contents of `model.json`, with "spec" as a `BackboneSpec`.

    Raises `SensoriumError` when the directory holds no graph or one of another version of this writer.
    """
    path = directory / "model.json"
    try:
        facts = json.loads(path.read_bytes())
        if facts["writer"] != WRITER_VERSION:
            raise SensoriumError(
                f"{directory} was written by version {facts['writer']} of the graph writer, and this is version "
                f"{WRITER_VERSION}; delete it, and it is made again."
            )
        facts["spec"]["eos_ids"] = frozenset(facts["spec"]["eos_ids"])
        facts["spec"] = BackboneSpec(**facts["spec"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise SensoriumError(
            f"{directory} holds no prepared language model ({type(error).__name__}); delete it, and it is made again."
        ) from None
    return dict(facts)
