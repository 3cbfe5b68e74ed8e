"""`stack`: frames of sound, several side by side as one LLM position, through a SwiGLU MLP.

Frame stacking and a small MLP are how LLaMA-Omni and SLAM-LLM join a frozen speech encoder to a frozen LLM (arXiv
2409.06666, 2402.08846); the gated unit is Shazeer's (arXiv 2002.05202). A stack of 8 frames at 50 Hz is 160 ms, which
is shorter than most words. So `depth` layers before the MLP may look at `context` stacks on either side.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-5
FARTHEST = 60.0
"""Below the nearest word's logit, where all others are alike: e^-60 is nothing beside 1 and still a normal number. With
denormal ones a product takes four times as long."""
FOCUS = 1.1
"""The LLM reads one word better than a mean of several: of the same sounds it answered 49 % of questions right at e^0,
58 % at e^0.5 and 60 % at e^1.4."""
BETWEEN = 0.9
"""The LLM need not read a position that is as surely between words. Left out, it answered 73 % of 160 questions right
instead of 67 %, and read a third less; 72 % at 0.5."""

NEAREST = 64
"""Words whose rows a position is made of when the LLM reads it. The other 25,600 had less than 5e-6 of each of 748
positions' softmax, and to read their rows as well takes a two-second question 10 ms longer."""


def stacked(features: Tensor, stack: int) -> Tensor:
    """[B, frames, dim] -> [B, ceil(frames / stack), stack * dim]: zeros behind the end, nothing is left out."""
    dim = features.shape[2]
    padded = F.pad(features, (0, 0, 0, stack - 1))
    return padded[:, : padded.shape[1] // stack * stack].reshape(features.shape[0], -1, stack * dim)


def plain_norm(x: Tensor) -> Tensor:
    """Root mean square 1 along the last axis; zeros stay zeros."""
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS)


