"""Directions for words that the encoder has no class for, learnt from scenes in closed reach of a linear map.

The encoder's classifier knows 1000 things by name; training scenes name hundreds more and say where each stands. A
softmax regression over the cells that things cover gives those words directions of the same kind, in a minute or two,
before the language model sees anything. The projector starts from both (`projectors.concept`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sensorium import hub
from sensorium.errors import SensoriumError
from sensorium.training.scene_store import SceneStore

VERSION = 1  # raise when the fit changes
NOTHING = -1
EPOCHS = 4
CELLS = 10  # most cells taken of one scene
LEAST = 12  # times a word must be shown


@dataclass(frozen=True)
class WordDirections:
    """A linear classifier of cells.

    Attributes:
        words: (name, other true words) of every class but the last, which stands for nothing in particular.
        weight: [words + 1, dim].
        bias: [words + 1].
    """

    words: tuple[tuple[str, tuple[str, ...]], ...]
    weight: np.ndarray
    bias: np.ndarray


def covered(objects: Sequence[dict[str, Any]], grid: tuple[int, int]) -> np.ndarray:
    """Index of the object that covers each cell, NOTHING where there is none; -2 where an edge makes it doubtful."""
    h, w = grid
    ys, xs = (np.mgrid[0:h, 0:w] + 0.5) / np.array([h, w]).reshape(2, 1, 1)
    owner = np.full((h, w), NOTHING)
    for index, o in enumerate(objects):  # later ones lie on top
        dx, dy = np.abs(xs - o["x"]) / max(o["w"], 1e-3), np.abs(ys - o["y"]) / max(o["h"], 1e-3)
        owner[(dx < 0.6) & (dy < 0.6)] = -2
        owner[(dx < 0.36) & (dy < 0.36)] = index
        if not (owner == index).any():  # smaller than a cell
            owner[min(h - 1, max(0, int(o["y"] * h))), min(w - 1, max(0, int(o["x"] * w)))] = index
    return owner.reshape(-1)


def gather(store: SceneStore, grid: tuple[int, int], seed: int) -> tuple[np.ndarray, np.ndarray, list[Any]]:
    """(cells float16 [n, dim], class of each, words): what the regression learns from."""
    rng = np.random.default_rng([seed, 0xD12])
    seen: Counter[str] = Counter()
    also: dict[str, tuple[str, ...]] = {}
    for i in range(len(store)):
        for o in store[i][1]["objects"]:
            seen[o["name"]] += 1
            also.setdefault(o["name"], tuple(o["also"]))
    words = [(name, also[name]) for name in sorted(seen) if seen[name] >= LEAST]
    place = {name: k for k, (name, _) in enumerate(words)}
    cells, classes = [], []
    for i in range(len(store)):
        features, labels = store[i]
        objects = labels["objects"]
        owner = covered(objects, grid)
        for index in {NOTHING, *range(len(objects))}:
            where = np.flatnonzero(owner == index)
            number = len(words) if index == NOTHING else place.get(objects[index]["name"], -1)
            if number < 0 or not len(where):
                continue
            few = rng.permutation(where)[: 2 if index == NOTHING else max(2, CELLS // max(1, len(objects)))]
            cells.append(np.asarray(features[np.sort(few)]))
            classes.append(np.full(len(few), number))
    if not cells:
        raise SensoriumError("No scene shows a thing often enough to learn its direction; raise data.scenes.")
    return np.concatenate(cells), np.concatenate(classes), words


def fit_words(store: SceneStore, grid: tuple[int, int], seed: int = 0, epochs: int = EPOCHS) -> WordDirections:
    """Softmax regression from cells to the names of what covers them.

    Args:
        store: features and labels of training scenes.
        grid: the encoder's (h, w).
        seed: of the order and the dropout.
        epochs: passes over the cells.
    """
    cells, classes, words = gather(store, grid, seed)
    x, y = torch.from_numpy(cells), torch.from_numpy(classes)
    few = x[:: max(1, len(x) // 50_000)].float()
    mean, scale = few.mean(0), few.std(0) + 0.05
    weight = torch.zeros(len(words) + 1, x.shape[1], requires_grad=True)
    bias = torch.zeros(len(words) + 1, requires_grad=True)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW([weight, bias], lr=2e-3, weight_decay=0.05)
    batch, taken, total = 2048, 0, epochs * -(-len(x) // 2048)
    for _ in range(epochs):
        order = torch.randperm(len(x), generator=generator)
        for start in range(0, len(x), batch):
            index = order[start : start + batch]
            inputs = (x[index].float() - mean) / scale
            inputs = inputs * (torch.rand(inputs.shape, generator=generator) > 0.3) / 0.7  # lean on many features
            optimizer.param_groups[0]["lr"] = 2e-3 * (1 - taken / total)
            loss = torch.nn.functional.cross_entropy(_logits(inputs, weight, bias), y[index], label_smoothing=0.05)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            taken += 1
    with torch.no_grad():
        final = weight / scale
        offset = bias - final @ mean
    return WordDirections(tuple(words), final.numpy(), offset.numpy())


def word_directions(store: SceneStore, grid: tuple[int, int]) -> WordDirections:
    """What `fit_words` finds, kept beside the store: the processes of a run and later runs share one fit."""
    path = store.directory / f"words-{len(store)}-{VERSION}.npz"
    with hub.file_lock(path):
        if path.is_file():
            with np.load(path, allow_pickle=False) as kept:
                words = tuple((name, tuple(also)) for name, also in json.loads(str(kept["words"])))
                return WordDirections(words, kept["weight"], kept["bias"])
        found = fit_words(store, grid)
        with hub.atomic_write(path) as file:
            np.savez(file, words=json.dumps(found.words), weight=found.weight, bias=found.bias)
        return found


def _logits(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return (inputs.to(torch.bfloat16) @ weight.to(torch.bfloat16).T).float() + bias
