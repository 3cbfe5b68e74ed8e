"""`ctc`: hidden states of the LLM -> discrete units, non-autoregressive, by CTC (LLaMA-Omni, arXiv 2409.06666).

Each generated token is one frame: the state that it was chosen from, beside its own embedding (as LLaMA-Omni2 has it,
arXiv 2505.02625, since a state that predicts a token does not yet know which was drawn) and that of the token before,
which is often the word that this token shows to be over. Two causal llama layers read the frames; each frame then
becomes `upsample` slots, whose logits over the units and a blank CTC reads.

LLaMA-Omni repeats states before its layers. Here they are repeated behind them, so the layers run once per token and
not once per slot: sixteen times less work and cache, while a slot still has weights of its own (the learned
sub-position). Attention looks back `window` tokens, so the cache never grows and a token costs the same at any length.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sensorium.errors import UsageError

EPS = 1e-5
FAR = -1e4


def plain_norm(x: Tensor) -> Tensor:
    """Root mean square 1 along the last axis; the linear layer that follows has its own scale. Zeros stay zeros."""
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions in the half-split layout: `x` [B, H, N, d], `cos` and `sin` [N, d/2]."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class Block(nn.Module):
    """One llama layer: causal attention within a window, then SwiGLU; [B, N, width] -> the same, and the cache."""

    def __init__(self, width: int, heads: int, ffn: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.gate, self.up = nn.Linear(width, ffn, bias=False), nn.Linear(width, ffn, bias=False)
        self.down = nn.Linear(ffn, width, bias=False)

    def forward(self, x: Tensor, past: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = self.qkv(plain_norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        k = torch.cat((past[0], rotate(k, cos, sin)), dim=2)
        v = torch.cat((past[1], v), dim=2)
        scores = rotate(q, cos, sin) @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + mask
        x = x + self.out((torch.softmax(scores, dim=-1) @ v).transpose(1, 2).flatten(2))
        h = plain_norm(x)
        return x + self.down(nn.functional.silu(self.gate(h)) * self.up(h)), torch.stack((k, v))


class CTCProjector(nn.Module):
    """Frames -> logits [B, N, upsample, units + 1]; class 0 is the blank.

    Args:
        dim: width of the LLM.
        units: how many units the generator takes.
        width, depth, heads, ffn: of the layers.
        upsample: slots a token.
        inner: width of a slot before its logits.
        window: how many tokens attention sees, the current one among them.

    Raises:
        UsageError: `heads` does not divide `width` into an even size.
    """

    def __init__(
        self,
        dim: int,
        units: int,
        width: int = 384,
        depth: int = 2,
        heads: int = 6,
        ffn: int = 1024,
        upsample: int = 16,
        inner: int = 96,
        window: int = 32,
    ) -> None:
        super().__init__()
        if width % (2 * heads):
            raise UsageError(f"output projector options heads={heads} and width={width} give no even size of a head.")
        self.dim, self.units, self.upsample, self.window, self.heads, self.depth = (
            dim, units, upsample, window, heads, depth,
        )  # fmt: skip
        self.head_dim = width // heads
        self.state, self.token = nn.Linear(dim, width, bias=False), nn.Linear(dim, width)
        self.before = nn.Linear(dim, width, bias=False)
        self.blocks = nn.ModuleList(Block(width, heads, ffn) for _ in range(depth))
        self.slots, self.logits = nn.Linear(width, upsample * inner), nn.Linear(inner, units + 1)
        turns = 1e4 ** (-torch.arange(0, self.head_dim, 2) / self.head_dim)
        self.register_buffer("turns", turns, persistent=False)

    turns: Tensor

    def empty(self, batch: int) -> Tensor:
        """The cache before the first frame: [depth, 2, B, heads, 0, head_dim]."""
        return torch.zeros(self.depth, 2, batch, self.heads, 0, self.head_dim)

    def forward(
        self, states: Tensor, embeds: Tensor, before: Tensor, past: Tensor, start: Tensor
    ) -> tuple[Tensor, Tensor]:
        """
        Args:
            states: [B, N, dim], for each token the state that it was chosen from; zeros where there is none.
            embeds: [B, N, dim], the tokens' rows of the LLM's embedding table.
            before: [B, N, dim], the same of the tokens before them; zeros for the first of all.
            past: the cache, of at most ``window - 1`` positions.
            start: int64 [1], how many frames came before.

        Returns:
            Logits [B, N, upsample, units + 1], and the cache after these frames.
        """
        count, kept = states.shape[1], past.shape[4]
        at = start + torch.arange(count, device=states.device)
        seen = start - kept + torch.arange(kept + count, device=states.device)
        behind = at[:, None] - seen[None, :]
        mask = torch.where((behind >= 0) & (behind < self.window), 0.0, FAR)
        angle = at[:, None].float() * self.turns
        cos, sin = angle.cos(), angle.sin()
        x = self.state(plain_norm(states)) + self.token(plain_norm(embeds)) + self.before(plain_norm(before))
        present = []
        for i, block in enumerate(self.blocks):
            x, cache = block(x, past[i], cos, sin, mask)
            present.append(cache[:, :, :, -(self.window - 1) :])
        inner = self.slots(plain_norm(x)).unflatten(-1, (self.upsample, -1))
        return self.logits(nn.functional.gelu(inner)), torch.stack(present)
