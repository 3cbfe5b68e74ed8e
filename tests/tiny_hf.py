"""Tiny random causal language models as Hugging Face directories, written by the tests themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

DIM, LAYERS, VOCAB, WINDOW = 32, 2, 300, 6
_SIZES = {"hidden_size": DIM, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "vocab_size": VOCAB}
_WIDE = {"intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8}
KINDS: dict[str, dict[str, Any]] = {
    "Llama": _SIZES | _WIDE,
    "Qwen2": _SIZES | _WIDE,
    "Mistral": _SIZES | _WIDE | {"sliding_window": WINDOW},
    "Gemma2": _SIZES | _WIDE | {"sliding_window": WINDOW, "final_logit_softcapping": 3.0},
    "Gemma3Text": _SIZES
    | _WIDE
    | {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]},
    "GPTNeoX": _SIZES | {"intermediate_size": 48},
    "GPT2": {"n_embd": DIM, "n_layer": LAYERS, "n_head": 4, "vocab_size": VOCAB, "resid_pdrop": 0.5},
    "Bloom": {"hidden_size": DIM, "n_layer": LAYERS, "n_head": 4, "vocab_size": VOCAB},
    "Mamba": {"hidden_size": DIM, "num_hidden_layers": LAYERS, "vocab_size": VOCAB},
    "GPTNeo": {
        "hidden_size": DIM, "num_layers": LAYERS, "num_heads": 4, "vocab_size": VOCAB,
        "attention_types": [[["global", "local"], 1]], "window_size": WINDOW,
    },
}  # fmt: skip


def write_hf(directory: Path, kind: str = "Llama", *, seed: int = 0, **changes: Any) -> Path:
    """Save a model whose weights are large enough that every part of it matters."""
    import torch
    import transformers

    torch.manual_seed(seed)
    config = getattr(transformers, f"{kind}Config")(**{"pad_token_id": 0, **KINDS[kind], **changes})
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.5 if "embed" in name or "wte" in name else 2 * parameter.shape[1] ** -0.5)
            elif "norm" not in name and "ln_" not in name:
                parameter.normal_(0, 0.3)
    model.save_pretrained(str(directory))
    return directory
