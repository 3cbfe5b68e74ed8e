"""From a recipe's projector to a torch module, with its starting point taken from the frozen parts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

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
    unit = embedding_unit(llm)
    start = _concepts(recipe, frozen, llm, tokenizer, store, unit) if recipe.start == "concepts" else {}
    projector = torch_class(recipe.kind)(spec.dim, llm.shape.dim, grid, **recipe.options, **start)
    if unit != 1:
        projector.register_forward_hook(partial(_scaled, unit))  # the ONNX twin has it too
    return projector


USUAL_SCALE = 0.136  # root mean square of SmolLM2's token embeddings


def embedding_unit(llm: Backbone) -> float:
    """The power of two by which this backbone's embeddings are about as large as those that recipes are made for.

    What projectors start from at random and how far an optimizer moves them in a step are absolute sizes. In this unit
    they mean the same to every backbone: Gemma 3's embeddings are 7.6 times as large as SmolLM2's, so its unit is 8.
    """
    with torch.no_grad():
        some = llm.embed(torch.arange(0, llm.shape.vocab, max(1, llm.shape.vocab // 4096), device=llm.device))
    size = float(some.float().pow(2).mean().sqrt())
    return 2.0 ** round(math.log2(max(size, 1e-9) / USUAL_SCALE))


def _scaled(unit: float, projector: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return output * unit


def _concepts(
    recipe: ProjectorRecipe, frozen: Any, llm: Backbone, tokenizer: Tokens, store: SceneStore | None, unit: float
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
    values, start["common"] = (vectors / unit for vectors in concept_words(llm, tokenizer, names))
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
