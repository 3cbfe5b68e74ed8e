"""Scenes and synthesised classes -> packed rows with features: what one training step sees.

Row ``i`` of step ``s`` is a function of (seed, s, i) alone, so neither resuming a run nor dividing its rows among more
processes changes what it sees.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from sensorium.errors import SensoriumError
from sensorium.prompt import Tokens
from sensorium.training.class_features import ClassFeatures
from sensorium.training.data import vocabulary
from sensorium.training.data.formats.ahead import ahead
from sensorium.training.data.questions import Asker, Vocabulary, balanced
from sensorium.training.data.scenes import Item
from sensorium.training.data.words import word_list
from sensorium.training.rows import Branch, Layout, Rows, fitting, pack, question_branch
from sensorium.training.scene_store import SceneStore

EVERYDAY = sorted(word_list("everyday"))
WORN_OR_HELD = word_list("worn-or-held")
ATTEMPTS = 1000  # scenes drawn for a row before the recipe is blamed
CLASS_QUESTIONS = {"yesno": 0.66, "describe": 0.1, "what": 0.1, "which": 0.07, "side": 0.07}


def class_names() -> list[tuple[str, tuple[str, ...]]]:
    """(name, other true words) of the encoder's 1000 classes, as people say them."""
    known = vocabulary.spellings()
    rows = []
    for entry in vocabulary.imagenet():
        also = tuple(word for word in entry.also if word in known)
        if entry.name in WORN_OR_HELD and "person" not in also:
            also = (*also, "person")
        rows.append((entry.name, also))
    return rows


