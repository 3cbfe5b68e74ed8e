"""Self-distillation: with the picture, the model should say what the same frozen model says when it reads a text twin.

The twin of a row holds words where the row holds media: a caption, a transcript. The teacher is the bare backbone, with
its LoRA switched off, so no second model is loaded. Kullback-Leibler divergence at temperature T on the positions that
predict an answer's tokens, times T squared (Hinton et al., arXiv 1503.02531), with a weight of its own on the token
that ends the turn: the student must also learn when to stop.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sensorium.training.backbone import Backbone
from sensorium.training.llama import without_lora
from sensorium.training.objectives.cross_entropy import target_losses
from sensorium.training.objectives.forward import hidden_states
from sensorium.training.rows import Rows


def distill(
    llm: Backbone, embeds: Tensor, rows: Rows, twin: Rows, *, temperature: float = 2.0, end_of_turn: float = 1.0
) -> tuple[Tensor, float]:
    """Weighted mean divergence of the student from the teacher.

    Args:
        llm: student and, without its LoRA, teacher.
        embeds: the projected media [B, tokens, dim] of ``rows``.
        rows: what the student reads.
        twin: what the teacher reads: the same branches in the same order, words in the place of media.
        temperature: softens both distributions; above 0.
        end_of_turn: weight of each branch's last target, which ends the turn.

    Returns:
        The loss and the sum of the weights that it averages over.
    """
    row, position, target, weight = rows.targets()
    twin_row, twin_position, twin_target, _ = twin.targets()
    if target.shape != twin_target.shape or (target != twin_target).any():
        raise ValueError("a row and its text twin hold different answers")
    last = rows.branch[row, position + 1] != rows.branch[row, (position + 2) % rows.branch.shape[1]]
    weights = torch.from_numpy(weight * (1.0 + (end_of_turn - 1.0) * last).astype(weight.dtype)).to(llm.device)
    with torch.no_grad(), without_lora(llm):
        taught = hidden_states(llm, None, twin)[twin_row, twin_position]

    def divergence(logits: Tensor, at: slice) -> Tensor:
        with torch.no_grad(), without_lora(llm):
            teacher = F.log_softmax(llm.logits(taught[at]).float() / temperature, dim=-1)
        student = F.log_softmax(logits / temperature, dim=-1)
        return F.kl_div(student, teacher, log_target=True, reduction="none").sum(-1) * temperature**2

    losses = target_losses(llm, hidden_states(llm, embeds, rows)[row, position], divergence)
    return (losses * weights).sum() / weights.sum(), float(weights.sum())
