"""Output side: hidden states -> a sequence of discrete units, by connectionist temporal classification.

LLaMA-Omni's recipe (arXiv 2409.06666): each hidden state is repeated ``upsample`` times, a small decoder gives logits
over the units and a blank, and CTC finds the alignment. No unit needs a time of its own.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def ctc_units(
    logits: Tensor, lengths: Tensor, units: Tensor, unit_lengths: Tensor, *, blank: int = 0
) -> tuple[Tensor, float]:
    """Mean CTC loss per unit.

    Args:
        logits: [B, frames, units] of the output projector; frames are upsampled hidden states.
        lengths: [B] frames of each sample that count.
        units: [B, most] unit numbers, padded with anything.
        unit_lengths: [B] units of each sample.
        blank: the number that stands for no unit.

    Returns:
        The loss and the number of units that it averages over.

    Raises:
        ValueError: a sample has more units (with a blank between equal neighbours) than frames; no alignment fits.
    """
    for i, (frames, count) in enumerate(zip(lengths.tolist(), unit_lengths.tolist())):
        said = units[i, :count]
        needed = count + int((said[1:] == said[:-1]).sum())
        if needed > frames:
            raise ValueError(f"sample {i} has {needed} units and only {frames} frames; raise the upsampling")
    log_probabilities = F.log_softmax(logits.float(), dim=-1).transpose(0, 1)
    losses = F.ctc_loss(log_probabilities, units, lengths, unit_lengths, blank=blank, reduction="none")
    number = float(unit_lengths.sum())
    return losses.sum() / number, number


def greedy_units(logits: Tensor, blank: int = 0) -> list[int]:
    """The units of [frames, units]: the best of each frame, repeats merged, blanks dropped."""
    best = torch.unique_consecutive(logits.argmax(dim=-1))
    return [int(unit) for unit in best if int(unit) != blank]
