"""Sensorium's side of `train.py`: what `training.stages` puts together, less one measure."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from sensorium.prompt import IGNORE
from sensorium.training.compose_task import ComposeTask
from sensorium.training.data.formats.ahead import ahead
from sensorium.training.data.formats.packing import PackedRows, best_fit
from sensorium.training.data.formats.packing import pack as pack_documents
from sensorium.training.data.formats.task import PackedTask
from sensorium.training.features import CachedFeatures, EncoderPart, FeatureCache
from sensorium.training.loop import Loss, make_optimizer
from sensorium.training.objectives.forward import hidden_states
from sensorium.training.recipe import TrainRecipe
from sensorium.training.rows import pack
from train_samples import Shown

WITHOUT = {
    "cache": "without the cache: the encoder at each step, once a picture",
    "sharing": "without shared pictures: each sample a document, many in a row",
    "packing": "without packing: a row a sample, padded",
    "targets": "without target-only logits: logits at all positions",
    "compile": "without torch.compile",
    "ahead": "without making batches ahead",
}
Steps = Sequence[Sequence[Shown]]


@dataclass(frozen=True)
class Parts:
    """What all loops have in common: the recipe's part on training, the untrained projector, the frozen encoder."""

    train: TrainRecipe
    start: nn.Module
    encoder: EncoderPart


class FullLogits(ComposeTask):
    """`ComposeTask` with the logits of every position, all at once."""

    def loss(self, batch: Any) -> Loss:
        """The same loss."""
        features, rows, _ = batch
        hidden = hidden_states(self.llm, self.projector(torch.from_numpy(features)), rows)
        labels = torch.from_numpy(np.roll(rows.labels, -1, axis=1))
        labels[:, -1] = IGNORE
        mean = F.cross_entropy(self.llm.logits(hidden).flatten(0, 1), labels.flatten(), ignore_index=IGNORE)
        return Loss(mean, float((labels != IGNORE).sum()), 0)


class Ours:
    """A loop as `training.loop` has it.

    Args:
        parts: the common parts.
        llm: the backbone.
        root: where the feature cache stands.
        without: a key of `WITHOUT`, or nothing.
    """

    def __init__(self, parts: Parts, llm: Any, root: Path, without: str = "") -> None:
        self.parts, self.llm, self.without = parts, llm, without
        self.features = CachedFeatures(FeatureCache.of(parts.encoder, root=root), parts.encoder)
        self.encoder = parts.encoder.create()
        self.most = (0, 0)  # rows and tokens that a batch of documents is filled up to, so that its shape stays

    def run(self, steps: Steps, learn: bool = True) -> list[float]:
        """The loss of each step, the projector learning from its start on, or not."""
        projector, train = copy.deepcopy(self.parts.start), self.parts.train
        kinds = {"targets": FullLogits, "sharing": PackedTask, "packing": PackedTask}
        task: Any = kinds.get(self.without, ComposeTask)(projector, self.llm, None, train.learning_rate)  # type: ignore[arg-type]
        optimizer, losses = make_optimizer(task, train), []
        made: Iterator[Any] = map(self.batch, steps)
        with contextlib.ExitStack() as stack:
            if self.without != "ahead":
                made = stack.enter_context(contextlib.closing(ahead(made, 4)))  # type: ignore[type-var]
            if self.without == "compile":
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            for batch in made:
                loss = task.loss(batch)
                losses.append(float(loss.mean.detach()))
                if learn:
                    optimizer.zero_grad(set_to_none=True)
                    loss.mean.backward()
                    torch.nn.utils.clip_grad_norm_(list(projector.parameters()), train.clip)
                    optimizer.step()
        self.features.cache.flush()
        return losses

    def batch(self, step: Sequence[Shown]) -> Any:
        """What the task takes."""
        if self.without in ("sharing", "packing"):
            rows = self.documents(step)
            return self.features(rows.media), rows
        shared = pack(step[0].layout, [shown.branches for shown in step], self.parts.train.row_tokens)
        media = [shown.medium for shown in step]
        if self.without == "cache":
            return self.encoder.encode([medium.load().pixels for medium in media]), shared, None
        return self.features(media), shared, None

    def documents(self, step: Sequence[Shown]) -> PackedRows:
        """Samples as documents of their own: as many in a row as fit, or one."""
        samples = [sample for shown in step for sample in shown.documents()]
        rows, length = [[sample] for sample in samples], max(self.most[1], max(s.length for s in samples))
        if self.without == "sharing":
            length = self.parts.train.row_tokens
            rows = [[samples[i] for i in row] for row in best_fit([s.length for s in samples], length)]
        return pack_documents([*rows, *[[]] * (self.most[0] - len(rows))], length)

    def settle(self, steps: Steps) -> None:
        """Give all batches of documents one shape."""
        shapes = [self.documents(step).ids.shape for step in steps]
        self.most = (max(shape[0] for shape in shapes), max(shape[1] for shape in shapes))
