"""`ctc`: hidden states of the LLM -> discrete units, non-autoregressive, by CTC (LLaMA-Omni, arXiv 2409.06666).

Each generated token is one frame: the state that it was chosen from, beside its own embedding (as LLaMA-Omni2 has it,
arXiv 2505.02625, since a state that predicts a token does not yet know which was drawn) and that of the token before,
which is often the word that this token shows to be over. Two causal llama layers read the frames; each frame then
becomes `upsample` slots, whose logits over the units and a blank CTC reads.

LLaMA-Omni repeats states before its layers. Here they are repeated behind them, so the causal layers run once per token
and not once per slot: sixteen times less work and cache. Attention looks back `window` tokens, so the cache never grows
and a token costs the same at any length. The slots of a token then read the last letters of the text
(`projectors.spelling`) and each other, which is how words get their sound that training never met.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sensorium.errors import UsageError
from sensorium.projectors.spelling import CODES

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


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Softmax attention of [..., Q, width] over [..., K, width], undirected."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(-2, -3) for x in (q, k, v))
    scores = torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, dim=-1)
    return (scores @ v).transpose(-2, -3).flatten(-2)


class Reading(nn.Module):
    """Slots read letters, then each other: [..., U, inner] and [..., L, inner] -> [..., U, inner]."""

    def __init__(self, inner: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ask, self.letters = nn.Linear(inner, inner, bias=False), nn.Linear(inner, 2 * inner, bias=False)
        self.read = nn.Linear(inner, inner, bias=False)
        self.qkv, self.out = nn.Linear(inner, 3 * inner, bias=False), nn.Linear(inner, inner, bias=False)
        self.up, self.down = nn.Linear(inner, 3 * inner), nn.Linear(3 * inner, inner, bias=False)

    def forward(self, slots: Tensor, letters: Tensor) -> Tensor:
        k, v = self.letters(plain_norm(letters)).chunk(2, dim=-1)
        slots = slots + self.read(attend(self.ask(plain_norm(slots)), k, v, self.heads))
        q, k, v = self.qkv(plain_norm(slots)).chunk(3, dim=-1)
        slots = slots + self.out(attend(q, k, v, self.heads))
        return slots + self.down(nn.functional.gelu(self.up(plain_norm(slots))))


class CTCProjector(nn.Module):
    """Frames -> logits [B, N, upsample, units + 1]; class 0 is the blank.

    Args:
        dim: width of the LLM.
        units: how many units the generator takes.
        width, depth, heads, ffn: of the layers.
        upsample: slots a token.
        inner: width of a slot and of a letter; a multiple of 32.
        window: how many tokens attention sees, the current one among them.
        letters: how many of the text's last letters the slots read.
        readings: how often they do.

    Raises:
        UsageError: `heads` does not divide `width` into an even size, or `inner` is no multiple of 32.
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
        letters: int = 32,
        readings: int = 2,
    ) -> None:
        super().__init__()
        if width % (2 * heads):
            raise UsageError(f"output projector options heads={heads} and width={width} give no even size of a head.")
        if inner % 32:
            raise UsageError(f"output projector option inner={inner} is no multiple of 32.")
        self.dim, self.units, self.upsample, self.window, self.heads, self.depth, self.letters = (
            dim, units, upsample, window, heads, depth, letters,
        )  # fmt: skip
        self.head_dim = width // heads
        self.state, self.token = nn.Linear(dim, width, bias=False), nn.Linear(dim, width)
        self.before = nn.Linear(dim, width, bias=False)
        self.blocks = nn.ModuleList(Block(width, heads, ffn) for _ in range(depth))
        self.slots, self.logits = nn.Linear(width, upsample * inner), nn.Linear(inner, units + 1)
        self.letter, self.place = nn.Embedding(CODES, inner), nn.Parameter(torch.randn(letters, inner) * 0.5)
        self.beside = nn.Linear(5 * inner, inner, bias=False)  # a letter and two on either side
        self.readings = nn.ModuleList(Reading(inner, inner // 32) for _ in range(readings))
        turns = 1e4 ** (-torch.arange(0, self.head_dim, 2) / self.head_dim)
        self.register_buffer("turns", turns, persistent=False)

    turns: Tensor

    def empty(self, batch: int) -> Tensor:
        """The cache before the first frame: [depth, 2, B, heads, 0, head_dim]."""
        return torch.zeros(self.depth, 2, batch, self.heads, 0, self.head_dim)

    def forward(
        self, states: Tensor, embeds: Tensor, before: Tensor, letters: Tensor, past: Tensor, start: Tensor
    ) -> tuple[Tensor, Tensor]:
        """
        Args:
            states: [B, N, dim], for each token the state that it was chosen from; zeros where there is none.
            embeds: [B, N, dim], the tokens' rows of the LLM's embedding table.
            before: [B, N, dim], the same of the tokens before them; zeros for the first of all.
            letters: int64 [B, N, letters], codes of the text's last letters at each token (`projectors.spelling`).
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
        slots = self.slots(plain_norm(x)).unflatten(-1, (self.upsample, -1))
        written = self.letter(letters)
        padded = nn.functional.pad(written, (0, 0, 2, 2))
        nearby = torch.cat([padded[..., i : i + self.letters, :] for i in range(5)], dim=-1)
        written = written + self.place + nn.functional.gelu(self.beside(nearby))
        for reading in self.readings:
            slots = reading(slots, written)
        return self.logits(plain_norm(slots)), torch.stack(present)
