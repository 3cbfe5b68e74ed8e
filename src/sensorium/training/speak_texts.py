"""Texts as token ids and units: what the speech output projector learns from, kept in the cache.

A `Corpus` is one source: `ids` of every text one behind the other, `units` likewise, and where each text begins.
`Answers` hold, besides, the hidden states of the LLM that wrote them. Everything else is spoken without states (zeros),
which costs no run of the LLM: pronunciation is mostly a matter of tokens, and the states are learnt from answers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sensorium import hub
from sensorium.training.data import spoken

if TYPE_CHECKING:
    from sensorium.model import Model

VERSION = "1"  # of what the texts of a source are
BATCH = 32
LONGEST = 64  # tokens of a text; a longer one is left out, since CTC's cost grows with the square


@dataclass(frozen=True)
class Corpus:
    """Texts of one source. `ids` int32, `units` int16; text i is between `starts[i]` and `starts[i + 1]` of each
    ([:, 0] of ids, [:, 1] of units). `states` float16 [len(ids), dim] or None."""

    ids: NDArray[np.int32]
    units: NDArray[np.int16]
    starts: NDArray[np.int64]
    states: NDArray[np.float16] | None = None

    def __len__(self) -> int:
        return len(self.starts) - 1

    def text(self, i: int) -> tuple[NDArray[np.int32], NDArray[np.int16], NDArray[np.float16] | None]:
        """Ids, units and states of a text."""
        (a, u), (b, v) = self.starts[i], self.starts[i + 1]
        return self.ids[a:b], self.units[u:v], None if self.states is None else self.states[a:b]

    def save(self, path: Path) -> None:
        """As one .npz file."""
        states: dict[str, Any] = {} if self.states is None else {"states": self.states}
        with hub.atomic_write(path, "wb") as file:
            np.savez(file, ids=self.ids, units=self.units, starts=self.starts, **states)

    @classmethod
    def load(cls, path: Path) -> Corpus:
        """What `save` wrote."""
        with np.load(path) as held:
            return cls(held["ids"], held["units"], held["starts"], held.get("states"))

    @classmethod
    def of(cls, texts: Iterable[tuple[Sequence[int], Sequence[int], Any]]) -> Corpus:
        """From (ids, units, states or None) of each text; texts without units, and too long ones, are left out."""
        kept = [(ids, units, states) for ids, units, states in texts if len(units) and 0 < len(ids) <= LONGEST]
        sizes = np.array([(0, 0), *((len(ids), len(units)) for ids, units, _ in kept)])
        states = [np.asarray(states, np.float16) for _, _, states in kept if states is not None]
        return cls(
            np.concatenate([np.empty(0, np.int32), *(np.asarray(ids, np.int32) for ids, _, _ in kept)]),
            np.concatenate([np.empty(0, np.int16), *(np.asarray(units, np.int16) for _, units, _ in kept)]),
            np.cumsum(sizes, axis=0),
            np.concatenate(states) if states else None,
        )


class Corpora:
    """Makes the corpora of a model and a generator, or finds them in the cache.

    Args:
        model: whose tokenizer, table and answers are used.
        generator: the text front-end whose units are the targets.
        say: takes a line about what is being prepared.
    """

    def __init__(self, model: Model, generator: Any, say: Callable[[str], None]) -> None:
        self.model, self.generator, self.say = model, generator, say
        self.encode: Callable[[str], list[int]] = model.parts.tokenizer.get().encode
        names = [VERSION, model.parts.backbone.get().fingerprint, generator.units.fingerprint]
        self.directory = (
            hub.cache_dir("training") / f"speak-{hashlib.sha256(' '.join(names).encode()).hexdigest()[:24]}"
        )

    def phrases(self, number: int, seed: int) -> Corpus:
        """Phrases of one to five words of the word list, the more frequent the likelier: by the numbers of their
        tokens, since byte-pair merges are numbered in the order of their frequency."""

        def make() -> Corpus:
            rng = np.random.default_rng(seed)
            pieces = {word: self.encode(f" {word}") for word in spoken.words() if len(word) > 3}
            chosen = [word for word, ids in pieces.items() if len(ids) == 1 or (len(ids) == 2 and rng.random() < 0.1)]
            chances = np.array([1 / (2000 + sum(pieces[word])) for word in chosen])
            chances /= chances.sum()
            said = {word: self.generator.units_of(word) for word in chosen}
            space, stop = [self.generator.space], self.generator.units_of("a.")[-1:]

            def phrase() -> tuple[list[int], list[int], None]:
                size = int(rng.integers(1, 6))
                group = [chosen[int(i)] for i in rng.choice(len(chosen), size=size, p=chances)]
                end = rng.random() < 0.5
                units = [unit for word in group for unit in [*space, *said[word]]][1:]
                return self.encode(" ".join(group) + "." * end), units + stop * end, None

            return Corpus.of(phrase() for _ in range(number))

        return self._kept(f"phrases-{number}-{seed}", make)

    def sentences(self, source: str, number: int, seed: int) -> Corpus:
        """So many texts of a source: "wordnet", "fortunes" (held out) or "numbers"."""

        def make() -> Corpus:
            if source == "numbers":
                texts = list(spoken.numbers(number, seed))
            else:
                pool = spoken.glosses() if source == "wordnet" else spoken.fortunes()
                texts = [pool[i] for i in np.random.default_rng(seed).permutation(len(pool))[:number]]
            if source == "wordnet":  # as sentences, for the most part
                texts = [text if i % 4 == 0 else text[:1].upper() + text[1:] + "." for i, text in enumerate(texts)]
            return Corpus.of((self.encode(text), self.generator.units_of(text), None) for text in texts)

        return self._kept(f"{source}-{number}-{seed}", make)

    def answers(self, number: int, seed: int, *, held_out: bool = False, longest: int = 60) -> Corpus:
        """Answers of the bare LLM, cut behind `longest` tokens, with their states: half greedy, half drawn."""

        def make() -> Corpus:
            from sensorium.backbones.engine import SamplingParams
            from sensorium.messages import Message

            engine, tokenizer = self.model.parts.bare.get(), self.model.parts.tokenizer.get()
            one = lambda noun: len(self.encode(f" {noun}")) == 1  # noqa: E731
            asked = list(spoken.questions(number, seed, held_out=held_out, known=one))
            texts: list[tuple[list[int], list[int], Any]] = []
            for k in range(0, number, BATCH):
                prompts = [self.model.prepare([Message("user", [text])]).segments for text in asked[k : k + BATCH]]
                params = [
                    SamplingParams(longest, 0.8 * (i % 2) * (not held_out), seed=k + i, stop_ids=tokenizer.eos_ids)
                    for i in range(len(prompts))
                ]
                steps: list[list[Any]] = [[] for _ in prompts]
                for row in engine.generate_batch(prompts, params, hidden=True):
                    for said, step in zip(steps, row):
                        if step is not None and step.finish != "stop":
                            said.append(step)
                for said in filter(None, steps):
                    ids = [step.token for step in said]
                    units = self.generator.units_of(tokenizer.decode(ids))
                    texts.append((ids, units, np.stack([step.hidden for step in said])))
                self.say(f"Answers: {min(k + BATCH, number)}/{number}")
            return Corpus.of(texts)

        name = f"answers-{'test' if held_out else 'train'}-{number}-{seed}-{longest}"
        return self._kept(name, make)

    def _kept(self, name: str, make: Callable[[], Corpus]) -> Corpus:
        path = self.directory / f"{name}.npz"
        if not path.is_file():
            with hub.file_lock(path):
                if not path.is_file():
                    self.say(f"Preparing texts to speak: {name} (once) ...")
                    make().save(path)
        return Corpus.load(path)