class SwiGLU(nn.Module):
    """[..., dim] -> [..., out_dim]; nothing in it has a bias, so zeros stay zeros."""

    def __init__(self, dim: int, hidden: int, out_dim: int) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(dim, hidden, bias=False), nn.Linear(dim, hidden, bias=False)
        self.down = nn.Linear(hidden, out_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Look(nn.Module):
    """One residual layer over a stack and its `context` neighbours on either side: [B, n, width] -> the same."""

    def __init__(self, width: int, context: int, hidden: int) -> None:
        super().__init__()
        self.context = context
        self.mlp = SwiGLU((2 * context + 1) * width, hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        length, around = x.shape[1], F.pad(plain_norm(x), (0, 0, self.context, self.context))
        return x + self.mlp(torch.cat([around[:, i : i + length] for i in range(2 * self.context + 1)], dim=-1))


class Words(nn.Module):
    """Tokens of the LLM as what frames are: by how they sound, and as what the LLM reads. The first one stands between
    words, where the LLM reads over it.

    Args:
        table: [words, dim] rows of the LLM's embedding table, frozen.
        keys: width of a key; a frame says a word by pointing to its key. In training keys are made from how words are
            spelt and pronounced (`training.listen_words`), so that a rare one learns from those that sound like it.
    """

    table: Tensor
    keys: Tensor

    def __init__(self, table: Tensor, keys: int) -> None:
        super().__init__()
        self.register_buffer("table", table.float())
        self.register_buffer("keys", torch.zeros(len(table), keys))
        self.prior = nn.Parameter(torch.zeros(1))  # of the first one
        self.scale = nn.Parameter(torch.full((1,), math.log(3 / math.sqrt(keys))))
        self.focus = nn.Parameter(torch.full((1,), FOCUS))

    def forward(self, frames: Tensor) -> Tensor:
        """[..., keys] -> logits [..., words]."""
        near = self.scale.exp() * (frames @ self.keys.T)
        return torch.cat((near[..., :1] + self.prior, near[..., 1:]), dim=-1)

    def mean(self, shares: Tensor) -> Tensor:
        """[..., words] -> the mean row [..., dim]."""
        return shares @ self.table

    def nearest(self, shares: Tensor) -> Tensor:
        """[..., words] -> the mean row [..., dim] of the `NEAREST` words."""
        best, which = shares.topk(min(NEAREST, shares.shape[-1]), dim=-1)
        rows = self.table[which]
        return ((best / best.sum(dim=-1, keepdim=True))[..., None, :] @ rows)[..., 0, :]

    def between(self, shares: Tensor) -> Tensor:
        """[..., n, words] -> [..., n]: how much a position stands between words, 0 to 1; below `BETWEEN` it says
        something, and the one that does so most is below it in any case."""
        share = shares[..., 0]
        return torch.where(share == share.amin(dim=-1, keepdim=True), torch.zeros_like(share), share)

    def shares(self, frames: Tensor) -> Tensor:
        """[..., keys] -> [..., words] that sum to 1: a softmax that is e^focus as sharp as the logits are."""
        near = self.focus.exp() * self(frames)
        return torch.softmax((near - near.amax(dim=-1, keepdim=True)).clamp(min=-FARTHEST), dim=-1)


class StackProjector(nn.Module):
    """Features [B, frames, dim] -> embeddings [B, ceil(frames / stack), out_dim], or fewer with words.

    Args:
        dim: feature width.
        out_dim: backbone width.
        grid: unused; every projector is made alike.
        stack: frames of a position.
        hidden: width inside the gated units.
        depth: layers before the MLP that look around; with 0, a position is made of its own frames alone.
        context: how many stacks on either side a layer sees.
        width: of those layers.
        words: how many token embeddings the output is a mean of; 0 for an output that is free.
        keys: width of what tells these from each other.
        table: these embeddings [words, out_dim]; zeros where None, to be loaded.
    """

    def __init__(
        self,
        dim: int,
        out_dim: int,
        grid: tuple[int, int] | None = None,
        stack: int = 8,
        hidden: int = 1024,
        depth: int = 0,
        context: int = 2,
        width: int = 512,
        words: int = 0,
        keys: int = 256,
        table: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.stack = stack
        self.norm = nn.Parameter(torch.ones(stack * dim))
        self.reduce = nn.Linear(stack * dim, width, bias=False) if depth else nn.Identity()
        self.looks = nn.ModuleList(Look(width, context, hidden) for _ in range(depth))
        points = keys if words else out_dim
        self.mlp = SwiGLU(width if depth else stack * dim, hidden, points)
        self.bias = nn.Parameter(torch.zeros(points))
        self.words = Words(torch.zeros(words, out_dim) if table is None else table, keys) if words else None

    def forward(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """
        Args:
            features: [B, frames, dim], zeros behind the end of each; with words one sound alone, whose positions
                between words are left out.
            lengths: [B] frames that count, where sounds of several lengths are in one batch; the embeddings of each
                are those that it has alone, and behind its last position anything may stand.
        """
        frames = self.frames(features, lengths)
        if self.words is None:
            return frames
        shares = self.words.shares(frames)
        return self.words.nearest(shares[:, self.words.between(shares)[0] < BETWEEN])

    def frames(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """[B, n, keys], what points to words (without words [B, n, out_dim]); arguments as of `forward`."""
        return self.both(features, lengths)[1]

    def both(self, features: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What the first half of the layers makes of it, [B, n, width], from which training has it tell the sounds of
        the language; and `frames`."""
        x = plain_norm(stacked(features, self.stack)) * self.norm
        x = heard = self.reduce(x)
        for number, look in enumerate(self.looks, start=1):
            x = look(x if lengths is None else x * self._inside(x, lengths))
            if number == (len(self.looks) + 1) // 2:
                heard = x
        return heard, self.mlp(plain_norm(x) if len(self.looks) else x) + self.bias

    def _inside(self, x: Tensor, lengths: Tensor) -> Tensor:
        """[B, n, 1]: 1 where a position belongs to its sound."""
        last = torch.div(lengths - 1, self.stack, rounding_mode="floor")
        return (torch.arange(x.shape[1], device=x.device) <= last[:, None])[..., None].to(x.dtype)
