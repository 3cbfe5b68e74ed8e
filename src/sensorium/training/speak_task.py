"""The speech output task: frames of (state, token) -> output projector -> CTC over the units of the text.

The position convention, at training and at inference: the frame of a token holds the state that the token was chosen
from (`engine.Step.hidden`) and the token's own embedding. Behind the last token comes one frame of the end-of-turn
token without a state, whose slots take what pronunciation has put off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sensorium.generators.base import BLANK
from sensorium.projectors.spelling import END, spelt
from sensorium.training.loop import Loss
from sensorium.training.objectives.ctc import ctc_units
from sensorium.training.speak_recipe import SpeakTrain
from sensorium.training.speak_texts import Corpus

IGNORED = -100


@dataclass(frozen=True)
class Frames:
    """Texts of a batch: `states` [B, N, dim], `tokens` [B, N] (the end-of-turn token behind each text), `letters`
    [B, N, letters], `lengths` [B] in frames, `units` [B, most] and `unit_lengths` [B]; `slots` [B, N, upsample] of
    texts whose alignment is known."""

    states: Tensor
    tokens: Tensor
    letters: Tensor
    lengths: Tensor
    units: Tensor
    unit_lengths: Tensor
    slots: Tensor | None = None


def frames_of(
    texts: Sequence[tuple[Any, Any, Any]], end: int, projector: Any, decode: Callable[[list[int]], str]
) -> Frames:
    """Lay out (ids, units, states or None) of texts; row i of ``states`` is what ids[i] was chosen from."""
    length = 1 + max(len(ids) for ids, _, _ in texts)
    most = max(len(units) for _, units, _ in texts)
    states = torch.zeros(len(texts), length, projector.dim)
    tokens = torch.full((len(texts), length), end)
    letters = torch.zeros(len(texts), length, projector.letters, dtype=torch.long)
    units = torch.zeros(len(texts), most, dtype=torch.long)
    for row, (ids, said, given) in enumerate(texts):
        tokens[row, : len(ids)] = torch.from_numpy(np.asarray(ids, np.int64))
        pieces = [decode([int(token)]) for token in ids]
        letters[row, : len(ids) + 1] = torch.from_numpy(spelt([*pieces, END], projector.letters))
        units[row, : len(said)] = torch.from_numpy(np.asarray(said, np.int64))
        if given is not None:
            if len(given) != len(ids):
                raise ValueError(f"{len(ids)} tokens have {len(given)} states; each token has the one it came from")
            states[row, : len(ids)] = torch.from_numpy(np.asarray(given, np.float32))
    sizes = ([1 + len(ids) for ids, _, _ in texts], [len(said) for _, said, _ in texts])
    return Frames(states, tokens, letters, torch.tensor(sizes[0]), units, torch.tensor(sizes[1]))


def logits_of(projector: Any, table: Tensor, frames: Frames) -> Tensor:
    """[B, N * upsample, units + 1]."""
    embeds = table[frames.tokens].float()
    past = projector.empty(len(embeds)).to(embeds.device)
    before = F.pad(embeds[:, :-1], (0, 0, 1, 0))
    logits, _ = projector(frames.states, embeds, before, frames.letters, past, torch.zeros(1, dtype=torch.long))
    return logits.flatten(1, 2)


def fits(units: Any, tokens: int, upsample: int) -> bool:
    """Whether CTC can align a text: a slot for each unit and for a blank between equal neighbours."""
    said = np.asarray(units)
    return len(said) + int((said[1:] == said[:-1]).sum()) <= (tokens + 1) * upsample


def align(words: Sequence[int], units: Sequence[int], space: int, upsample: int) -> NDArray[np.int64] | None:
    """The class of every slot of a text, [frames, upsample], where its words can be told apart; else None.

    A word is said in the first frame behind it, when it is known to be over ("extra" may become "extraordinary") and
    what follows is known, too ("the" sounds different before a vowel).

    Args:
        words: for each token, how many words the text has up to its end.
        units: of the text.
        space: the unit that stands between words.
        upsample: slots a frame.
    """
    ends = [0, *(np.flatnonzero(np.asarray(units) == space)), len(units)]  # a space goes with the word behind it
    if not len(words) or len(ends) - 1 != words[-1]:
        return None
    slots = np.zeros((len(words) + 1, upsample), np.int64)
    for word, (begin, end) in enumerate(pairwise(ends), start=1):
        said: list[int] = []
        for unit in units[begin:end]:
            said += [BLANK, int(unit)] if said and said[-1] == unit else [int(unit)]
        if len(said) > upsample:
            return None
        slots[int(np.searchsorted(words, word, side="right")), : len(said)] = said
    return slots


class SpeakTask:
    """What the loop trains.

    Args:
        projector: the output projector.
        table: the LLM's embedding table [vocab, dim], frozen.
        corpora, weights: texts by source, and how often each source is drawn.
        end: the end-of-turn token.
        state_dropout: share of texts whose states are left out.
        recipe: rate, batch size, seed, steps with a known alignment.
        decode: the tokenizer's.
        space: the unit between words; 0 where units know no words.
    """

    def __init__(
        self,
        projector: Any,
        table: Tensor,
        corpora: Mapping[str, Corpus],
        weights: Mapping[str, float],
        end: int,
        state_dropout: float,
        recipe: SpeakTrain,
        decode: Callable[[list[int]], str],
        space: int = 0,
    ) -> None:
        self.projector: Any = projector
        self.table, self.corpora, self.end = table, corpora, end
        self.space, self.decode = space, decode
        self.state_dropout, self.recipe = state_dropout, recipe
        self.names = list(corpora)
        shares = np.array([weights[name] for name in self.names])
        self.shares = shares / shares.sum()
        self.order = {}
        for name, corpus in corpora.items():
            sizes = np.diff(corpus.starts, axis=0)
            able = [i for i in range(len(corpus)) if fits(corpus.text(i)[1], int(sizes[i, 0]), projector.upsample)]
            self.order[name] = np.array(sorted(able, key=lambda i: (sizes[i, 0], i)))

    def tensors(self) -> dict[str, Tensor]:
        """The projector; nothing else learns."""
        return dict(self.projector.named_parameters())

    def rate(self, name: str) -> float:
        """One for all."""
        return self.recipe.learning_rate

    def batches(self, start: int, stop: int) -> Iterator[Frames]:
        """Texts of one source and of like length: what a step gets depends on the seed and its number alone."""
        for step in range(start, stop):
            rng = np.random.default_rng([self.recipe.seed, step])
            name = self.names[int(rng.choice(len(self.names), p=self.shares))]
            corpus, order = self.corpora[name], self.order[name]
            at = int(rng.integers(len(order)))
            tokens = len(corpus.text(int(order[at]))[0]) + 1
            rows = max(1, self.recipe.frame_tokens // tokens)
            pool = order[max(0, at - 4 * rows) : at + 4 * rows + 1]
            texts = [corpus.text(int(i)) for i in rng.permutation(pool)[:rows]]
            texts = [
                (ids, units, None if rng.random() < self.state_dropout else states) for ids, units, states in texts
            ]
            aligned = [self._slots(ids, units) for ids, units, _ in texts] if step < self.recipe.aligned_steps else []
            known = [text for text, slots in zip(texts, aligned) if slots is not None]
            if not known:
                yield frames_of(texts, self.end, self.projector, self.decode)
                continue
            frames = frames_of(known, self.end, self.projector, self.decode)
            padded = torch.full((*frames.tokens.shape, self.projector.upsample), IGNORED)
            for row, slots in enumerate(found for found in aligned if found is not None):
                padded[row, : len(slots)] = torch.from_numpy(slots)
            yield replace(frames, slots=padded)

    def _slots(self, ids: Any, units: Any) -> NDArray[np.int64] | None:
        if not self.space:
            return None
        words = [len(self.decode(ids[: i + 1].tolist()).split()) for i in range(len(ids))]
        return align(words, units, self.space, self.projector.upsample)

    def loss(self, batch: Frames) -> Loss:
        """Mean CTC loss per unit; in the first steps mean cross-entropy per slot."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.recipe.precision == "bf16"):
            logits = logits_of(self.projector, self.table, batch).float()
        if batch.slots is not None:
            mean = F.cross_entropy(logits.flatten(0, 1), batch.slots.flatten(), ignore_index=IGNORED)
            return Loss(mean, float((batch.slots != IGNORED).sum()), int(batch.lengths.sum()), {"aligned": 1.0})
        mean, number = ctc_units(logits, batch.lengths * self.projector.upsample, batch.units, batch.unit_lengths)
        return Loss(mean, number, int(batch.lengths.sum()))

    def stepped(self) -> None:
        """Nothing to clamp."""
