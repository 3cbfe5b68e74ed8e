"""From a recipe's projector to a torch module, with its starting point taken from the frozen parts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import nn

from sensorium.projectors.spec import torch_class
from sensorium.prompt import Tokens
from sensorium.training.backbone import Backbone
from sensorium.training.recipe import ProjectorRecipe
from sensorium.training.scene_store import SceneStore


def create_projector(
    recipe: ProjectorRecipe, frozen: Any, llm: Backbone, tokenizer: Tokens, store: SceneStore | None = None
) -> nn.Module:
    """Build the projector between ``frozen.features`` and the backbone.

    Args:
        recipe: kind, options and start.
        frozen: the run's ``Frozen``.
        llm, tokenizer: the backbone.
        store: scenes to learn directions of words from, where the recipe asks for them.
    """
    spec = frozen.features
    grid = (spec.layout.h, spec.layout.w)
    start = _concepts(recipe, frozen, llm, tokenizer, store) if recipe.start == "concepts" else {}
    return torch_class(recipe.kind)(spec.dim, llm.shape.dim, grid, **recipe.options, **start)


def _concepts(
    recipe: ProjectorRecipe, frozen: Any, llm: Backbone, tokenizer: Tokens, store: SceneStore | None
) -> dict[str, Any]:
    """What a concept projector starts from, as arguments of it."""
    from sensorium.training.data.stream import class_names
    from sensorium.training.word_directions import word_directions

    start: dict[str, Any] = {}
    names = class_names()
    start["directions"] = frozen.class_directions()
    layout = frozen.features.layout
    learnt = word_directions(store, (layout.h, layout.w)) if recipe.words and store else None
    if learnt:
        names = [*names, *learnt.words]
        start["learnt"] = len(learnt.weight)
        start["directions"] = tuple(
            np.concatenate(pair) for pair in zip(start["directions"], (learnt.weight, learnt.bias))
        )
    values, start["common"] = concept_words(llm, tokenizer, names)
    # "nothing in particular" says nothing
    start["words"] = np.concatenate((values, np.zeros_like(values[:1]))) if learnt else values
    return start


# Said of nearly every animal: would drown the rest.
_EMPTY_WORDS = ("creature", "mammal")


def concept_words(
    llm: Backbone, tokenizer: Tokens, names: Sequence[tuple[str, Sequence[str]]], also: float = 0.3
) -> tuple[np.ndarray, np.ndarray]:
    """What each concept says in the LLM's word embeddings.

    Args:
        llm, tokenizer: the backbone; its embeddings are taken as they stand beside projected media, scaled if it scales
            them.
        names: (name, other true words) of every concept.
        also: weight of each other word beside the name's 1.

    Returns:
        [concepts, dim] without the mean of all nouns, and that mean [dim].
    """

    @lru_cache(None)
    def vector(word: str) -> np.ndarray:
        with torch.no_grad():
            pieces = llm.embed(torch.tensor(tokenizer.encode(" " + word), device=llm.device))
        return pieces.float().mean(0).cpu().numpy()

    common = np.stack([vector(word) for word in sorted({w for name, others in names for w in (name, *others)})]).mean(0)
    values = []
    for name, others in names:
        value = vector(name) - common
        for word in others:
            if word not in _EMPTY_WORDS:
                value = value + also * (vector(word) - common)
        values.append(value)
    return np.stack(values), common
