"""Rows and projected media through the backbone: what every objective on its hidden states begins with."""

from __future__ import annotations

import torch
from torch import Tensor

from sensorium.training.backbone import Backbone
from sensorium.training.rows import Rows


def additive_mask(rows: Rows, dtype: torch.dtype) -> Tensor:
    """[B, 1, length, length]: 0 where a position may attend, a large negative number elsewhere."""
    allowed = torch.from_numpy(rows.mask())[:, None]
    return torch.zeros(allowed.shape, dtype=dtype).masked_fill_(~allowed, -1e4)


def place_media(llm: Backbone, embeds: Tensor, rows: Rows) -> Tensor:
    """Token embeddings with the projected picture in its place: [B, length, dim]."""
    start, end = rows.media
    text = llm.embed(torch.from_numpy(rows.ids).to(llm.device))
    if start == end:
        return text
    return torch.cat((text[:, :start], embeds.to(text.dtype), text[:, end:]), dim=1)


def hidden_states(llm: Backbone, embeds: Tensor | None, rows: Rows) -> Tensor:
    """The backbone's last hidden states [B, length, dim]; ``embeds`` [B, tokens, dim], None for rows of text alone."""
    empty = torch.zeros(len(rows.ids), 0, llm.shape.dim, device=llm.device)
    inputs = place_media(llm, empty if embeds is None else embeds, rows)
    positions = torch.from_numpy(rows.positions).to(llm.device)
    return llm(inputs, positions, additive_mask(rows, llm.dtype).to(llm.device))
