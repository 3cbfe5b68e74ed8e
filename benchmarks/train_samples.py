"""What `train.py` trains on: the scenes and questions of a recipe, as picture files and samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sensorium.prompt import IGNORE, Message, Tokens
from sensorium.training.data.formats.encode import Encoded, encode
from sensorium.training.data.formats.sample import MediaRef, Sample
from sensorium.training.data.questions import Asker, Vocabulary, balanced
from sensorium.training.data.scenes import Pool, compose, load_items
from sensorium.training.data.stream import EVERYDAY
from sensorium.training.recipe import Recipe
from sensorium.training.rows import Branch, Layout, fitting, question_branch


@dataclass(frozen=True)
class Shown:
    """A picture and what is asked about it; each question is a sample.

    Attributes:
        medium: the picture's file.
        layout: what all its samples begin with.
        branches: the questions, each with its answer.
        turns: all of it as one conversation, as LLaVA's data has it: later questions see earlier answers.
    """

    medium: MediaRef
    layout: Layout
    branches: tuple[Branch, ...]
    turns: Encoded

    def documents(self) -> list[Encoded]:
        """Each sample on its own: picture, question, answer."""
        before, media = self.layout.before, self.layout.media
        return [
            Encoded(
                f"{self.medium.name}.{i}",
                np.array([*before, *[0] * media, *branch.ids], np.int64),
                np.array([*[IGNORE] * self.layout.length, *branch.labels], np.int64),
                ((len(before), self.layout.length),),
                (self.medium,),
            )
            for i, branch in enumerate(self.branches)
        ]


def draw(recipe: Recipe, frozen: Any, tokenizer: Tokens, media: int, directory: Path, count: int) -> list[Shown]:
    """``count`` scenes as JPEG files in ``directory``, each with as many questions as fit a row.

    Args:
        recipe, frozen: the recipe, and what `training.frozen.obtain` made of it.
        tokenizer, media: the backbone's, and the tokens of a picture.
    """
    plan = frozen.stores[0]
    items = [item for item in load_items(plan.catalogue) if item.split == "train"]
    pool, random = Pool(items), np.random.default_rng(recipe.data.seed)
    scenes = [compose(pool, (plan.seed << 32) + i, plan.mix) for i in range(count * 5 // 4)]  # some allow no question
    words = [*((item.name, item.also) for item in items if item.kind != "background"), *((w, ()) for w in EVERYDAY)]
    labels = [scene.labels() for scene in scenes]
    asker = balanced(Asker(Vocabulary.from_scenes(words, common=EVERYDAY)), labels, random)
    kinds = {str(kind): weight for kind, weight in recipe.data.questions.items()}
    made: list[Shown] = []
    for i, scene in enumerate(scenes):
        asked = asker.ask(labels[i], random, 9, kinds)
        if not asked or len(made) == count:
            continue
        path = directory / f"{i}.jpg"
        Image.fromarray(scene.pixels).save(path, quality=90)
        laid = [question_branch(qa.question, qa.answer, tokenizer, media) for qa in asked]
        layout, branches = laid[0][0], [branch for _, branch in laid]
        kept = fitting(layout, branches, recipe.train.row_tokens)
        medium = MediaRef(path.name, path)
        pairs = [qa for qa, branch in zip(asked, branches) if any(branch is one for one in kept)]
        messages = [m for qa in pairs for m in (Message("user", qa.question), Message("assistant", qa.answer))]
        messages[0] = Message("user", [medium, pairs[0].question])
        turns = encode(Sample(path.name, tuple(messages), path.name), tokenizer, media)
        made.append(Shown(medium, layout, tuple(kept), turns))
    return made


def in_steps(shown: Sequence[Shown], pictures: int) -> list[list[Shown]]:
    """Steps of so many pictures; what is left over is dropped."""
    return [list(shown[at : at + pictures]) for at in range(0, len(shown) - pictures + 1, pictures)]
