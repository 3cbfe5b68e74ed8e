"""A llama-architecture backbone in torch, written for training projectors through a frozen model.

Only what projector training needs: embeddings in, hidden states out, an explicit attention mask (so that several
questions can share one picture's tokens), optional LoRA, no gradient for frozen weights and logits only where a
target stands. Tested against ``transformers.LlamaForCausalLM`` on the same weights.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sensorium.training.backbone import Backbone

NORMS = ("input_layernorm", "post_attention_layernorm")
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class LlamaShape:
    """The numbers that define the architecture (``dim`` = hidden size, ``ffn`` = SwiGLU width)."""

    dim: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    rope_theta: float = 10000.0
    rms_eps: float = 1e-5


class LoRALinear(nn.Module):
    """A frozen linear map plus an optional trained low-rank one: ``x W^T + (x A^T) B^T * scale`` (arXiv 2106.09685)."""

    def __init__(self, weight: Tensor, rank: int = 0, alpha: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.rank = rank
        self.scale = alpha / rank if rank else 0.0
        if rank:
            out_features, in_features = weight.shape
            self.lora_A = nn.Parameter(torch.empty(rank, in_features, dtype=torch.float32))
            self.lora_B = nn.Parameter(torch.zeros(out_features, rank, dtype=torch.float32))
            nn.init.kaiming_uniform_(self.lora_A, a=5**0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight.to(x.dtype))  # float32 where it learns
        if self.rank:
            low = F.linear(x, self.lora_A.to(x.dtype))
            y = y + F.linear(low, self.lora_B.to(x.dtype)) * self.scale
        return y


def without_lora(llm: Backbone) -> contextlib.AbstractContextManager[Any]:
    """Inside, the bare backbone answers."""
    return llm.without_lora()


class RMSNorm(nn.Module):
    """Root-mean-square norm in float32, cast back to the input's dtype."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        h = x.float()
        h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + self.eps)
        return (h * self.weight).to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding in the half-split layout; ``x`` [B, H, S, d], ``cos``/``sin`` [B, 1, S, d/2]."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class Block(nn.Module):
    """One pre-norm transformer block."""

    q_proj: LoRALinear
    k_proj: LoRALinear
    v_proj: LoRALinear
    o_proj: LoRALinear
    gate_proj: LoRALinear
    up_proj: LoRALinear
    down_proj: LoRALinear

    def __init__(self, shape: LlamaShape, weights: Mapping[str, Tensor], rank: int, alpha: float) -> None:
        super().__init__()
        self.shape = shape
        self.input_norm = RMSNorm(weights["input_layernorm"], shape.rms_eps)
        self.post_norm = RMSNorm(weights["post_attention_layernorm"], shape.rms_eps)
        for name in LINEARS:
            self.add_module(name, LoRALinear(weights[name], rank, alpha))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        s = self.shape
        batch, length, _ = x.shape
        h = self.input_norm(x)
        q = self.q_proj(h).view(batch, length, s.heads, s.head_dim).transpose(1, 2)
        k = self.k_proj(h).view(batch, length, s.kv_heads, s.head_dim).transpose(1, 2)
        v = self.v_proj(h).view(batch, length, s.kv_heads, s.head_dim).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        # Written out: for rows this short, torch's fused CPU attention spends more in its backward than all of the
        # linear layers do.
        repeat = s.heads // s.kv_heads
        k, v = k.repeat_interleave(repeat, dim=1), v.repeat_interleave(repeat, dim=1)
        scores = (q @ k.transpose(2, 3)).float() * s.head_dim**-0.5 + mask
        attended = torch.softmax(scores, dim=-1).to(x.dtype) @ v
        x = x + self.o_proj(attended.transpose(1, 2).reshape(batch, length, s.heads * s.head_dim))
        h = self.post_norm(x)
        return x + self.down_proj(F.silu(self.gate_proj(h)) * self.up_proj(h))


class Llama(Backbone):
    """The backbone, frozen unless somebody lets its parameters learn.

    Args:
        shape: the architecture.
        state: Hugging Face tensor names (``model.layers.0.self_attn.q_proj.weight``, ...) to arrays.
        rank: LoRA rank on every linear layer; 0 trains nothing here.
        alpha: LoRA scale numerator.
        dtype: dtype of the frozen weights and of the activations.
        master: keep the weights in float32 and cast them for each product, because they will learn.
    """

    shape: LlamaShape

    inv_freq: Tensor

    def __init__(
        self,
        shape: LlamaShape,
        state: Mapping[str, np.ndarray],
        *,
        rank: int = 0,
        alpha: float = 32.0,
        dtype: torch.dtype = torch.bfloat16,
        master: bool = False,
    ) -> None:
        super().__init__()
        self.shape = shape
        self.dtype = dtype

        def tensor(name: str) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(state[name])).to(torch.float32 if master else dtype)

        table, head = "model.embed_tokens.weight", "lm_head.weight"
        self.embedding = nn.Parameter(tensor(table), requires_grad=False)
        tied = head not in state or state[head] is state[table]
        self.head = self.embedding if tied else nn.Parameter(tensor(head), requires_grad=False)
        self.blocks = nn.ModuleList()
        for i in range(shape.layers):
            prefix = f"model.layers.{i}."
            weights = {n: tensor(f"{prefix}{n}.weight").float() for n in NORMS}
            weights |= {n: tensor(f"{prefix}self_attn.{n}.weight") for n in LINEARS[:4]}
            weights |= {n: tensor(f"{prefix}mlp.{n}.weight") for n in LINEARS[4:]}
            self.blocks.append(Block(shape, weights, rank, alpha))
        self.norm = RMSNorm(tensor("model.norm.weight").float(), shape.rms_eps)
        half = torch.arange(0, shape.head_dim, 2, dtype=torch.float64) / shape.head_dim
        self.register_buffer("inv_freq", (1.0 / shape.rope_theta**half).float(), persistent=False)

    def lookup(self, ids: Tensor) -> Tensor:
        """Rows of the embedding table, [..., dim]."""
        return F.embedding(ids, self.embedding).to(self.dtype)

    def forward(self, embeds: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """Hidden states after the last norm; see `Backbone.forward`."""
        angle = positions[:, None, :, None].float() * self.inv_freq
        cos, sin = angle.cos().to(self.dtype), angle.sin().to(self.dtype)
        x = embeds.to(self.dtype)
        for block in self.blocks:
            x = block(x, cos, sin, mask)
        return self.norm(x)

    def score(self, hidden: Tensor) -> Tensor:
        """[n, dim] -> [n, vocab] in float32."""
        return F.linear(hidden.to(self.dtype), self.head.to(self.dtype)).float()

    @contextlib.contextmanager
    def without_lora(self) -> Iterator[None]:
        """Inside, the bare backbone answers."""
        layers = [module for module in self.modules() if isinstance(module, LoRALinear) and module.rank]
        ranks = [layer.rank for layer in layers]
        try:
            for layer in layers:
                layer.rank = 0
            yield
        finally:
            for layer, rank in zip(layers, ranks):
                layer.rank = rank

    def lora_state(self) -> dict[str, Tensor]:
        """The trained matrices by the names that the graph writer merges; the scale is folded into B."""
        state = {}
        for i, block in enumerate(self.blocks):
            for name in LINEARS:
                layer = getattr(block, name)
                if layer.rank:
                    state[f"layers.{i}.{name}.lora_A"] = layer.lora_A.detach().float().contiguous()
                    state[f"layers.{i}.{name}.lora_B"] = (layer.lora_B.detach().float() * layer.scale).contiguous()
        return state
