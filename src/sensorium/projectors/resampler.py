"""`resampler`: a fixed number of learned queries look at all cells (Perceiver Resampler, Flamingo, arXiv 2204.14198).

The number of tokens does not depend on the number of cells, so it can be chosen freely: few for speed, many for detail.
Each block is cross-attention from the queries to the cells and an MLP, both with a residual path. Cells carry a learned
vector for their row and one for their column, since attention alone would not know where they lie.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sensorium.errors import UsageError


def plain_norm(width: int) -> nn.LayerNorm:
    """Without scale and shift: the linear layer that follows each norm here has its own."""
    return nn.LayerNorm(width, elementwise_affine=False)


class Block(nn.Module):
    """Queries [B or 1, q, width] look at cells [B, n, width], then think: [B, q, width]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = plain_norm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, queries: Tensor, cells: Tensor) -> Tensor:
        normal = self.norm(cells)
        q, k, v = (self._split(x) for x in (self.query(self.norm(queries)), self.key(normal), self.value(normal)))
        weights = torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, dim=-1)
        queries = queries + self.out((weights @ v).transpose(1, 2).flatten(2))
        return queries + self.down(nn.functional.gelu(self.up(self.norm(queries))))

    def _split(self, x: Tensor) -> Tensor:
        """[B, n, width] -> [B, heads, n, width / heads]"""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class ResamplerProjector(nn.Module):
    """Features [B, h*w, dim] -> embeddings [B, queries, out_dim].

    Args:
        dim: feature width.
        out_dim: backbone width.
        grid: (h, w) of the encoder's cells.
        queries: number of tokens.
        depth: number of blocks.
        width: width inside.
        heads: attention heads, a divisor of `width`.

    Raises:
        UsageError: `heads` does not divide `width`.
    """

    def __init__(
        self,
        dim: int,
        out_dim: int,
        grid: tuple[int, int],
        queries: int = 32,
        depth: int = 2,
        width: int = 384,
        heads: int = 6,
    ) -> None:
        super().__init__()
        if width % heads:
            raise UsageError(f"projector option heads={heads} does not divide width={width}; choose a divisor.")
        self.grid = grid
        self.inner = nn.Sequential(plain_norm(dim), nn.Linear(dim, width))
        self.rows, self.columns = (nn.Parameter(torch.randn(n, width) * 0.02) for n in grid)
        self.queries = nn.Parameter(torch.randn(queries, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm, self.outer = plain_norm(width), nn.Linear(width, out_dim)
        nn.init.normal_(self.outer.weight, std=0.02)  # about as large as word embeddings

    def forward(self, features: Tensor) -> Tensor:
        place = (self.rows[:, None] + self.columns[None]).flatten(0, 1)
        cells = self.inner(features) + place
        queries = self.queries[None]
        for block in self.blocks:
            queries = block(queries, cells)
        return self.outer(self.norm(queries))
