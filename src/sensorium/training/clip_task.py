"""The contrastive task: two heads over frozen towers learn which pictures and texts belong together (LiT, arXiv
2111.07991).

Both towers' features were computed once (`clip_features`), so a step is two small heads and one matrix of cosines.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sensorium.training.clip_heads import ImageHead, TextHead
from sensorium.training.clip_pairs import Pair, Unsure
from sensorium.training.clip_recipe import ClipTrain
from sensorium.training.contrastive import Temperature, contrastive_loss
from sensorium.training.loop import Loss

CONCEPTS = ("image.keys.", "image.values", "text.turn.")  # what starts from the frozen parts learns slower


@dataclass(frozen=True)
class Batch:
    """This process's pairs of a step: pooled pictures [n, 2 * dim], texts [n, dim], and `Unsure`'s [n, 2, N]."""

    pictures: Tensor
    texts: Tensor
    unsure: Tensor


class ClipTask:
    """Pooled features of both towers -> heads -> contrastive loss.

    Args:
        image, text: the heads.
        temperature: learnt scale and, for SigLIP, bias; it decides the loss.
        pictures: pooled features of all pictures [N, 2 * dim].
        texts: features of all texts [M, dim].
        pairs: what belongs together.
        places: for each pair, the place of its text among ``texts``.
        recipe: batch, chunk, rates, dropout, seed.
        rank, world: this process among those that share the steps.
    """

    def __init__(
        self,
        image: ImageHead,
        text: TextHead,
        temperature: Temperature,
        pictures: np.ndarray,
        texts: np.ndarray,
        pairs: Sequence[Pair],
        places: np.ndarray,
        recipe: ClipTrain,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.image, self.text, self.temperature = image, text, temperature
        self.pictures, self.texts, self.places = pictures, texts, places
        self.recipe, self.rank, self.world = recipe, rank, world
        self.of = np.array([pair.picture for pair in pairs])
        self.unsure = Unsure(pairs)
        self.size = min(recipe.batch, len(pairs) - len(pairs) % world)

    def tensors(self) -> dict[str, Tensor]:
        """Both heads and the temperature."""
        parts = (("image", self.image), ("text", self.text), ("temperature", self.temperature))
        return {f"{part}.{n}": p for part, module in parts for n, p in module.named_parameters() if p.requires_grad}

    def rate(self, name: str) -> float:
        """What starts from the frozen parts has a rate of its own."""
        return self.recipe.concept_rate if name.startswith(CONCEPTS) else self.recipe.learning_rate

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Each epoch is a new order of all pairs; a step's pairs depend on the seed and the step alone."""
        steps = len(self.of) // self.size
        epoch, order = -1, np.empty(0, np.int64)
        own = self.size // self.world
        for step in range(start, stop):
            if step // steps != epoch:
                epoch = step // steps
                order = np.random.default_rng([self.recipe.seed, epoch]).permutation(len(self.of))
            rows = order[step % steps * self.size :][: self.size]
            mine = rows[self.rank * own : (self.rank + 1) * own]
            rng = np.random.default_rng([self.recipe.seed, step, self.rank])
            pictures = np.asarray(self.pictures[self.of[mine]], np.float32)
            if self.recipe.dropout:
                dim = pictures.shape[1] // 2
                kept = rng.random((len(mine), dim)) >= self.recipe.dropout  # of a feature, mean and maximum together
                pictures *= np.concatenate((kept, kept), axis=1) / (1 - self.recipe.dropout)
            yield Batch(
                torch.from_numpy(pictures),
                torch.from_numpy(np.asarray(self.texts[self.places[mine]], np.float32)),
                torch.from_numpy(self.unsure(rows, self.rank * own, own)),
            )

    def loss(self, batch: Batch) -> Loss:
        """The contrastive loss of this process's pairs."""
        image, text = self.image.embed(batch.pictures), self.text.embed(batch.texts)
        mean = contrastive_loss(image, text, self.temperature, batch.unsure, self.recipe.chunk)
        scale = float(self.temperature.logit_scale.detach().exp())
        return Loss(mean, float(len(image)), len(image), {"scale": round(scale, 3)})

    def stepped(self) -> None:
        """The scale stays between 1 and 100."""
        self.temperature.clamp()
