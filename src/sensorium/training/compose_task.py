"""The usual task: a projector, and what of the language model the stage trains, learn to answer about media."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from sensorium.training.backbone import Backbone, part_of
from sensorium.training.loop import Loss
from sensorium.training.objectives.distill import distill
from sensorium.training.objectives.next_token import next_token
from sensorium.training.recipe import LearningRate, ObjectiveRecipe
from sensorium.training.rows import Rows

CONCEPTS = ("keys.", "values")  # what starts from the frozen parts learns slower
NEXT_TOKEN = ObjectiveRecipe()
Batch = tuple[np.ndarray, Rows, Rows | None]


class Batches(Protocol):
    """Where batches come from: ``data.stream.SampleStream``, or ``data.formats.batches.PackedBatches`` for its task."""

    def batches(self, start: int, stop: int) -> Iterator[Any]:
        """Features float32 [rows, cells, dim], their rows and, for distillation, their text twins."""


class ComposeTask:
    """Features -> projector -> backbone -> objective.

    Args:
        projector, llm: the modules; only what requires gradients learns.
        stream: this process's batches.
        rates: peak learning rate of each part.
        objective: what the stage minimises.
    """

    def __init__(
        self,
        projector: nn.Module,
        llm: Backbone,
        stream: Batches,
        rates: LearningRate,
        objective: ObjectiveRecipe = NEXT_TOKEN,
    ) -> None:
        self.projector, self.llm, self.stream, self.rates, self.objective = projector, llm, stream, rates, objective

    def tensors(self) -> dict[str, Tensor]:
        """All that learns, each name behind that of its part: "projector", "lora", "backbone" or "tokens"."""
        ours: dict[str, Tensor] = {f"projector.{n}": p for n, p in self.projector.named_parameters() if p.requires_grad}
        theirs = {f"{part_of(n)}.{n}": p for n, p in self.llm.named_parameters() if p.requires_grad}
        return ours | theirs

    def rate(self, name: str) -> float:
        """By part; what starts from the frozen parts has a rate of its own."""
        part, _, rest = name.partition(".")
        if part != "projector":
            return float(getattr(self.rates, part))
        return self.rates.concepts if rest.startswith(CONCEPTS) else self.rates.projector

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """The stream's."""
        return self.stream.batches(start, stop)

    def loss(self, batch: Batch) -> Loss:
        """The objective on one batch."""
        features, rows, twin = batch
        embeds, towards = self.projector(torch.from_numpy(features).to(self.llm.device)), self.objective
        if towards.kind == "distill":
            assert twin is not None
            mean, weight = distill(
                self.llm, embeds, rows, twin, temperature=towards.temperature, end_of_turn=towards.end_of_turn
            )
        else:
            mean, weight = next_token(self.llm, embeds, rows)
        return Loss(mean, weight, int((rows.branch >= 0).sum()))

    def stepped(self) -> None:
        """Nothing needs clamping."""
