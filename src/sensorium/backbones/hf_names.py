"""GGUF tensors under their Hugging Face names and in Hugging Face row order, for training and parity tests.

llama.cpp's converter renames tensors, interleaves the rows of the query and key projections of llama models (its
rotary embedding pairs neighbouring rows, Hugging Face's pairs the two halves of a head) and folds Gemma's `1 +` into
its norms; `load_hf_state` undoes all three (convert_hf_to_gguf.py).
"""

from __future__ import annotations

import numpy as np

from sensorium.backbones.source import WeightSource
from sensorium.backbones.spec import spec_from_gguf
from sensorium.errors import SensoriumError

_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# Gemma 3 norms both sides of each sublayer, so `ffn_norm` stands elsewhere.
_GEMMA3 = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
# Tables that are computed from the configuration, not learned.
_DERIVED = {"rope_freqs.weight"}


def hf_name(name: str, arch: str) -> str | None:
    """A GGUF tensor's Hugging Face name, or None: "blk.3.attn_q.bias" -> "model.layers.3.self_attn.q_proj.bias"."""
    stem, _, kind = name.rpartition(".")
    if kind not in ("weight", "bias"):
        return None
    if stem in _TOP:
        return f"{_TOP[stem]}.{kind}"
    block, _, rest = stem.partition(".")
    layer, _, part = rest.partition(".")
    names = {**_LAYER, **_GEMMA3} if arch == "gemma3" else _LAYER
    if block != "blk" or not layer.isdecimal() or part not in names:
        return None
    return f"model.layers.{int(layer)}.{names[part]}.{kind}"


def permute(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a llama query or key projection from Hugging Face order to GGUF order; same shape."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(weight.shape)


def unpermute(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a llama query or key projection (or its bias) from GGUF order back to Hugging Face order; same shape."""
    pairs = weight.reshape(heads, weight.shape[0] // heads // 2, 2, *weight.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(weight.shape)


def load_hf_state(gguf: WeightSource) -> dict[str, np.ndarray]:
    """The whole model as float32 arrays under Hugging Face names, fit for `load_state_dict(strict=True)`.

    With tied embeddings, "lm_head.weight" is the very array of "model.embed_tokens.weight" (no copy).
    Raises `SensoriumError` when the file holds a tensor that has no Hugging Face counterpart.
    """
    spec = spec_from_gguf(gguf, fingerprint="unused")
    state: dict[str, np.ndarray] = {}
    for name in gguf.tensors:
        if name in _DERIVED:
            continue
        target = hf_name(name, spec.arch)
        if target is None:
            raise SensoriumError(
                f"The model file {gguf.path} holds the tensor {name!r}, which no {spec.arch} model has; "
                "use a plain conversion."
            )
        array = gguf.load(name)
        if spec.arch == "llama" and ".attn_q." in name:
            array = unpermute(array, spec.heads)
        elif spec.arch == "llama" and ".attn_k." in name:
            array = unpermute(array, spec.kv_heads)
        elif spec.arch == "gemma3" and name.endswith("norm.weight"):
            array = array - np.float32(1)
        state[target] = array
    if spec.tied:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    return state
