"""Contrastive losses between two towers: CLIP (arXiv 2103.00020) and SigLIP (2303.15343), as open_clip defines them.

Both take every row's own pair for right and all others for wrong, except the pairs that ``unsure`` marks: a batch of
named pictures holds two apples, and "an apple" is no wrong text for the second. Logits are made ``chunk`` rows at a
time and made again in the backward pass, so memory is O(chunk * N) instead of O(N^2). With several processes each
compares its own rows with the rows of all, and gradients flow back to the process that a row came from.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Kind = Literal["clip", "siglip"]
LARGEST_LOG_SCALE = math.log(100)
NEVER = -1e9  # the logit of a pair that is left out of a softmax


class Temperature(nn.Module):
    """The learnt scale of the cosines (kept as its logarithm, as open_clip does) and SigLIP's bias."""

    def __init__(self, kind: Kind) -> None:
        super().__init__()
        self.kind = kind
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07) if kind == "clip" else math.log(10)))
        self.logit_bias = nn.Parameter(torch.tensor(-10.0)) if kind == "siglip" else None

    def clamp(self) -> None:
        """Keep the scale between 1 and 100. Call it after each step of the optimizer."""
        with torch.no_grad():
            self.logit_scale.clamp_(0.0, LARGEST_LOG_SCALE)


class _Gather(torch.autograd.Function):
    """All processes' rows, in order of rank; backward sums what every process wants of ours."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        whole = grads[0].contiguous()
        dist.all_reduce(whole)
        return whole.chunk(dist.get_world_size())[dist.get_rank()]


def gather(rows: Tensor) -> Tensor:
    """[n, ...] of this process -> [n * processes, ...] of all; every process must have as many rows."""
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return rows
    if not rows.requires_grad:
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)
    return _Gather.apply(rows)


def first_row(rows: Tensor) -> int:
    """Where this process's rows stand among those of all."""
    several = dist.is_available() and dist.is_initialized()
    return dist.get_rank() * len(rows) if several else 0


def contrastive_loss(
    image: Tensor, text: Tensor, temperature: Temperature, unsure: Tensor | None = None, chunk: int | None = None
) -> Tensor:
    """The mean loss of this process's pairs.

    Args:
        image, text: features [n, dim] of this process's pairs; normalised here.
        temperature: says which of the two losses it is.
        unsure: bool [n, 2, N] with N the pairs of all processes: [:, 0] which texts may be true of this process's
            pictures, [:, 1] which pictures this process's texts may be true of. Those pairs count neither as right nor
            as wrong; a row's own pair always counts.
        chunk: rows of logits at a time; None for all.
    """
    image, text = F.normalize(image, dim=-1), F.normalize(text, dim=-1)
    start = first_row(image)
    if temperature.kind == "siglip":
        sides = [(image, gather(text), 0)]
        rows: Callable[..., Tensor] = _siglip_rows
    else:
        sides = [(image, gather(text), 0), (text, gather(image), 1)]
        rows = _clip_rows
    total = image.new_zeros(())
    size = chunk or len(image)
    for own, others, side in sides:
        for at in range(0, len(own), size):
            left_out = None if unsure is None else unsure[at : at + size, side]
            arguments = (own[at : at + size], others, start + at, temperature, left_out)
            # one chunk is computed once; several are computed anew in the backward pass, one at a time
            total = total + (rows(*arguments) if size >= len(own) else _again(rows, *arguments))
    return total / (len(image) * len(sides))


def _again(rows: Callable[..., Tensor], *arguments: Any) -> Tensor:
    result: Tensor = checkpoint(rows, *arguments, use_reentrant=False)
    return result


def _clip_rows(own: Tensor, others: Tensor, first: int, temperature: Temperature, left_out: Tensor | None) -> Tensor:
    """Summed cross-entropy of rows ``first`` and following against all."""
    logits = temperature.logit_scale.exp() * own @ others.T
    right = torch.arange(first, first + len(own))
    if left_out is not None:
        logits = logits.masked_fill(_but_own(left_out, right), NEVER)
    return F.cross_entropy(logits, right, reduction="sum")


def _siglip_rows(own: Tensor, others: Tensor, first: int, temperature: Temperature, left_out: Tensor | None) -> Tensor:
    """Summed binary losses -log sigmoid(z * logit), z = 1 for a row's own pair, else -1 (then it is softplus)."""
    assert temperature.logit_bias is not None
    logits = temperature.logit_scale.exp() * own @ others.T + temperature.logit_bias
    right = torch.arange(first, first + len(own))
    losses = F.softplus(logits)
    if left_out is not None:
        losses = losses.masked_fill(_but_own(left_out, right), 0.0)
    return losses.sum() - logits[torch.arange(len(own)), right].sum()  # softplus(x) - x = softplus(-x)


def _but_own(left_out: Tensor, right: Tensor) -> Tensor:
    mask = left_out.clone()
    mask[torch.arange(len(right)), right] = False
    return mask
