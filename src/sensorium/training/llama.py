"""Backbones of llama's kind in torch (llama, qwen2, qwen3, gemma3), for training projectors through a frozen model.

Only what projector training needs: embeddings in, hidden states out, an explicit attention mask (so that several
questions can share one picture's tokens), optional LoRA, no gradient for frozen weights and logits only where a
target stands. What sets the architectures apart is said by `backbones.traits`, as for the runtime's graph. Tested
against transformers on the same weights.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sensorium.backbones.spec import BackboneSpec
from sensorium.backbones.traits import Traits
from sensorium.training.backbone import Backbone

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")
FAR = -1e4  # added to the score of what may not be attended to


class LoRALinear(nn.Module):
    """A frozen linear map plus an optional trained low-rank one: ``x W^T + (x A^T) B^T * scale`` (arXiv 2106.09685)."""

    def __init__(self, weight: Tensor, rank: int = 0, alpha: float = 0.0, bias: Tensor | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.rank = rank
        self.scale = alpha / rank if rank else 0.0
        if rank:
            out_features, in_features = weight.shape
            self.lora_A = nn.Parameter(torch.empty(rank, in_features, dtype=torch.float32))
            self.lora_B = nn.Parameter(torch.zeros(out_features, rank, dtype=torch.float32))
            nn.init.kaiming_uniform_(self.lora_A, a=5**0.5)

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        y = F.linear(x, self.weight.to(x.dtype), bias)  # float32 where it learns
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
    """One pre-norm transformer block; its weights by their names in a Hugging Face layer, without the module's."""

    q_proj: LoRALinear
    k_proj: LoRALinear
    v_proj: LoRALinear
    o_proj: LoRALinear
    gate_proj: LoRALinear
    up_proj: LoRALinear
    down_proj: LoRALinear

    def __init__(self, traits: Traits, weights: Mapping[str, Tensor], rank: int, alpha: float) -> None:
        super().__init__()
        self.traits = traits

        def norm(name: str, wanted: bool = True) -> nn.Module:
            return RMSNorm(weights[f"{name}.weight"], traits.spec.rms_eps) if wanted else nn.Identity()

        # Hugging Face calls the norm before the feed-forward layer by where it stands in llama.
        ffn = "pre_feedforward_layernorm" if traits.post_norms else "post_attention_layernorm"
        self.input_norm, self.ffn_norm = norm("input_layernorm"), norm(ffn)
        self.attention_out_norm = norm("post_attention_layernorm", traits.post_norms)
        self.ffn_out_norm = norm("post_feedforward_layernorm", traits.post_norms)
        self.q_norm, self.k_norm = norm("q_norm", traits.spec.qk_norm), norm("k_norm", traits.spec.qk_norm)
        for name in LINEARS:
            self.add_module(name, LoRALinear(weights[f"{name}.weight"], rank, alpha, weights.get(f"{name}.bias")))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        s = self.traits.spec
        batch, length, _ = x.shape
        h = self.input_norm(x)
        q = self.q_norm(self.q_proj(h).view(batch, length, s.heads, s.head_dim)).transpose(1, 2)
        k = self.k_norm(self.k_proj(h).view(batch, length, s.kv_heads, s.head_dim)).transpose(1, 2)
        v = self.v_proj(h).view(batch, length, s.kv_heads, s.head_dim).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        # Written out: for rows this short, torch's fused CPU attention spends more in its backward than all of the
        # linear layers do.
        repeat = s.heads // s.kv_heads
        k, v = k.repeat_interleave(repeat, dim=1), v.repeat_interleave(repeat, dim=1)
        scores = (q @ k.transpose(2, 3)).float() * self.traits.attention_scale + mask
        attended = torch.softmax(scores, dim=-1).to(x.dtype) @ v
        attended = self.o_proj(attended.transpose(1, 2).reshape(batch, length, s.heads * s.head_dim))
        x = x + self.attention_out_norm(attended)
        h = self.ffn_norm(x)
        gate = self.gate_proj(h)
        active = F.silu(gate) if self.traits.activation == "silu" else F.gelu(gate, approximate="tanh")
        return x + self.ffn_out_norm(self.down_proj(active * self.up_proj(h)))


