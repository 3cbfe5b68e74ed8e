"""A trained language model -> a Hugging Face directory that the runtime, transformers and others read.

A backbone that came from such a directory keeps its configuration and its tokenizer. One that came from a GGUF file
gets both from the file's own metadata.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sensorium import hub
from sensorium.backbones.gguf import GGUF
from sensorium.backbones.hf_folder import CONFIG, OPTIONAL, TOKENIZER, WEIGHTS, HFFolder
from sensorium.backbones.spec import BackboneSpec
from sensorium.backbones.vocabulary import Kind, Vocabulary
from sensorium.training.backbone import Backbone
from sensorium.training.hf_backbone import HFBackbone
from sensorium.training.llama import ATTENTION, Llama
from sensorium.training.load_backbone import WRITABLE

KEPT = (TOKENIZER, "special_tokens_map.json", *OPTIONAL)  # of a directory that was trained


def write_backbone(llm: Backbone, source: Path, directory: Path) -> str:
    """Write the whole language model in the dtype of its activations, all or nothing.

    Args:
        llm: the model, its weights whole in memory or on a device.
        source: the GGUF file or the directory that it was read from.
        directory: where to.

    Returns:
        The fingerprint of the directory, as the runtime computes it.
    """
    with hub.atomic_dir(directory) as place:
        if isinstance(llm, HFBackbone):
            llm.save(place)
            for name in KEPT:
                if (source / name).is_file():
                    shutil.copy2(source / name, place / name)
        else:
            assert isinstance(llm, Llama)
            with GGUF(source) as gguf:
                files = {CONFIG: config_of(llm.shape, llm.dtype), **tokenizer_files(gguf)}
            for name, content in files.items():
                (place / name).write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")
            _save(state_of(llm), place / WEIGHTS)
        with HFFolder(place) as folder:
            return folder.fingerprint


def config_of(spec: BackboneSpec, dtype: torch.dtype) -> dict[str, Any]:
    """``config.json`` of a llama, qwen2 or qwen3 model, for transformers 4 and 5."""
    ends = sorted(spec.eos_ids)
    return {
        "architectures": [f"{WRITABLE[spec.arch]}ForCausalLM"],
        "model_type": spec.arch,
        "hidden_size": spec.dim,
        "intermediate_size": spec.ffn,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "head_dim": spec.head_dim,
        "vocab_size": spec.vocab,
        "max_position_embeddings": spec.context,
        "rms_norm_eps": spec.rms_eps,
        "rope_theta": spec.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": spec.rope_theta},
        "hidden_act": "silu",
        "attention_bias": spec.qkv_bias,
        "tie_word_embeddings": spec.tied,
        "bos_token_id": spec.bos_id,
        "eos_token_id": ends[0] if len(ends) == 1 else ends,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }


def tokenizer_files(gguf: GGUF) -> dict[str, Any]:
    """``tokenizer.json`` and ``tokenizer_config.json`` of a byte-level BPE."""
    from sensorium.backbones.bpe import ByteLevelBPE

    vocabulary, metadata = Vocabulary(gguf), gguf.metadata
    bpe = ByteLevelBPE(
        vocabulary, metadata["tokenizer.ggml.merges"], str(metadata.get("tokenizer.ggml.pre", "gpt-2")), gguf.path
    )
    data = json.loads(bpe.pipeline.to_str())
    form = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    plain = {token["id"]: token for token in data["added_tokens"]}
    for text, token in vocabulary.special.items():
        plain[token] = {"id": token, "content": text, **form, "special": True}
        data["model"]["vocab"][text] = token
    data["added_tokens"] = [plain[token] for token in sorted(plain)]
    data["decoder"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    bos, eos = (metadata.get(f"tokenizer.ggml.{role}_token_id") for role in ("bos", "eos"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": metadata.get("tokenizer.ggml.add_bos_token") is True,
        **{
            f"{role}_token": vocabulary.tokens[token]
            for role, token in (("bos", bos), ("eos", eos))
            if isinstance(token, int) and vocabulary.kinds[token] == Kind.CONTROL
        },
    }
    template = metadata.get("tokenizer.chat_template")
    return {TOKENIZER: data, "tokenizer_config.json": {**settings, **({"chat_template": template} if template else {})}}


def state_of(llm: Llama) -> dict[str, Tensor]:
    """The weights by their Hugging Face names; a tied head is left out."""
    state = {"model.embed_tokens.weight": llm.embedding, "model.norm.weight": llm.norm.weight}
    if llm.head is not llm.embedding:
        state["lm_head.weight"] = llm.head
    outer = {"input_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
    for i, block in enumerate(llm.blocks):
        for name, value in block.named_parameters():
            if ".lora_" not in name:
                module, _, kind = name.rpartition(".")
                path = outer.get(module) or f"{'self_attn' if module in ATTENTION else 'mlp'}.{module}"
                state[f"model.layers.{i}.{path}.{kind}"] = value
    return {name: value.detach().to("cpu", llm.dtype).contiguous() for name, value in state.items()}


def _save(state: Mapping[str, Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    save_file(dict(state), str(path), metadata={"format": "pt"})
