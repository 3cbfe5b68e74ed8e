"""Losses at target positions, with the logits of a few of them at a time.

A vocabulary is 50 to 250 thousand wide, so the logits of a batch, their softmax and its gradient would be the largest
tensors of a step. Here at most `CHUNK` positions have logits at once, in both directions: while a chunk's logits
exist, the gradient of its losses with respect to its hidden states is formed as well (as in Liger Kernel, arXiv
2410.10989), and only that, [positions, dim], is kept for the backward. A loss depends on the hidden state of its own
position alone, so the backward is one product per position, and nothing is computed twice.

A head that learns needs its own gradient, which depends on what comes back; then the chunks are recomputed in the
backward instead. Either way the head is whatever ``llm.logits`` does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK = {"cpu": 64, "cuda": 1024}
"""Positions that have logits at once, by kind of device. At a vocabulary of 49,152, 64 of them are 13 MB in float32; on
two cores that takes three quarters of the time of all at once (200 to 300 positions); 16 and 256 take longer."""

LossOf = Callable[[Tensor, slice], Tensor]
"""(logits float32 [m, vocab], which positions they are of) -> losses [m], each of its own logits alone."""


class Head(Protocol):
    """The part of a backbone that is needed here."""

    def logits(self, hidden: Tensor) -> Tensor:
        """[n, dim] -> [n, vocab]."""


def cross_entropy(llm: Head, hidden: Tensor, target: Tensor, chunk: int | None = None) -> Tensor:
    """Cross-entropy float32 [n] of the tokens ``target`` [n] behind the hidden states [n, dim]."""
    return target_losses(llm, hidden, lambda logits, at: F.cross_entropy(logits, target[at], reduction="none"), chunk)


def target_losses(llm: Head, hidden: Tensor, loss: LossOf, chunk: int | None = None) -> Tensor:
    """Losses float32 [n] of hidden states [n, dim]: those of ``loss(llm.logits(hidden), slice(0, n))``, in less memory.

    Args:
        llm: the backbone.
        hidden: states at the positions that predict a target.
        loss: what stands at a position; it may close over tensors that need no gradient.
        chunk: positions at a time, at least 1; None for that of `CHUNK`.
    """
    chunk = chunk or CHUNK.get(hidden.device.type, 1024)
    pieces = [slice(start, min(start + chunk, len(hidden))) for start in range(0, len(hidden), chunk)]

    def of(states: Tensor, at: slice) -> Tensor:
        return loss(llm.logits(states).float(), at).float()

    if not pieces:
        return hidden.sum(-1).float()  # of nothing, but in the graph
    with torch.enable_grad():
        learns = llm.logits(hidden[:0].detach()).requires_grad  # asked of no position: costs nothing
    if not torch.is_grad_enabled() or not (learns or hidden.requires_grad):
        return torch.cat([of(hidden[at], at) for at in pieces])
    if learns:
        return torch.cat([checkpoint(of, hidden[at], at, use_reentrant=False) for at in pieces])
    losses: Tensor = _GradientAhead.apply(hidden, of, pieces)
    return losses


class _GradientAhead(torch.autograd.Function):
    """Forms the gradient with respect to the hidden states in the forward."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, of: LossOf, pieces: list[slice]) -> Tensor:
        losses = torch.empty(len(hidden), device=hidden.device)
        gradient = torch.empty_like(hidden)
        for at in pieces:
            with torch.enable_grad():
                states = hidden[at].detach().requires_grad_()
                made = of(states, at)
                (gradient[at],) = torch.autograd.grad(made.sum(), states)
            losses[at] = made.detach()
        ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return (gradient * grad[:, None]).to(gradient.dtype), None, None
