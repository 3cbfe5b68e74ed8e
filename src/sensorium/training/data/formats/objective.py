"""Next-token loss over packed rows. The one module here that imports torch."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from sensorium.errors import SensoriumError
from sensorium.training.backbone import Backbone
from sensorium.training.data.formats.packing import PackedRows
from sensorium.training.objectives.cross_entropy import cross_entropy
from sensorium.training.objectives.forward import additive_mask


def place_packed(llm: Backbone, embeds: Tensor, rows: PackedRows) -> Tensor:
    """Token embeddings [B, length, dim] with every medium's embeddings [media, tokens, dim] in its place.

    Raises:
        SensoriumError: the projector gives another number of tokens than the samples were laid out with.
    """
    text = llm.embed(torch.from_numpy(rows.ids).to(llm.device))
    length = text.shape[1]
    index = [row * length + at for row, start, end in rows.places for at in range(start, end)]
    flat = embeds.reshape(-1, text.shape[-1])
    if len(flat) != len(index):
        raise SensoriumError(
            f"The projector gives {len(flat)} tokens for {len(rows.places)} media, but the samples were laid out with "
            f"{len(index)}; encode them with the composition's own counts."
        )
    # Also without media: the result then depends on the projector by nothing, and its gradient is zero, not absent.
    return (
        text.reshape(-1, text.shape[-1])
        .index_copy(0, torch.tensor(index, dtype=torch.long, device=text.device), flat.to(text.dtype))
        .view_as(text)
    )


def target_losses(llm: Backbone, embeds: Tensor, rows: PackedRows) -> Tensor:
    """Cross-entropy of each target, in the order of `PackedRows.targets`; logits are computed there alone."""
    mask = additive_mask(cast(Any, rows), llm.dtype).to(llm.device)  # asks for no more than its mask
    hidden = llm(place_packed(llm, embeds, rows), torch.from_numpy(rows.positions).to(llm.device), mask)
    row, position, target, _ = rows.targets()
    return cross_entropy(llm, hidden[row, position], torch.from_numpy(target).to(llm.device))


def packed_next_token(llm: Backbone, embeds: Tensor, rows: PackedRows) -> tuple[Tensor, float]:
    """As `objectives.next_token`, for packed rows: the weighted mean, and the sum of the weights."""
    weights = torch.from_numpy(rows.targets()[3]).to(llm.device)
    return (target_losses(llm, embeds, rows) * weights).sum() / weights.sum(), float(weights.sum())
