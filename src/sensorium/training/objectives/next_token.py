"""Next token on the spans of answers: cross-entropy, with logits where a target stands and nowhere else."""

from __future__ import annotations

import torch
from torch import Tensor

from sensorium.training.backbone import Backbone
from sensorium.training.objectives.cross_entropy import cross_entropy
from sensorium.training.objectives.forward import hidden_states
from sensorium.training.rows import Rows


def next_token(llm: Backbone, embeds: Tensor, rows: Rows) -> tuple[Tensor, float]:
    """Weighted mean cross-entropy of the answers' tokens, given the picture's embeddings [B, tokens, dim].

    Returns:
        The loss and the sum of the weights that it averages over.
    """
    hidden = hidden_states(llm, embeds, rows)
    row, position, target, weight = rows.targets()
    losses = cross_entropy(llm, hidden[row, position], torch.from_numpy(target).to(llm.device))
    weights = torch.from_numpy(weight).to(llm.device)
    return (losses * weights).sum() / weights.sum(), float(weight.sum())
