"""The contrastive task: two heads over two towers learn which pictures and texts belong together.

Where both towers are frozen (LiT, arXiv 2111.07991, has one), their features were computed once (`clip_features`), so a
step is two small heads and one matrix of cosines. A tower that learns is run forward and backward in every step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sensorium.training.clip_heads import ImageHead, TextHead
from sensorium.training.clip_pairs import Pair, Unsure
from sensorium.training.clip_recipe import ClipTrain
from sensorium.training.clip_sides import Source
from sensorium.training.contrastive import Temperature, contrastive_loss
from sensorium.training.loop import Loss

CONCEPTS = ("image.keys.", "image.values", "text.turn.")  # what starts from the frozen parts learns slower
TOWERS = "encoders."


@dataclass(frozen=True)
class Batch:
    """This process's pairs of a step.

    Attributes:
        pictures, texts: what the two sides took.
        kept: what each picture's pooled features are multiplied by, [n, 2 * dim]; None for nothing.
        unsure: `Unsure`'s [n, 2, N].
    """

    pictures: Any
    texts: Any
    kept: Tensor | None
    unsure: Tensor


class ClipTask:
    """Features of both towers -> heads -> contrastive loss.

    Args:
        image, text: the heads.
        temperature: learnt scale and, for SigLIP, bias; it decides the loss.
        pictures, texts: all pictures and all texts, as kept features or with the tower that learns.
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
        pictures: Source,
        texts: Source,
        pairs: Sequence[Pair],
        places: np.ndarray,
        recipe: ClipTrain,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.image, self.text, self.temperature = image, text, temperature
        self.pictures, self.texts, self.places = pictures, texts, places
        self.recipe, self.rank, self.world = recipe, rank, world
        self.dim = image.head.norm.normalized_shape[0] // 2
        self.of = np.array([pair.picture for pair in pairs])
        self.unsure = Unsure(pairs)
        self.size = min(recipe.batch, len(pairs) - len(pairs) % world)

    def tensors(self) -> dict[str, Tensor]:
        """Both heads, the temperature, and the towers that learn."""
        parts: dict[str, nn.Module | None] = {"image": self.image, "text": self.text, "temperature": self.temperature}
        parts |= {f"{TOWERS}image": self.pictures.tower, f"{TOWERS}text": self.texts.tower}
        return {
            f"{part}.{name}": parameter
            for part, module in parts.items()
            if module is not None
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        }

    def rate(self, name: str) -> float:
        """Towers, and what starts from the frozen parts, have rates of their own."""
        if name.startswith(TOWERS):
            return self.recipe.learning_rate.towers
        return self.recipe.concept_rate if name.startswith(CONCEPTS) else self.recipe.learning_rate.heads

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
            kept = None
            if self.recipe.dropout:
                one = (
                    rng.random((len(mine), self.dim)) >= self.recipe.dropout
                )  # of a feature, mean and maximum together
                kept = torch.from_numpy(np.concatenate((one, one), axis=1) / np.float32(1 - self.recipe.dropout))
            yield Batch(
                self.pictures.take(self.of[mine]),
                self.texts.take(self.places[mine]),
                kept,
                torch.from_numpy(self.unsure(rows, self.rank * own, own)),
            )

    def loss(self, batch: Batch) -> Loss:
        """The contrastive loss of this process's pairs."""
        pictures = self.pictures.features(batch.pictures)
        image = self.image.embed(pictures if batch.kept is None else pictures * batch.kept)
        text = self.text.embed(self.texts.features(batch.texts))
        mean = contrastive_loss(image, text, self.temperature, batch.unsure, self.recipe.chunk)
        scale = float(self.temperature.logit_scale.detach().exp())
        return Loss(mean, float(len(image)), len(image), {"scale": round(scale, 3)})

    def stepped(self) -> None:
        """The scale stays between 1 and 100."""
        self.temperature.clamp()
