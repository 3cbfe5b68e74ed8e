"""What the loop trains when an LLM learns to listen: first alignment with what was said, then the LLM's own answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sensorium.projectors.stack import BETWEEN, Words
from sensorium.training.backbone import Backbone
from sensorium.training.listen_answers import Answers
from sensorium.training.listen_heard import Batch, Drawn, Heard
from sensorium.training.listen_prompt import ListenPrompt
from sensorium.training.listen_recipe import ListenTrain
from sensorium.training.listen_words import Sounds, WordKeys
from sensorium.training.loop import Loss
from sensorium.training.objectives.align import TokenRows, align
from sensorium.training.objectives.distill import distill


class AlignTask:
    """Frames point to the tokens that were said; the LLM itself does not run.

    Args:
        projector: what learns.
        rows: its words, as classes.
        heard: utterances.
        numbers: which of them are used.
        recipe: rate, batch size, seed.
        keys: makes the words' keys, and learns; those that the words have where None.
        sounds: tells phonemes beside, and learns.
        said: phonemes of each utterance of ``heard``, as numbers from 1.
    """

    def __init__(
        self,
        projector: Any,
        rows: TokenRows,
        heard: Heard,
        numbers: Sequence[int],
        recipe: ListenTrain,
        keys: WordKeys | None = None,
        sounds: Sounds | None = None,
        said: Sequence[Sequence[int]] = (),
    ) -> None:
        self.projector, self.rows, self.heard, self.recipe = projector, rows, heard, recipe
        self.keys, self.sounds, self.said = keys, sounds, said
        self.drawn = Drawn(heard.frames, numbers, recipe.positions, heard.stack)

    def tensors(self) -> dict[str, Tensor]:
        """The projector, and what makes keys and tells phonemes while it learns."""
        parts = {"projector": self.projector, "keys": self.keys, "sounds": self.sounds}
        there = ((part, module) for part, module in parts.items() if module is not None)
        return {f"{part}.{name}": each for part, module in there for name, each in module.named_parameters()}

    def settle(self) -> None:
        """Give the projector the keys that have been learnt."""
        if self.keys is not None:
            self.rows.words.keys.copy_(self.keys.all())

    def rate(self, name: str) -> float:
        """One for all."""
        return self.recipe.learning_rate

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Utterances of like length, cut anew, with channels left out and short gaps."""
        for step in range(start, stop):
            rng = np.random.default_rng([self.recipe.seed, step])
            batch = self.heard.cut(self.drawn.step(rng), rng)
            yield dropped(batch, self.recipe.feature_dropout, rng)

    def project(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What half of the layers hear, [B, positions, width], and what points to words, [B, positions, keys]."""
        heard, frames = self.projector.both(batch.features, batch.lengths)
        return heard, frames

    def aligned(self, frames: Tensor, batch: Batch) -> tuple[Tensor, float]:
        """The loss of `objectives.align`."""
        said, others = [self.heard.tokens[i] for i in batch.numbers], None
        if self.recipe.others:
            rng = np.random.default_rng([self.recipe.seed, *batch.numbers[:8]])
            others = [int(i) for i in rng.integers(1, 1 + len(self.rows.tokens), size=self.recipe.others)]
        among, own = self.rows.drawn(said, others)
        keys = self.rows.words.keys[[0, *among]] if self.keys is None else self.keys(among)
        return align(self.rows, frames, keys, among, own, said)

    def sounded(self, heard: Tensor, batch: Batch) -> Tensor:
        """Mean CTC loss per phoneme; of what is said too fast, nothing is learnt."""
        assert self.sounds is not None
        said = [self.said[i] for i in batch.numbers]
        counts = torch.tensor([len(each) for each in said])
        padded = torch.tensor([[*each, *[0] * (int(counts.max()) - len(each))] for each in said])
        logs = F.log_softmax(self.sounds(heard).float(), dim=-1).transpose(0, 1)
        lengths = torch.full((len(said),), len(logs))
        loss = F.ctc_loss(logs, padded, lengths, counts, reduction="sum", zero_infinity=True)
        return loss / max(int(counts.sum()), 1)

    def loss(self, batch: Batch) -> Loss:
        """Mean CTC loss per token, and per phoneme."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.recipe.precision == "bf16"):
            heard, frames = self.project(batch)
            loss, number = self.aligned(frames, batch)
            parts = {}
            if self.sounds is not None:
                phonemes = self.sounded(heard, batch)
                parts = {"words": float(loss.detach()), "phonemes": float(phonemes.detach())}
                loss = loss + self.recipe.sounds * phonemes
        return Loss(loss, number, batch.positions * len(batch.numbers), parts)

    def stepped(self) -> None:
        """Nothing to clamp."""


class DistilTask(AlignTask):
    """The LLM should answer what it hears as it answers what it reads; alignment goes on at a lower weight.

    Args:
        llm: frozen.
        prompt: how a spoken message and its twin are laid out.
        answers: what the LLM says to texts.
    """

    def __init__(
        self,
        projector: Any,
        rows: TokenRows,
        heard: Heard,
        numbers: Sequence[int],
        recipe: ListenTrain,
        llm: Backbone,
        prompt: ListenPrompt,
        answers: Answers,
    ) -> None:
        super().__init__(projector, rows, heard, numbers, recipe)
        self.llm, self.prompt, self.answers = llm, prompt, answers

    def loss(self, batch: Batch) -> Loss:
        """Divergence from the teacher on answers, and the alignment."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.recipe.precision == "bf16"):
            _, frames = self.project(batch)
            embeds = kept(self.projector.words, frames)
        written = [self.heard.tokens[i] for i in batch.numbers]
        texts = [self.heard.utterances[i].text for i in batch.numbers]
        replies = [self.answers.of(text) for text in texts]
        rows = self.prompt.rows(embeds.shape[1], replies)
        twin = self.prompt.twin(written, replies)
        loss, weight = distill(
            self.llm, embeds, rows, twin, temperature=self.recipe.temperature, end_of_turn=self.recipe.end_of_turn
        )
        parts = {"distil": float(loss.detach())}
        if self.recipe.align:
            with torch.autocast("cpu", torch.bfloat16, enabled=self.recipe.precision == "bf16"):
                aligned, _ = self.aligned(frames, batch)
            parts["align"] = float(aligned.detach())
            loss = loss + self.recipe.align * aligned
        return Loss(loss, weight, int(rows.ids.size), parts)


def kept(words: Words, frames: Tensor) -> Tensor:
    """[B, n, keys] -> embeddings [B, k, dim] of the positions that say something, in their order.

    All of a batch keep as many as the one that says most, so some keep a few that stand between words.
    """
    shares = words.shares(frames)
    between = words.between(shares).detach()
    most = int((between < BETWEEN).sum(dim=1).max())
    places = between.topk(most, dim=1, largest=False).indices.sort(dim=1).values
    return words.mean(shares.gather(1, places[..., None].expand(-1, -1, shares.shape[2])))


def dropped(batch: Batch, share: float, rng: np.random.Generator) -> Batch:
    """With a share of the feature channels left out, the others made up for it, and now and then a gap in time."""
    if not share:
        return batch
    count, frames, dim = batch.features.shape
    kept = torch.from_numpy((rng.random((count, 1, dim)) >= share).astype(np.float32)) / (1 - share)
    for row in np.flatnonzero(rng.random(count) < share):
        size = int(rng.integers(1, 6))
        at = int(rng.integers(max(1, frames - size)))
        batch.features[row, at : at + size] = 0.0
    return Batch(batch.features * kept, batch.lengths, batch.positions, batch.numbers)