class SampleStream:
    """Batches for training.

    Args:
        store: features and labels of scenes.
        items: the catalogue's training rows, for the vocabulary.
        classes: ``ClassFeatures`` of the encoder, or None for scenes alone.
        grid: the encoder's (h, w).
        tokenizer, media_tokens, template: how text and pictures are laid out.
        rows, row_tokens: size of this rank's batch.
        class_share: share of rows with synthesised classes.
        questions: weights of the question kinds; None for the defaults.
        dropout: share of a picture's feature channels that are left out each time it is seen.
        yesno_focus: weight of the yes or no in the loss, beside 1 of every other token.
        twins: also give, for every row, the same questions behind words in the place of the picture.
        seed, rank: which stream this is; rank r has the rows from ``r * rows`` on of each step.
    """

    def __init__(
        self,
        store: SceneStore,
        items: Sequence[Item],
        classes: ClassFeatures | None,
        grid: tuple[int, int],
        tokenizer: Tokens,
        media_tokens: int,
        *,
        rows: int,
        row_tokens: int,
        class_share: float = 0.0,
        dropout: float = 0.0,
        questions: Mapping[str, float] | None = None,
        yesno_focus: float = 1.0,
        twins: bool = False,
        seed: int = 0,
        rank: int = 0,
        template: str = "chatml",
    ) -> None:
        self.store, self.classes, self.grid = store, classes, grid
        self.rows, self.row_tokens, self.class_share = rows, row_tokens, class_share if classes else 0.0
        self.questions, self.seed, self.rank = dict(questions or {}) or None, seed, rank
        self.focus, self.dropout, self.twins, self.tokenizer = yesno_focus, dropout, twins, tokenizer
        self.names = class_names() if classes else []
        self.denied = [frozenset(vocabulary.not_deniable(name)) | set(also) for name, also in self.names]
        known = [(i.name, i.also) for i in items if i.kind != "background"]
        words = [*known, *self.names, *((word, ()) for word in EVERYDAY)]
        self.asker = Asker(Vocabulary.from_scenes(words, common=EVERYDAY))
        sample = np.random.default_rng([seed, 0xBA1])
        seen = [store[int(i)][1] for i in sample.integers(len(store), size=3000)]
        shown = round(3000 * self.class_share / max(1e-9, 1 - self.class_share)) if self.class_share < 1 else 3000
        for c in sample.integers(len(self.names), size=shown) if self.names else ():
            seen.append(self._labels((int(c),), [(0.5, 0.5, 0.8)]))
        self.asker = balanced(self.asker, [seen[int(i)] for i in sample.permutation(len(seen))], sample)
        self.empty = [i for i in range(len(store)) if store[i][1]["kind"] == "empty"] or list(range(len(store)))
        self.branch = lru_cache(200_000)(
            lambda q, a, f=1.0: question_branch(q, a, tokenizer, media_tokens, f, template)
        )
        self.layout = self.branch("?", "!")[0]

    def batch(self, step: int) -> tuple[np.ndarray, Rows, Rows | None]:
        """Features float32 [rows, cells, dim], the rows that go with them, and their text twins if wanted."""
        first = self.rank * self.rows
        drawn = [self._row(step, index) for index in range(first, first + self.rows)]
        branches = [fitting(self.layout, made, self.row_tokens) for _, made, _ in drawn]
        rows = pack(self.layout, branches, self.row_tokens)
        return np.stack([cells for cells, _, _ in drawn]), rows, self._twins(branches, drawn) if self.twins else None

    def _twins(self, branches: Sequence[Sequence[Branch]], drawn: Sequence[Any]) -> Rows:
        """The same branches behind a sentence about each picture, where its tokens would stand."""
        layouts = [
            Layout(self.layout.before + tuple(self.tokenizer.encode(self.asker.twin(labels))), 0)
            for _, _, labels in drawn
        ]
        longest = max(layout.length + sum(len(b.ids) for b in made) for layout, made in zip(layouts, branches))
        return pack(layouts, branches, longest)

    def _row(self, step: int, index: int) -> tuple[np.ndarray, list[Branch], dict[str, Any]]:
        """One picture's features, the questions about it and its labels."""
        rng = np.random.default_rng([self.seed, step, index])
        for _ in range(ATTEMPTS):
            if rng.random() < self.class_share:
                cells, labels = self._class_scene(rng)
                asked = self.asker.ask(labels, rng, 9, CLASS_QUESTIONS)
            else:
                cells, labels = self.store[int(rng.integers(len(self.store)))]
                asked = self.asker.ask(labels, rng, 9, self.questions)
            if asked:
                focus = [self.focus if qa.task == "yesno" else 1.0 for qa in asked]
                branches = [self.branch(qa.question, qa.answer, f)[1] for qa, f in zip(asked, focus)]
                return self._drop(np.asarray(cells, np.float32), rng), branches, labels
        raise SensoriumError(
            f"{ATTEMPTS} scenes in a row allow none of the recipe's questions; give data.questions or data.mix more "
            "kinds."
        )

    def _drop(self, cells: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Without some channels, the same in every cell, so that nothing leans on a few of them."""
        if not self.dropout:
            return cells
        kept = np.greater_equal(rng.random(cells.shape[-1:]), self.dropout).astype(np.float32)
        return cells * kept / np.float32(1 - self.dropout)

    def batches(self, start: int, stop: int) -> Iterator[tuple[np.ndarray, Rows, Rows | None]]:
        """Batches of steps ``start`` to ``stop``, drawn ahead in a thread."""
        return ahead(map(self.batch, range(start, stop)), 4)

    def _class_scene(self, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, Any]]:
        """One or two of the encoder's classes written into a background's features."""
        assert self.classes is not None
        base, _ = self.store[self.empty[int(rng.integers(len(self.empty)))]]
        count = 1 if rng.random() < 0.7 else 2
        chosen = tuple(int(c) for c in rng.choice(len(self.names), count, replace=False))
        if count == 1:
            places = [(rng.uniform(0.3, 0.7), rng.uniform(0.3, 0.7), rng.uniform(0.4, 1.2))]
        else:
            columns = [rng.uniform(0.15, 0.35), rng.uniform(0.65, 0.85)]
            rng.shuffle(columns)
            places = [(x, rng.uniform(0.3, 0.7), rng.uniform(0.35, 0.6)) for x in columns]
        features = self.classes.write(np.asarray(base, np.float32), self.grid, chosen, places, rng)
        return features, self._labels(chosen, places)

    def _labels(self, chosen: Sequence[int], places: Sequence[tuple[float, float, float]]) -> dict[str, Any]:
        objects = [
            {
                "name": self.names[c][0], "also": self.names[c][1], "never": self.denied[c], "attributes": {},
                "x": x, "y": y, "w": size, "h": size, "inside": False,
            }
            for c, (x, y, size) in zip(chosen, places)
        ]  # fmt: skip
        return {"kind": "class", "box": "", "photo": True, "maybe": [], "objects": objects}
