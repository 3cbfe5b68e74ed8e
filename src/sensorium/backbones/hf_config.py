"""`config.json` of a Hugging Face model -> the metadata that a GGUF file of that model would hold.

What the graph writer can represent is decided here, key by key, as llama.cpp's converter does. Anything else is
`Unsupported`: a sound model for the torch engine, never a near miss.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sensorium.errors import SensoriumError

Error = Callable[[str], SensoriumError]
Config = dict[str, Any]


class Unsupported(SensoriumError):
    """A model that the graph writer cannot represent."""


# model_type -> GGUF architecture. Mistral is a llama; its windows are looked at below.
ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma3_text": "gemma3"}
# transformers' defaults of what a file may leave out, where they are not those of a llama.
_DEFAULTS: dict[str, Config] = {
    "mistral": {"head_dim": None},
    "qwen3": {"head_dim": 128},
    "gemma3_text": {"head_dim": 256, "rope_theta": 1e6, "rope_local_base_freq": 1e4, "tie_word_embeddings": True},
}
_LLAMA = {"rms_norm_eps": 1e-6, "rope_theta": 1e4, "tie_word_embeddings": False}
_SIZES = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "max_position_embeddings": "context_length",
}
# Gemma 3 as `traits.py` runs it.
_GEMMA_PERIOD, _GEMMA_LOCAL_THETA, _GEMMA_27B_LAYERS = 6, 1e4, 62


def metadata_of(config: Config, error: Error) -> tuple[Config, bool, NDArray[np.float32] | None]:
    """GGUF metadata, whether embeddings and head are tied, and the divisors of rotary frequencies (llama 3) or None.

    Args:
        config: the parsed `config.json`.
        error: makes the exception of a problem; the caller names the file in it.

    Raises:
        Unsupported: the graph writer knows no such model.
        SensoriumError: a key is missing or senseless.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        raise Unsupported(str(error(f"is of the type {_shown(kind)}; known are {', '.join(ARCHITECTURES)}")))
    arch = ARCHITECTURES[kind]
    fields = _Fields({**_LLAMA, **_DEFAULTS.get(kind, {}), **config}, error)
    fields.refuse_what_changes_the_numbers(arch)
    metadata: Config = {"general.architecture": arch}
    for name, key in _SIZES.items():
        metadata[f"{arch}.{key}"] = fields.count(name)
    heads, dim = fields.count("num_attention_heads"), fields.count("hidden_size")
    kv_heads = fields.count("num_key_value_heads", heads)
    head_dim = fields.count("head_dim", max(1, dim // heads))
    metadata[f"{arch}.attention.head_count_kv"] = kv_heads
    metadata[f"{arch}.attention.key_length"] = metadata[f"{arch}.attention.value_length"] = head_dim
    metadata[f"{arch}.attention.layer_norm_rms_epsilon"] = fields.real("rms_norm_eps")
    theta, scaling = fields.rope("full_attention")
    metadata[f"{arch}.rope.freq_base"] = theta
    divisors = None
    match scaling.get("rope_type", scaling.get("type", "default")):
        case "default":
            pass
        case "linear":
            metadata[f"{arch}.rope.scaling.type"] = "linear"
            metadata[f"{arch}.rope.scaling.factor"] = fields.real("factor", of=scaling)
        case "llama3":
            divisors = _llama3_divisors(theta, head_dim, scaling, fields)
        case other:
            raise Unsupported(str(error(f"stretches positions by {_shown(other)}; known are linear and llama3")))
    if arch == "gemma3":
        metadata[f"{arch}.attention.sliding_window"] = fields.count("sliding_window")
        fields.check_gemma(head_dim, dim, heads)
    return metadata, fields.flag("tie_word_embeddings"), divisors


def _llama3_divisors(theta: float, head_dim: int, scaling: Config, fields: _Fields) -> NDArray[np.float32]:
    """By what Llama 3.1 divides its rotary frequencies (`_compute_llama3_parameters` of transformers)."""
    factor, low, high = (fields.real(key, of=scaling) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    length = fields.real("original_max_position_embeddings", of=scaling)
    if high <= low or head_dim > 1 << 16:
        raise fields.error(f"gives low_freq_factor {low:g} and high_freq_factor {high:g}, which must rise")
    frequencies = theta ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    turns = length * frequencies / (2 * math.pi)  # within the original context
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)


class _Fields:
    """Typed access to the keys of a configuration; every failure names the key."""

    def __init__(self, config: Config, error: Error) -> None:
        self.config, self.error = config, error

    def count(self, key: str, default: int | None = None) -> int:
        value = self.config.get(key)
        value = default if value is None else value
        if type(value) is not int or not 0 < value < 1 << 31:
            raise self.error(f"gives {_shown(value)} for {key}, where one positive whole number is needed")
        return value

    def real(self, key: str, of: Config | None = None) -> float:
        value = (self.config if of is None else of).get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e300:
            raise self.error(f"gives {_shown(value)} for {key}, where a positive number is needed")
        return float(value)

    def flag(self, key: str) -> bool:
        value = self.config.get(key)
        if value is not None and not isinstance(value, bool):
            raise self.error(f"gives {_shown(value)} for {key}, where true or false is needed")
        return bool(value)

    def rope(self, layers: str) -> tuple[float, Config]:
        """Base and scaling of the rotary embedding: `rope_parameters` (transformers 5), or the two keys before it."""
        given = self.config.get("rope_parameters")
        if given is None:
            scaling = self.config.get("rope_scaling")
            scaling = {} if scaling is None else scaling
        elif isinstance(given, dict) and ("full_attention" in given or "sliding_attention" in given):
            given = scaling = given.get(layers)
        else:
            scaling = given
        if not isinstance(scaling, dict):
            raise self.error(f"gives {_shown(scaling)} for its rotary embedding, where a mapping is needed")
        theta = {"rope_theta": scaling.get("rope_theta", self.config.get("rope_theta"))}
        return self.real("rope_theta", of=theta), scaling

    def refuse_what_changes_the_numbers(self, arch: str) -> None:
        """Everything that a graph of this architecture would leave out must be off."""
        activation = self.config.get("hidden_activation" if arch == "gemma3" else "hidden_act")
        usual = "gelu_pytorch_tanh" if arch == "gemma3" else "silu"
        if activation not in (None, usual):
            raise self._unsupported(f"uses the activation {_shown(activation)} instead of {usual!r}")
        switches = ["mlp_bias", "use_sliding_window", "use_bidirectional_attention", "quantization_config"]
        switches += ["attn_logit_softcapping", "final_logit_softcapping"]
        for key in [*switches, *([] if arch == "qwen2" else ["attention_bias"])]:
            if self.config.get(key):
                raise self._unsupported(f"sets {key}")
        if self.config.get("partial_rotary_factor") not in (None, 1):
            raise self._unsupported("rotates a part of each head only")
        window, context = self.config.get("sliding_window"), self.config.get("max_position_embeddings")
        wide = isinstance(window, int) and isinstance(context, int) and window >= context
        if self.config.get("model_type") == "mistral" and window is not None and not wide:
            raise self._unsupported(f"attends to a sliding window of {_shown(window)}")

    def check_gemma(self, head_dim: int, dim: int, heads: int) -> None:
        """The constants that `traits.Traits` assumes of Gemma 3."""
        layers = self.count("num_hidden_layers")
        kinds = self.config.get("layer_types")
        if kinds is None:
            period = self.config.get("sliding_window_pattern", self.config.get("_sliding_window_pattern", 6))
            usual = period == _GEMMA_PERIOD
        else:
            usual = isinstance(kinds, list) and len(kinds) == layers
            usual = usual and all(
                kind == ("full_attention" if (i + 1) % _GEMMA_PERIOD == 0 else "sliding_attention")
                for i, kind in enumerate(kinds)
            )
        if not usual:
            raise self._unsupported("attends to everything in other layers than every sixth")
        given = self.config.get("rope_parameters")
        local = self.real("rope_local_base_freq")
        if isinstance(given, dict) and "sliding_attention" in given:
            local, scaling = self.rope("sliding_attention")
            if scaling.get("rope_type", "default") != "default":
                raise self._unsupported("stretches the positions of local layers")
        if local != _GEMMA_LOCAL_THETA:
            raise self._unsupported(f"has the rotary base {local:g} in local layers instead of {_GEMMA_LOCAL_THETA:g}")
        width = dim / heads if layers == _GEMMA_27B_LAYERS else head_dim
        if self.config.get("query_pre_attn_scalar", 256) != width:
            raise self._unsupported(f"scales attention by another width than {width:g}")

    def _unsupported(self, problem: str) -> Unsupported:
        return Unsupported(str(self.error(f"{problem}, which no graph can be written of")))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
