"""Small Hugging Face directories: from a GGUF file with numpy alone, or saved by transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from sensorium.backbones.gguf import GGUF
from sensorium.backbones.hf_names import load_hf_state
from sensorium.backbones.spec import spec_from_gguf

TYPES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma3": "gemma3_text"}


def from_gguf(path: Path, directory: Path, **config: Any) -> Path:
    """The directory that transformers would have saved of this model; `config` adds to `config.json`."""
    directory.mkdir(parents=True, exist_ok=True)
    with GGUF(path) as gguf:
        spec, state, metadata = spec_from_gguf(gguf), load_hf_state(gguf), dict(gguf.metadata)
    if spec.tied:
        state.pop("lm_head.weight")
    save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
    sizes: dict[str, Any] = {
        "architectures": ["NotLookedAt"],
        "model_type": TYPES[spec.arch],
        "hidden_size": spec.dim,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "head_dim": spec.head_dim,
        "intermediate_size": spec.ffn,
        "vocab_size": spec.vocab,
        "max_position_embeddings": spec.context,
        "rms_norm_eps": spec.rms_eps,
        "rope_theta": spec.rope_theta,
        "tie_word_embeddings": spec.tied,
        "dtype": "float32",
    }
    if spec.arch == "gemma3":
        sizes |= {"sliding_window": spec.sliding_window, "query_pre_attn_scalar": spec.head_dim}
    tokens = metadata.get("tokenizer.ggml.tokens")
    if tokens:
        special = [token for token, kind in zip(tokens, metadata["tokenizer.ggml.token_type"]) if kind == 3]
        write_tokenizer(directory, tokens, metadata["tokenizer.ggml.merges"], special)
        sizes |= {"bos_token_id": spec.bos_id, "eos_token_id": sorted(spec.eos_ids)}
        options = {"chat_template": metadata["tokenizer.chat_template"], "eos_token": special[-1]}
        (directory / "tokenizer_config.json").write_text(json.dumps(options))
    else:
        write_tokenizer(directory, [chr(0x4E00 + i) for i in range(spec.vocab)], [], [])
    (directory / "config.json").write_text(json.dumps({**sizes, **config}))
    return directory


def write_tokenizer(directory: Path, tokens: list[str], merges: list[str], special: list[str]) -> None:
    """A `tokenizer.json` of byte-level BPE."""
    added = [
        {"id": tokens.index(text), "content": text, "special": True, "normalized": False}
        | {"single_word": False, "lstrip": False, "rstrip": False}
        for text in special
    ]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    model = {"type": "BPE", "vocab": {text: i for i, text in enumerate(tokens)}, "merges": merges}
    data = {"version": "1.0", "added_tokens": added, "model": model, "decoder": level}
    data |= {
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, level]}
    }
    (directory / "tokenizer.json").write_text(json.dumps(data))


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; `None` removes one."""
    data = json.loads(path.read_text())
    data.update(changes)
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not None}))


def shard(directory: Path, parts: int = 3) -> None:
    """Replace `model.safetensors` by shards and their index."""
    from safetensors.numpy import load_file

    state = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    names, places = sorted(state), {}
    for i, chosen in enumerate(np.array_split(np.array(names, object), parts), 1):
        file = f"model-{i:05d}-of-{parts:05d}.safetensors"
        save_file({name: state[name] for name in chosen}, directory / file)
        places |= dict.fromkeys(chosen, file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
