"""The heads of the two towers, in torch; exported like projectors: features [B, cells, dim] -> embeds [B, 1, dim]."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from sensorium.training.clip_recipe import HeadRecipe


def pooled(features: Tensor) -> Tensor:
    """`clip_features.pool` in torch: [B, cells, dim] -> [B, 2 * dim]."""
    return torch.cat((features.mean(dim=1), features.amax(dim=1)), dim=1)


class Head(nn.Module):
    """Layer norm, ``depth`` hidden layers with GELU, one linear layer: [B, inputs] -> [B, outputs]."""

    def __init__(self, inputs: int, outputs: int, shape: HeadRecipe) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(inputs)
        widths = [inputs, *[shape.hidden] * shape.depth]
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.out = nn.Linear(widths[-1], outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        for layer in self.hidden:
            x = nn.functional.gelu(layer(x))
        return self.out(x)


class ImageHead(nn.Module):
    """Mean and maximum over the cells through a head; and, with concepts, what the encoder's classes mean.

    Args:
        dim: feature width of the encoder.
        outputs: width of the common space.
        shape: of the head.
        directions: (weight [classes, dim], bias [classes]) of the encoder's classifier over its mean feature.
        meanings: [classes, outputs], where each class lies in the common space at the start.
    """

    def __init__(
        self,
        dim: int,
        outputs: int,
        shape: HeadRecipe,
        directions: tuple[Tensor, Tensor] | None = None,
        meanings: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.head = Head(2 * dim, outputs, shape)
        self.concepts = directions is not None and meanings is not None
        if directions is not None and meanings is not None:
            self.keys = nn.Linear(dim, len(meanings))
            with torch.no_grad():
                self.keys.weight.copy_(directions[0])
                self.keys.bias.copy_(directions[1])
                self.head.out.weight.mul_(0.02)  # begins as the concepts say
            self.values = nn.Parameter(meanings.clone())

    def embed(self, pooled: Tensor) -> Tensor:
        """[B, 2 * dim] (see `clip_features.pool`) -> [B, outputs]."""
        found: Tensor = self.head(pooled)
        if self.concepts:
            mean = pooled[:, : pooled.shape[1] // 2]
            found = found + torch.softmax(self.keys(mean), dim=-1) @ self.values
        return found

    def forward(self, features: Tensor) -> Tensor:
        """[B, cells, dim] -> [B, 1, outputs]."""
        return self.embed(pooled(features)).unsqueeze(1)


class TextHead(nn.Module):
    """A head over the sentence encoder's vector; with ``common``, it begins as that vector less what all texts share.

    Args:
        dim: width of the text encoder.
        outputs: width of the common space.
        shape: of the head.
        common: [dim] the mean of the normalised vectors of many texts; needs ``outputs == dim``.
    """

    def __init__(self, dim: int, outputs: int, shape: HeadRecipe, common: Tensor | None = None) -> None:
        super().__init__()
        self.head = Head(dim, outputs, shape)
        self.straight = common is not None
        if common is not None:
            self.turn = nn.Linear(dim, outputs)
            with torch.no_grad():
                self.turn.weight.copy_(torch.eye(dim))
                self.turn.bias.copy_(-common)
                self.head.out.weight.mul_(0.02)

    def embed(self, vectors: Tensor) -> Tensor:
        """[B, dim] -> [B, outputs]."""
        found: Tensor = self.head(vectors)
        if self.straight:
            length = vectors.pow(2).sum(dim=-1, keepdim=True).sqrt().clamp_min(1e-12)
            found = found + self.turn(vectors / length)
        return found

    def forward(self, features: Tensor) -> Tensor:
        """[B, 1, dim] -> [B, 1, outputs]."""
        return self.embed(features.squeeze(1)).unsqueeze(1)
