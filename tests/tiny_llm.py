"""Small random language models of every supported architecture, as GGUF files and as transformers modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from gguf_bytes import F32, STRING, U32, entry, header, padded, tensor
from sensorium.backbones.gguf import GGUF
from sensorium.backbones.hf_names import load_hf_state
from sensorium.backbones.onnx_graph import build

DIM, HEADS, KV_HEADS, HEAD_DIM, FFN, LAYERS, VOCAB, CONTEXT, WINDOW = 64, 4, 2, 16, 96, 7, 300, 1100, 8
THETA, EPS = 5e4, 1e-5
_Q4_1 = 3


def write_gguf(
    path: Path,
    arch: str = "llama",
    *,
    tied: bool = True,
    context: int = CONTEXT,
    seed: int = 0,
    four_bits: bool = False,
    extra: tuple[bytes, ...] = (),
) -> Path:
    """A GGUF file with float32 weights whose logits spread over a few units; those of the layers are Q4_1 with
    `four_bits`. `extra` are further metadata entries."""
    random = np.random.default_rng(seed)
    fields = {
        "block_count": LAYERS,
        "context_length": context,
        "embedding_length": DIM,
        "feed_forward_length": FFN,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS,
        "attention.key_length": HEAD_DIM,
        "attention.value_length": HEAD_DIM,
    }
    if arch == "gemma3":
        fields["attention.sliding_window"] = WINDOW
    entries = [entry("general.architecture", STRING, arch)]
    entries += [entry(f"{arch}.{name}", U32, value) for name, value in fields.items()]
    entries += [
        entry(f"{arch}.rope.freq_base", F32, THETA),
        entry(f"{arch}.attention.layer_norm_rms_epsilon", F32, EPS),
    ]
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (VOCAB, DIM), "output_norm.weight": (DIM,)}
    if not tied:
        shapes["output.weight"] = (VOCAB, DIM)
    for i in range(LAYERS):
        layer: dict[str, tuple[int, ...]] = {
            "attn_norm.weight": (DIM,),
            "ffn_norm.weight": (DIM,),
            "attn_q.weight": (HEADS * HEAD_DIM, DIM),
            "attn_k.weight": (KV_HEADS * HEAD_DIM, DIM),
            "attn_v.weight": (KV_HEADS * HEAD_DIM, DIM),
            "attn_output.weight": (DIM, HEADS * HEAD_DIM),
            "ffn_gate.weight": (FFN, DIM),
            "ffn_up.weight": (FFN, DIM),
            "ffn_down.weight": (DIM, FFN),
        }
        if arch == "qwen2":
            layer |= {"attn_q.bias": (HEADS * HEAD_DIM,), "attn_k.bias": (KV_HEADS * HEAD_DIM,)}
            layer |= {"attn_v.bias": (KV_HEADS * HEAD_DIM,)}
        if arch in ("qwen3", "gemma3"):
            layer |= {"attn_q_norm.weight": (HEAD_DIM,), "attn_k_norm.weight": (HEAD_DIM,)}
        if arch == "gemma3":
            layer |= {"post_attention_norm.weight": (DIM,), "post_ffw_norm.weight": (DIM,)}
        shapes |= {f"blk.{i}.{name}": shape for name, shape in layer.items()}
    table, body = [], b""
    for name, shape in shapes.items():
        if "norm" in name:
            values = random.uniform(0.5, 1.5, shape)
        elif name.endswith("bias"):
            values = random.normal(0, 0.5, shape)
        else:
            values = random.normal(0, 1.5 * shape[1] ** -0.5 if "embd" not in name else 0.5, shape)
        packed = four_bits and name.startswith("blk.") and len(shape) == 2
        table.append(tensor(name, shape[::-1], _Q4_1 if packed else 0, len(body)))
        body += padded(q4_1(values) if packed else values.astype("<f4").tobytes())
    path.write_bytes(padded(header([*entries, *extra], table)) + body)
    return path


def q4_1(values: np.ndarray) -> bytes:
    """Values in blocks of 32 along the last axis: a step, an offset and 32 numbers of four bits."""
    blocks = values.reshape(-1, 32)
    offset = blocks.min(axis=1, keepdims=True).astype("<f2")
    step = ((blocks.max(axis=1, keepdims=True) - offset) / 15).astype("<f2")
    codes = np.clip(np.rint((blocks - offset) / step.astype(np.float32)), 0, 15).astype(np.uint8)
    halves = codes[:, :16] | codes[:, 16:] << 4
    return np.concatenate([step.view(np.uint8), offset.view(np.uint8), halves], axis=1).tobytes()


def write_lora(path: Path, *, rank: int = 4, scale: float = 0.3, seed: int = 5) -> dict[str, np.ndarray]:
    """A LoRA on every linear layer but those of layer 1."""
    from safetensors.numpy import save_file

    random = np.random.default_rng(seed)
    sizes = {
        "q_proj": (DIM, HEADS * HEAD_DIM),
        "k_proj": (DIM, KV_HEADS * HEAD_DIM),
        "v_proj": (DIM, KV_HEADS * HEAD_DIM),
        "o_proj": (HEADS * HEAD_DIM, DIM),
        "gate_proj": (DIM, FFN),
        "up_proj": (DIM, FFN),
        "down_proj": (FFN, DIM),
    }
    tensors = {}
    for i in [0, *range(2, LAYERS)]:
        for name, (inputs, outputs) in sizes.items():
            tensors[f"layers.{i}.{name}.lora_A"] = random.normal(0, inputs**-0.5, (rank, inputs)).astype(np.float32)
            tensors[f"layers.{i}.{name}.lora_B"] = random.normal(0, scale, (outputs, rank)).astype(np.float32)
    save_file(tensors, path)
    return tensors


def prepared(
    directory: Path, arch: str = "llama", *, quantization: str = "fp32", lora: Path | None = None, **options: Any
) -> Path:
    """The directory of a built graph; the GGUF lies in it as model.gguf."""
    directory.mkdir(parents=True, exist_ok=True)
    with GGUF(write_gguf(directory / "model.gguf", arch, **options)) as gguf:
        return build(gguf, directory, quantization=quantization, lora=lora)


def reference(path: Path, *, lora: dict[str, np.ndarray] | None = None) -> Any:
    """The transformers model with the (dequantised) weights of a GGUF file, float32, in eval mode.

    `lora` (keys as in the file) is applied as `W + B A` to the Hugging Face weights.
    """
    import torch
    import transformers

    with GGUF(path) as gguf:
        arch, state = gguf.metadata["general.architecture"], load_hf_state(gguf)
        field = {name: gguf.metadata.get(f"{arch}.{name}") for name in _SIZES}
    for i in range(field["block_count"] if lora else 0):
        for part in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"):
            if f"layers.{i}.{part}.lora_A" in lora:
                where = "self_attn" if part[0] in "qkvo" else "mlp"
                delta = lora[f"layers.{i}.{part}.lora_B"] @ lora[f"layers.{i}.{part}.lora_A"]
                state[f"model.layers.{i}.{where}.{part}.weight"] += delta
    tied = state["lm_head.weight"] is state["model.embed_tokens.weight"]
    heads = field["attention.head_count"]
    sizes: dict[str, Any] = {
        "vocab_size": len(state["model.embed_tokens.weight"]),
        "hidden_size": field["embedding_length"],
        "intermediate_size": field["feed_forward_length"],
        "num_hidden_layers": field["block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": field["attention.head_count_kv"],
        "head_dim": field["attention.key_length"] or field["embedding_length"] // heads,
        "max_position_embeddings": field["context_length"],
        "rms_norm_eps": field["attention.layer_norm_rms_epsilon"],
        "tie_word_embeddings": tied,
        "attn_implementation": "eager",
    }
    theta = field["rope.freq_base"]
    if arch == "gemma3":
        sizes |= {"query_pre_attn_scalar": sizes["head_dim"], "sliding_window": field["attention.sliding_window"]}
        sizes |= {
            "layer_types": ["sliding_attention" if (i + 1) % 6 else "full_attention" for i in range(LAYERS)],
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": theta},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        }
    else:
        sizes |= {"rope_theta": theta, "rope_parameters": {"rope_type": "default", "rope_theta": theta}}
    names = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3", "gemma3": "Gemma3"}
    suffix = "TextConfig" if arch == "gemma3" else "Config"
    config = getattr(transformers, names[arch] + suffix)(**sizes)
    model = getattr(transformers, f"{names[arch]}ForCausalLM")(config)
    model.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in state.items()}, strict=True)
    return model.eval()


_SIZES = (
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.sliding_window",
    "attention.layer_norm_rms_epsilon",
    "rope.freq_base",
)
