"""`concept`: translate through the concepts that both frozen models already have.

A classifier's encoder knows concepts as directions of its feature space; a language model knows them as word
embeddings. This projector starts as the map between the two (each cell's softmax over concept directions, times the
concepts' word embeddings: one attention layer whose keys and values are given by the frozen parts, in the spirit of
SITTA's and ReCap's closed-form alignment) and adds an MLP path for what classes do not say: colour, drawing style,
words that the encoder has no class for. Everything is trained from that start.

Three choices matter more than the training that follows (AUC of "is the word there?" read off the untrained tokens, on
photographs: 0.62 without them, 0.86 with): word embeddings lose what all nouns share, which goes into the position
vectors instead; a concept's value holds its categories besides its name; and blocks keep the strongest cell of each
concept rather than the mean.

Words that the encoder has no class for get directions too, learnt from scenes by a linear map
(`training.word_directions`); they share a softmax of their own, whose last place stands for nothing in particular.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from sensorium.projectors.mlp import pool_grid


def strongest(weights: Tensor, grid: tuple[int, int], pool: int) -> Tensor:
    """The largest value of each concept in every block: [B, h*w, c] -> [B, (h/pool)*(w/pool), c]."""
    h, w = grid
    blocks = weights.reshape(-1, h // pool, pool, w // pool, pool, weights.shape[-1])
    return blocks.amax(dim=(2, 4)).flatten(1, 2)


class ConceptProjector(nn.Module):
    """Features [B, h*w, dim] -> embeddings [B, 1 + (h/pool)*(w/pool), out_dim]; token 0 stands for the whole picture.

    Args:
        dim: feature width.
        out_dim: backbone width.
        grid: (h, w) of the encoder's cells.
        pool: block size of one token.
        concepts: number of concepts when no directions are given.
        learnt: how many of the concepts, the last ones, have a softmax of their own.
        hidden: width of the MLP path.
        directions: (weight [concepts, dim], bias [concepts]) of the encoder's classifier, to start from.
        words: [concepts, out_dim] what each concept says, relative to ``common``, to start from.
        common: [out_dim] what all tokens share.
    """

    def __init__(
        self,
        dim: int,
        out_dim: int,
        grid: tuple[int, int],
        pool: int = 2,
        concepts: int = 1000,
        hidden: int = 768,
        learnt: int = 0,
        directions: tuple[np.ndarray, np.ndarray] | None = None,
        words: np.ndarray | None = None,
        common: np.ndarray | None = None,
    ) -> None:
        super().__init__()
        self.grid, self.pool, self.learnt = grid, pool, learnt
        concepts = concepts if directions is None else len(directions[0])
        self.keys = nn.Linear(dim, concepts)
        self.values = nn.Parameter(torch.randn(concepts, out_dim) * 0.02)
        if directions is not None:
            self.keys.weight.data = torch.from_numpy(np.ascontiguousarray(directions[0])).float()
            self.keys.bias.data = torch.from_numpy(np.ascontiguousarray(directions[1])).float()
        if words is not None:
            self.values.data = torch.from_numpy(np.ascontiguousarray(words)).float()
        groups = 2 if learnt else 1
        self.log_temperature = nn.Parameter(torch.zeros(2 * groups))  # whole picture, cells; the same of learnt words
        self.gain = nn.Parameter(torch.ones(2 * groups))
        tokens = 1 + (grid[0] // pool) * (grid[1] // pool)
        self.position = nn.Parameter(torch.randn(tokens, out_dim) * 0.01)
        if common is not None:
            self.position.data += torch.from_numpy(np.ascontiguousarray(common)).float()
        self.norm = nn.LayerNorm(dim)
        self.up = nn.Linear(dim, hidden)
        self.down = nn.Linear(hidden, out_dim)
        nn.init.normal_(self.down.weight, std=0.01)
        nn.init.zeros_(self.down.bias)

    def forward(self, features: Tensor) -> Tensor:
        logits = self.keys(features)
        scale = self.log_temperature.exp()
        named = logits[..., : logits.shape[-1] - self.learnt]
        whole = torch.softmax(named.mean(dim=1, keepdim=True) * scale[0], dim=-1) * self.gain[0]
        cells = strongest(torch.softmax(named * scale[1], dim=-1), self.grid, self.pool) * self.gain[1]
        if self.learnt:
            own = logits[..., logits.shape[-1] - self.learnt :]
            seen = torch.softmax(own * scale[2], dim=-1).amax(dim=1, keepdim=True) * self.gain[2]
            whole = torch.cat((whole, seen), dim=-1)
            spread = strongest(torch.softmax(own * scale[3], dim=-1), self.grid, self.pool) * self.gain[3]
            cells = torch.cat((cells, spread), dim=-1)
        concepts = torch.cat((whole, cells), dim=1) @ self.values
        pooled = torch.cat((features.mean(dim=1, keepdim=True), pool_grid(features, self.grid, self.pool)), dim=1)
        rest = self.down(nn.functional.gelu(self.up(self.norm(pooled))))
        return concepts + rest + self.position
