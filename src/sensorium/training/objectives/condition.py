"""Output side: hidden states -> the condition that a frozen generator takes.

An output projector turns the backbone's hidden states into what the generator's own text encoder would have given for
the same words (GILL, arXiv 2305.17216; NExT-GPT, arXiv 2309.05519). Nothing runs backward through the generator.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def match_condition(
    predicted: Tensor, wanted: Tensor, mask: Tensor | None = None, *, cosine: float = 0.5
) -> tuple[Tensor, float]:
    """Squared error, relative to the targets' own variance, mixed with the angle.

    Args:
        predicted: [B, queries, dim] from the output projector.
        wanted: [B, queries, dim] from the generator's own encoder.
        mask: [B, queries], True where a query counts; None for all.
        cosine: share of ``1 - cosine similarity`` in the loss, 0 to 1.

    Returns:
        The loss and the number of queries that it averages over.
    """
    wanted = wanted.detach().float()
    counted = torch.ones(wanted.shape[:2], dtype=torch.bool) if mask is None else mask
    number = int(counted.sum())
    if not number:
        raise ValueError("no query counts, so there is nothing to match")
    spread = wanted[counted].var(unbiased=False).clamp_min(1e-6)
    squared = (predicted.float() - wanted).pow(2).mean(-1) / spread
    angle = 1.0 - F.cosine_similarity(predicted.float(), wanted, dim=-1)
    losses = (1.0 - cosine) * squared + cosine * angle
    return losses[counted].mean(), float(number)
