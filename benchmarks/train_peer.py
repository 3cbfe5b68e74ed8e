"""The peer of `train.py`: a LLaVA-style loop over transformers' `LlamaForCausalLM`, written as one would write it well.

One row a sample, padded on the right, sorted by length into micro-batches; the frozen encoder in bfloat16 without a
graph each step; attention masks, ``labels=`` and all logits as transformers computes them; gradients only for the
projector; pictures decoded ahead in a thread.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sensorium.encoders.efficientnet_lite import prepare
from sensorium.prompt import IGNORE
from sensorium.training.data.formats.ahead import ahead
from sensorium.training.data.formats.encode import Encoded
from train_ours import Parts, Steps

Ready = tuple[list[Encoded], dict[str, np.ndarray]]  # the samples of a step, and their pictures by name


class Peer:
    """The loop.

    Args:
        llm: `LlamaForCausalLM`, bfloat16, frozen.
        encoder: the torch encoder, bfloat16.
        parts: what both sides have in common.
        resolution: of the pictures.
        micro: samples of a forward and backward.
        once: encode a picture once a step, however many of its samples have it.
        graph: freeze the encoder by leaving it out of the optimizer alone, as some loops do.
        turns: the questions about a picture are turns of one conversation.
    """

    def __init__(
        self,
        llm: Any,
        encoder: nn.Module,
        parts: Parts,
        resolution: int,
        micro: int,
        *,
        once: bool = False,
        graph: bool = False,
        turns: bool = False,
    ) -> None:
        self.llm, self.encoder, self.parts, self.resolution = llm, encoder.requires_grad_(graph), parts, resolution
        self.micro, self.once, self.graph, self.turns = micro, once, graph, turns
        self.projector = parts.start

    def run(self, steps: Steps, learn: bool = True) -> list[float]:
        """The loss of each step, the projector learning from its start on, or not."""
        train, losses = self.parts.train, []
        self.projector = copy.deepcopy(self.parts.start)
        optimizer = torch.optim.AdamW(
            self.projector.parameters(), lr=train.learning_rate.projector, betas=(0.9, 0.98),
            weight_decay=train.weight_decay, fused=True,
        )  # fmt: skip
        for ready in self.batches(steps):
            total = 0.0
            optimizer.zero_grad(set_to_none=True)
            for loss in self.losses(ready):
                total += float(loss.detach())
                if learn:
                    loss.backward(retain_graph=self.graph)  # the micro-batches share the encoder's graph
            if learn:
                torch.nn.utils.clip_grad_norm_(list(self.projector.parameters()), train.clip)
                optimizer.step()
            self.encoder.zero_grad(set_to_none=True)
            losses.append(total)
        return losses

    def batches(self, steps: Steps) -> Iterator[Ready]:
        """Samples and decoded pictures of each step, made ahead."""

        def make() -> Iterator[Ready]:
            for step in steps:
                samples = [one for shown in step for one in ([shown.turns] if self.turns else shown.documents())]
                media = [
                    shown.medium for shown in step for _ in range(1 if self.once or self.turns else len(shown.branches))
                ]
                yield samples, {f"{m.name}#{i}": prepare(m.load().pixels, self.resolution) for i, m in enumerate(media)}

        return ahead(make(), 4)

    def features(self, pictures: dict[str, np.ndarray]) -> Tensor:
        """The frozen encoder, eight pictures at a time (faster than more, measured)."""
        pixels = torch.from_numpy(np.stack(list(pictures.values())))
        with torch.set_grad_enabled(self.graph):
            return torch.cat([self.encoder(pixels[at : at + 8]) for at in range(0, len(pixels), 8)])

    def losses(self, ready: Ready) -> Iterator[Tensor]:
        """The loss of each micro-batch, divided by all targets of the step; their sum is the step's."""
        samples, pictures = ready
        features = self.features(pictures).float()
        names = [name.partition("#")[0] for name in pictures]
        row_of = [names.index(sample.media[0].name) for sample in samples] if self.once else list(range(len(samples)))
        targets = sum(int((sample.labels != IGNORE).sum()) for sample in samples)
        order = sorted(range(len(samples)), key=lambda i: samples[i].length)
        for at in range(0, len(order), self.micro):
            some = order[at : at + self.micro]
            yield self._loss([samples[i] for i in some], features[[row_of[i] for i in some]], targets)

    def _loss(self, samples: list[Encoded], features: Tensor, targets: int) -> Tensor:
        longest = max(sample.length for sample in samples)
        shape = (len(samples), longest)
        ids, labels = np.zeros(shape, np.int64), np.full(shape, IGNORE, np.int64)
        attention, media = np.zeros(shape, np.int64), np.zeros(shape, bool)
        for row, sample in enumerate(samples):
            n = sample.length
            ids[row, :n], attention[row, :n] = sample.ids, 1
            labels[row, :n] = sample.labels
            for start, end in sample.places:
                media[row, start:end] = True
        embeds = self.llm.get_input_embeddings()(torch.from_numpy(ids))
        projected = self.projector(features).to(embeds.dtype)
        embeds = embeds.masked_scatter(torch.from_numpy(media)[..., None], projected)
        out = self.llm(
            inputs_embeds=embeds,
            attention_mask=torch.from_numpy(attention),
            labels=torch.from_numpy(labels),
            num_items_in_batch=targets,
            use_cache=False,
        )
        return out.loss
