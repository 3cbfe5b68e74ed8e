"""`BackboneSpec`: what the rest of the framework must know about a language model, read from its file's metadata."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sensorium.errors import SensoriumError

if TYPE_CHECKING:
    from sensorium.backbones.source import WeightSource

ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma3")

# A chat template is recognised by the marker that opens its turns; the prompt builder has its own, tested renderers.
_TEMPLATES = (
    ("<|im_start|>", "chatml"),
    ("<|start_header_id|>", "llama3"),
    ("<start_of_turn>", "gemma"),
    ("[INST]", "mistral"),
)
# Tokens that end a turn or a text, by their usual spelling: files name only one of them as "eos" (cf. llama.cpp's
# end-of-generation set), and a chat model that writes another one has finished too.
_END_TOKENS = frozenset(
    {"<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<end_of_turn>", "<|end|>"}
)
_CONTROL = 3
# Where files give the factor of linear scaling: the current key and an older one.
LINEAR_FACTORS = ("rope.scaling.factor", "rope.scale_linear")


@dataclass(frozen=True)
class BackboneSpec:
    """A causal language model's seam and shape.

    `dim` is the width of an embedding, `head_dim` of one attention head, `ffn` of the feed-forward layer; `vocab`
    counts tokens, `context` positions. `tied`: the output head is the embedding matrix. `template` is the kind of chat
    template ("chatml", "llama3", "gemma", "mistral", "none" or "unknown"). `fingerprint` is the sha256 of the file.
    `rope_scaling` is "none" or the scheme by which positions are stretched; `sliding_window` is 0 without one.
    """

    arch: str
    dim: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    context: int
    rope_theta: float
    rms_eps: float
    tied: bool
    template: str
    fingerprint: str
    bos_id: int | None = None
    eos_ids: frozenset[int] = frozenset()
    rope_scaling: str = "none"
    sliding_window: int = 0
    qk_norm: bool = False
    qkv_bias: bool = False


def spec_from_gguf(gguf: WeightSource, fingerprint: str | None = None) -> BackboneSpec:
    """Reads and checks the spec; pass `fingerprint` when the file's sha256 is already known (hashing takes 0.1-0.3 s).

    Raises `SensoriumError` for an architecture that is not supported, a missing or senseless field, or tensors whose
    shapes contradict the fields.
    """
    arch = gguf.metadata.get("general.architecture")
    if not isinstance(arch, str) or arch not in ARCHITECTURES:
        raise SensoriumError(f"{gguf.label} holds the architecture {arch!r}; supported are {', '.join(ARCHITECTURES)}.")
    fields = _Fields(gguf, arch)
    dim, heads = fields.count("embedding_length"), fields.count("attention.head_count")
    kv_heads = fields.count("attention.head_count_kv", heads)
    head_dim = fields.count("attention.key_length", max(1, dim // heads))
    layers, ffn = fields.count("block_count"), fields.count("feed_forward_length")
    embedding = gguf.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2 or embedding.shape[1] != dim:
        raise fields.error("has no embedding matrix of the width that its metadata gives")
    vocab = embedding.shape[0]
    tokens = gguf.metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, list) and len(tokens) != vocab:
        raise fields.error(f"has {len(tokens)} tokens and {vocab} embeddings")
    if heads % kv_heads or head_dim % 2:
        raise fields.error(f"has {heads} heads of width {head_dim} over {kv_heads} key heads, which cannot be")
    if fields.count("attention.value_length", head_dim) != head_dim:
        raise fields.error("has values of another width than its keys, which is not supported")
    rope_dim = fields.count("rope.dimension_count", head_dim)
    if rope_dim != head_dim:
        raise fields.error(f"rotates {rope_dim} of {head_dim} dimensions, which is not supported")
    shapes: dict[str, tuple[int, ...]] = {
        "attn_q.weight": (heads * head_dim, dim),
        "attn_k.weight": (kv_heads * head_dim, dim),
        "attn_v.weight": (kv_heads * head_dim, dim),
        "attn_output.weight": (dim, heads * head_dim),
        "ffn_gate.weight": (ffn, dim),
        "ffn_up.weight": (ffn, dim),
        "ffn_down.weight": (dim, ffn),
        "attn_norm.weight": (dim,),
        "ffn_norm.weight": (dim,),
    }
    optional: dict[str, tuple[int, ...]] = {
        "attn_q.bias": (heads * head_dim,),
        "attn_k.bias": (kv_heads * head_dim,),
        "attn_v.bias": (kv_heads * head_dim,),
        "attn_q_norm.weight": (head_dim,),
        "attn_k_norm.weight": (head_dim,),
        "post_attention_norm.weight": (dim,),
        "post_ffw_norm.weight": (dim,),
    }
    shapes |= {name: shape for name, shape in optional.items() if f"blk.0.{name}" in gguf.tensors}
    for layer in range(layers):
        for name, shape in shapes.items():
            fields.expect(f"blk.{layer}.{name}", shape)
    fields.expect("output_norm.weight", (dim,))
    tied = "output.weight" not in gguf.tensors
    if not tied:
        fields.expect("output.weight", (vocab, dim))
    default_theta = 1e6 if arch == "gemma3" else 1e4
    return BackboneSpec(
        arch=arch,
        dim=dim,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        ffn=ffn,
        vocab=vocab,
        context=fields.count("context_length"),
        rope_theta=fields.real("rope.freq_base", default_theta),
        rms_eps=fields.real("attention.layer_norm_rms_epsilon"),
        tied=tied,
        template=template_kind(gguf.metadata.get("tokenizer.chat_template")),
        fingerprint=fingerprint or gguf.fingerprint,
        bos_id=token_id(gguf, "bos", vocab),
        eos_ids=end_ids(gguf, vocab),
        rope_scaling=_rope_scaling(gguf, arch),
        sliding_window=fields.count("attention.sliding_window", 0),
        qk_norm="blk.0.attn_q_norm.weight" in gguf.tensors,
        qkv_bias="blk.0.attn_q.bias" in gguf.tensors,
    )


def _rope_scaling(gguf: WeightSource, arch: str) -> str:
    """ "none", "linear", "llama3" (a tensor of divisors), or whatever else the file asks for."""
    factors = [key for key in LINEAR_FACTORS if gguf.metadata.get(f"{arch}.{key}") not in (None, 0, 1)]
    kind = str(gguf.metadata.get(f"{arch}.rope.scaling.type", "linear" if factors else "none"))
    extra = sorted(name for name in gguf.tensors if name.startswith("rope_f"))
    if kind == "none" and extra == ["rope_freqs.weight"]:
        return "llama3"
    # Two schemes at once, or tables that change with the length of the text.
    return " and ".join([kind, *extra])


def template_kind(template: Any) -> str:
    """The kind of a Jinja chat template: "chatml", "llama3", "gemma", "mistral", "none" (absent) or "unknown"."""
    if not isinstance(template, str) or not template.strip():
        return "none"
    return next((kind for marker, kind in _TEMPLATES if marker in template), "unknown")


def token_id(gguf: WeightSource, role: str, vocab: int) -> int | None:
    """The id that the metadata gives to a role ("bos", "eos", "padding", "unknown"), or None."""
    value = gguf.metadata.get(f"tokenizer.ggml.{role}_token_id")
    return value if type(value) is int and 0 <= value < vocab else None


def end_ids(gguf: WeightSource, vocab: int) -> frozenset[int]:
    """Every token after which the model is done: those that the metadata names, and the well-known control tokens."""
    named = {token_id(gguf, role, vocab) for role in ("eos", "eot", "eom")} - {None}
    tokens, kinds = gguf.metadata.get("tokenizer.ggml.tokens"), gguf.metadata.get("tokenizer.ggml.token_type")
    known: set[int] = set()
    if isinstance(tokens, list) and isinstance(kinds, np.ndarray) and len(kinds) == len(tokens):
        known = {i for i in np.flatnonzero(kinds == _CONTROL).tolist() if tokens[i] in _END_TOKENS}
    listed = gguf.metadata.get("tokenizer.ggml.eos_token_ids")  # `generation_config.json` may name several
    several = {i for i in listed if type(i) is int and 0 <= i < vocab} if isinstance(listed, list) else set()
    return frozenset(i for i in named | known | several if i is not None)


class _Fields:
    """Typed access to the metadata of one architecture; every failure names the key."""

    def __init__(self, gguf: WeightSource, arch: str) -> None:
        self.gguf, self.arch = gguf, arch

    def error(self, problem: str) -> SensoriumError:
        return SensoriumError(f"{self.gguf.label} {problem}; use another conversion of the model.")

    def count(self, key: str, default: int | None = None) -> int:
        value = self.gguf.metadata.get(f"{self.arch}.{key}", default)
        # Some converters write one value per layer; only equal ones are supported.
        if isinstance(value, np.ndarray) and value.size and value.dtype.kind in "iu" and (value == value[0]).all():
            value = int(value[0])
        if type(value) is not int or not (0 < value < 1 << 31 or value == default):
            raise self.error(f"gives {value!r} for {self.arch}.{key}, where one positive whole number is needed")
        return value

    def real(self, key: str, default: float | None = None) -> float:
        value = self.gguf.metadata.get(f"{self.arch}.{key}", default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise self.error(f"gives {value!r} for {self.arch}.{key}, where a positive number is needed")
        return float(value)

    def expect(self, name: str, shape: tuple[int, ...]) -> None:
        info = self.gguf.tensors.get(name)
        if info is None or info.shape != shape:
            found = "no such tensor" if info is None else f"the shape {info.shape}"
            name = self.gguf.own_name(name)
            raise self.error(f"should hold {name} of the shape {shape} and has {found}")
