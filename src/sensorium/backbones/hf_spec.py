"""The `BackboneSpec` of a Hugging Face directory, of any causal language model, without torch."""

from __future__ import annotations

from typing import Any

from sensorium.backbones.hf_folder import HFFolder, Unsupported
from sensorium.backbones.spec import BackboneSpec, end_ids, spec_from_gguf, template_kind, token_id

# What families call the same size, the usual name first.
_NAMES: dict[str, tuple[str, ...]] = {
    "dim": ("hidden_size", "n_embd", "d_model"),
    "layers": ("num_hidden_layers", "n_layer", "num_layers", "n_layers"),
    "heads": ("num_attention_heads", "n_head", "n_heads", "num_heads"),
    "context": ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "seq_length"),
}
_UNBOUNDED = 1 << 15  # positions of a model that names no limit (ALiBi, say)


def why_not_onnx(folder: HFFolder) -> str:
    """Why the graph writer cannot represent a model, without a full stop; "" where it can. A damaged model raises
    SensoriumError."""
    try:
        _ = folder.tensors
    except Unsupported as reason:
        return str(reason).rstrip(".")
    return ""


def spec_of(folder: HFFolder) -> BackboneSpec:
    """What is known of a model; of an architecture that the graph writer lacks, what its configuration says.

    Raises SensoriumError when the configuration lacks a size.
    """
    if not why_not_onnx(folder):
        return spec_from_gguf(folder)
    size = {name: _size(folder, name) for name in ("dim", "layers", "heads")}
    config, vocab = folder.config, folder.vocab

    def known(key: str, otherwise: int) -> int:
        value: Any = config.get(key)
        return int(value) if _positive(value) else otherwise

    return BackboneSpec(
        arch=str(config.get("model_type"))[:40],
        dim=size["dim"],
        layers=size["layers"],
        heads=size["heads"],
        kv_heads=known("num_key_value_heads", size["heads"]),
        head_dim=known("head_dim", max(1, size["dim"] // size["heads"])),
        ffn=known("intermediate_size", 4 * size["dim"]),
        vocab=vocab,
        context=_size(folder, "context", _UNBOUNDED),
        rope_theta=0.0,
        rms_eps=0.0,
        tied="lm_head.weight" not in folder.weights,
        template=template_kind(folder.metadata.get("tokenizer.chat_template")),
        fingerprint=folder.fingerprint,
        bos_id=token_id(folder, "bos", vocab),
        eos_ids=end_ids(folder, vocab),
    )


def _size(folder: HFFolder, name: str, default: int | None = None) -> int:
    for key in _NAMES[name]:
        value = folder.config.get(key)
        if value is not None:
            if not _positive(value):
                raise folder.error(f"gives {str(value)[:40]!r} for {key}, where one positive whole number is needed")
            return int(value)
    if default is None:
        raise folder.error(f"has no {_NAMES[name][0]} in config.json; it is no causal language model")
    return default


def _positive(value: Any) -> bool:
    return type(value) is int and 0 < value < 1 << 31
