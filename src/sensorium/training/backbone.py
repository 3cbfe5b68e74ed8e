"""The frozen backbone as a torch module, from the same GGUF file that the runtime reads."""

from __future__ import annotations

import hashlib

import torch

from sensorium.backbones.gguf import GGUF
from sensorium.backbones.hf_names import load_hf_state
from sensorium.backbones.spec import BackboneSpec
from sensorium.errors import SensoriumError
from sensorium.training.llama import Llama, LlamaShape
from sensorium.training.recipe import LoraRecipe


def load_llama(gguf: GGUF, spec: BackboneSpec, lora: LoraRecipe | None, dtype: torch.dtype = torch.bfloat16) -> Llama:
    """The dequantised backbone, frozen, with an untrained LoRA where the recipe asks for one.

    Raises:
        SensoriumError: the backbone has what ``Llama`` lacks (biases, norms of queries, windows, scaled positions).
    """
    if spec.arch != "llama" or spec.rope_scaling != "none":
        scaled = f" with {spec.rope_scaling} position scaling" if spec.rope_scaling != "none" else ""
        raise SensoriumError(
            f"{gguf.path} is a {spec.arch} model{scaled}, and training runs plain llama models only so far; "
            "choose a llama backbone."
        )
    shape = LlamaShape(
        spec.dim,
        spec.layers,
        spec.heads,
        spec.kv_heads,
        spec.head_dim,
        spec.ffn,
        spec.vocab,
        spec.rope_theta,
        spec.rms_eps,
    )
    rank, alpha = (lora.rank, lora.alpha) if lora else (0, 0.0)
    return Llama(shape, load_hf_state(gguf), rank=rank, alpha=alpha, dtype=dtype)


def digest_frozen(module: torch.nn.Module) -> str:
    """sha256 over every parameter that does not learn: equal before and after training, or it was not frozen."""
    digest = hashlib.sha256()
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            digest.update(name.encode())
            digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
