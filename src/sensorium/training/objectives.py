"""What a step minimises. Logits are computed where a target stands and nowhere else."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sensorium.training.llama import Llama
from sensorium.training.rows import Rows


def additive_mask(rows: Rows, dtype: torch.dtype) -> Tensor:
    """[B, 1, length, length]: 0 where a position may attend, a large negative number elsewhere."""
    allowed = torch.from_numpy(rows.mask())[:, None]
    return torch.zeros(allowed.shape, dtype=dtype).masked_fill_(~allowed, -1e4)


def place_media(llm: Llama, embeds: Tensor, rows: Rows) -> Tensor:
    """Token embeddings with the projected picture in its place: [B, length, dim]."""
    start, end = rows.media
    text = llm.embed(torch.from_numpy(rows.ids))
    return torch.cat((text[:, :start], embeds.to(text.dtype), text[:, end:]), dim=1)


def next_token(llm: Llama, embeds: Tensor, rows: Rows) -> tuple[Tensor, float]:
    """Weighted mean cross-entropy of the answers' tokens, given the picture's embeddings [B, tokens, dim].

    Returns:
        The loss and the sum of the weights that it averages over.
    """
    hidden = llm(place_media(llm, embeds, rows), torch.from_numpy(rows.positions), additive_mask(rows, llm.dtype))
    row, position, target, weight = rows.targets()
    logits = llm.logits(hidden[torch.from_numpy(row), torch.from_numpy(position)])
    losses = F.cross_entropy(logits, torch.from_numpy(target), reduction="none")
    weights = torch.from_numpy(weight)
    return (losses * weights).sum() / weights.sum(), float(weights.sum())
