"""BERT in torch, for MiniLM: token ids to the mean over the tokens. The architecture is that of `bert_graph`.

Without dropout: a few hundred steps of small changes are no training from nothing, and a step stays a function of the
step alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sensorium.encoders import bert_graph
from sensorium.encoders.tensors import read_safetensors


class Residual(nn.Module):
    """A linear layer, added to what stands beside it, normalised."""

    def __init__(self, inputs: int, dim: int) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, dim)
        self.LayerNorm = nn.LayerNorm(dim, eps=bert_graph.EPSILON)

    def forward(self, x: Tensor, beside: Tensor) -> Tensor:
        result: Tensor = self.LayerNorm(self.dense(x) + beside)
        return result


class Block(nn.Module):
    """Attention, then a feed-forward layer; the parts have the published names."""

    def __init__(self, dim: int, ffn: int) -> None:
        super().__init__()
        self.heads = dim // bert_graph.HEAD_DIM
        inner = nn.ModuleDict({name: nn.Linear(dim, dim) for name in ("query", "key", "value")})
        self.attention = nn.ModuleDict({"self": inner, "output": Residual(dim, dim)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(dim, ffn)})
        self.output = Residual(ffn, dim)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        """[B, T, dim], with ``seen`` bool [B, 1, 1, T]."""
        inner: Any = self.attention["self"]
        query, key, value = (layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in inner.values())
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        x = self.attention["output"](mixed.transpose(1, 2).flatten(2), x)
        result: Tensor = self.output(F.gelu(self.intermediate["dense"](x)), x)
        return result


class Bert(nn.Module):
    """(ids int64, mask float32) [B, T] -> [B, dim]; raises SensoriumError for a file that holds no BERT."""

    def __init__(self, weights: Path) -> None:
        super().__init__()
        state = read_safetensors(weights)
        shape = bert_graph.shape_of(state)
        words, places = nn.Embedding(shape.vocabulary, shape.dim), nn.Embedding(shape.positions, shape.dim)
        self.embeddings = nn.ModuleDict({"word_embeddings": words, "position_embeddings": places})
        self.embeddings["token_type_embeddings"] = nn.Embedding(2, shape.dim)
        self.embeddings["LayerNorm"] = nn.LayerNorm(shape.dim, eps=bert_graph.EPSILON)
        layers = nn.ModuleList(Block(shape.dim, shape.ffn) for _ in range(shape.layers))
        self.encoder = nn.ModuleDict({"layer": layers})
        checked = bert_graph.checked(state, shape)
        self.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in checked.items()})

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        parts: Any = self.embeddings
        layers: Any = self.encoder["layer"]
        kind = parts["token_type_embeddings"].weight[0]  # every text is a first sentence
        places = parts["position_embeddings"].weight[: ids.shape[1]]
        x = parts["LayerNorm"](parts["word_embeddings"](ids) + places + kind)
        seen = mask.bool()[:, None, None]
        for block in layers:
            x = block(x, seen)
        total: Tensor = (x * mask[..., None]).sum(dim=1)
        return total / mask.sum(dim=1, keepdim=True)

    def published(self) -> dict[str, np.ndarray]:
        """The weights by their published names."""
        return {name: value.detach().cpu().numpy() for name, value in self.state_dict().items()}