class Llama(Backbone):
    """The backbone, frozen unless somebody lets its parameters learn.

    Args:
        traits: the architecture, its sizes included.
        state: Hugging Face tensor names (``model.layers.0.self_attn.q_proj.weight``, ...) to arrays.
        rank: LoRA rank on every linear layer; 0 trains nothing here.
        alpha: LoRA scale numerator.
        dtype: dtype of the frozen weights and of the activations.
        master: keep the weights in float32 and cast them for each product, because they will learn.
    """

    shape: BackboneSpec

    def __init__(
        self,
        traits: Traits,
        state: Mapping[str, np.ndarray],
        *,
        rank: int = 0,
        alpha: float = 32.0,
        dtype: torch.dtype = torch.bfloat16,
        master: bool = False,
    ) -> None:
        super().__init__()
        self.traits, self.shape, self.dtype = traits, traits.spec, dtype
        shift = 1.0 if traits.spec.arch == "gemma3" else 0.0  # its norms multiply by 1 + weight

        def tensor(name: str) -> Tensor:
            array = torch.from_numpy(np.ascontiguousarray(state[name]))
            return array + shift if "norm" in name else array.to(torch.float32 if master else dtype)

        table, head = "model.embed_tokens.weight", "lm_head.weight"
        self.embedding = nn.Parameter(tensor(table), requires_grad=False)
        tied = head not in state or state[head] is state[table]
        self.head = self.embedding if tied else nn.Parameter(tensor(head), requires_grad=False)
        self.blocks = nn.ModuleList()
        for i in range(self.shape.layers):
            prefix = f"model.layers.{i}."
            weights = {".".join(name.split(".")[-2:]): tensor(name) for name in state if name.startswith(prefix)}
            self.blocks.append(Block(traits, weights, rank, alpha))
        self.norm = RMSNorm(tensor("model.norm.weight"), self.shape.rms_eps)
        for theta in self.thetas:
            turns = torch.from_numpy(traits.frequencies(theta)).float()
            self.register_buffer(_turns(theta), turns, persistent=False)

    @property
    def thetas(self) -> set[float]:
        """The rotary bases of the layers."""
        return {self.traits.theta(i) for i in range(self.shape.layers)}

    def lookup(self, ids: Tensor) -> Tensor:
        """Rows of the embedding table, [..., dim], scaled where the architecture scales them: what stands beside
        projected media."""
        return (F.embedding(ids, self.embedding) * self.traits.embedding_scale).to(self.dtype)

    def forward(self, embeds: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """Hidden states after the last norm; see `Backbone.forward`."""
        rotary = {}
        for theta in self.thetas:
            angle = positions[:, None, :, None].float() * getattr(self, _turns(theta))
            rotary[theta] = angle.cos().to(self.dtype), angle.sin().to(self.dtype)
        masks = {-1: mask}
        x = embeds.to(self.dtype)
        for i, block in enumerate(self.blocks):
            window = self.traits.window(i)
            if window not in masks:
                behind = positions[:, None, :, None] - positions[:, None, None, :]
                masks[window] = mask.masked_fill(behind >= window, FAR)
            x = block(x, *rotary[self.traits.theta(i)], masks[window])
        return self.norm(x)

    def rows(self) -> tuple[Tensor, Tensor | None, float]:
        """Table, head and scale; see `Backbone.rows`."""
        return self.embedding, None if self.head is self.embedding else self.head, self.traits.embedding_scale

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


def _turns(theta: float) -> str:
    """The name of the buffer that holds the rotary frequencies of a base."""
    return f"turns_{theta:g}".replace(".", "_").replace("+", "")
