"""The usual task on packed rows: what a stage gives the loop when its data comes from files."""

from __future__ import annotations

from typing import Any, cast

import torch

from sensorium.training.compose_task import ComposeTask
from sensorium.training.data.formats.batches import PackedBatches
from sensorium.training.data.formats.objective import packed_next_token
from sensorium.training.loop import Loss


class PackedTask(ComposeTask):
    """`ComposeTask` whose stream is `batches.PackedBatches`. The objective is the next token."""

    def loss(self, batch: Any) -> Loss:
        """Features [media, cells, dim] and `PackedRows` -> the loss; a batch without media gives the projector a
        gradient of zero."""
        features, rows = batch
        mean, weight = packed_next_token(self.llm, self.projector(torch.from_numpy(features).to(self.llm.device)), rows)
        return Loss(mean, weight, int((rows.branch >= 0).sum()))

    def position(self) -> dict[str, Any]:
        """Where the data is, for a checkpoint; nothing for a stream without a position."""
        state = getattr(self.stream, "state", None)
        return dict(state()) if state else {}

    def seek(self, positions: list[dict[str, Any]]) -> None:
        """Go on there, with the rows of all processes divided anew."""
        if positions and all(positions):
            lanes = [lane for position in positions for lane in position["lanes"]]
            cast(PackedBatches, self.stream).restore({"step": positions[0]["step"], "lanes": lanes})
