"""`mlp`: pool the grid, then two linear layers with GELU between (the LLaVA-1.5 connector, arXiv 2310.03744)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def pool_grid(features: Tensor, grid: tuple[int, int], pool: int) -> Tensor:
    """Average blocks of ``pool`` x ``pool`` cells: [B, h*w, d] -> [B, (h/pool)*(w/pool), d], row-major."""
    if pool == 1:
        return features
    h, w = grid
    blocks = features.reshape(-1, h // pool, pool, w // pool, pool, features.shape[-1])
    return blocks.mean(dim=(2, 4)).flatten(1, 2)


class MLPProjector(nn.Module):
    """Features [B, cells, dim] -> embeddings [B, cells / pool^2, out_dim].

    Args:
        dim: feature width.
        out_dim: backbone width.
        grid: (h, w) of the encoder's cells.
        pool: block size averaged into one token.
        hidden: width between the two layers; the backbone's by default.
    """

    def __init__(self, dim: int, out_dim: int, grid: tuple[int, int], pool: int = 1, hidden: int | None = None) -> None:
        super().__init__()
        self.grid, self.pool = grid, pool
        self.norm = nn.LayerNorm(dim)
        self.up = nn.Linear(dim, hidden or out_dim)
        self.down = nn.Linear(hidden or out_dim, out_dim)

    def forward(self, features: Tensor) -> Tensor:
        x = self.norm(pool_grid(features, self.grid, self.pool))
        return self.down(torch.nn.functional.gelu(self.up(x)))
