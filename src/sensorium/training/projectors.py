"""From a recipe's projector to a torch module, with its starting point taken from the frozen parts."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from sensorium.prompt import Tokens
from sensorium.training.llama import Llama
from sensorium.training.recipe import ProjectorRecipe


def create_projector(recipe: ProjectorRecipe, frozen: Any, llm: Llama, tokenizer: Tokens) -> nn.Module:
    """Build the projector between ``frozen.features`` and the backbone."""
    spec, dim = frozen.features, llm.shape.dim
    grid = (spec.layout.h, spec.layout.w)
    if recipe.kind == "mlp":
        from sensorium.projectors.mlp import MLPProjector

        return MLPProjector(spec.dim, dim, grid, **recipe.options)
    from sensorium.projectors.concept import ConceptProjector

    start: dict[str, Any] = {}
    if recipe.start == "concepts":
        from sensorium.training.data.stream import class_names
        from sensorium.training.run import class_directions

        table = llm.embedding.detach().float().numpy()
        start["directions"] = class_directions(frozen)
        start["words"] = np.stack([table[tokenizer.encode(" " + name)].mean(0) for name, _ in class_names()])
    return ConceptProjector(spec.dim, dim, grid, **recipe.options, **start)
