"""Spoken texts as features of the frozen encoder, kept in the cache: said, disturbed and encoded once.

A shard is `SHARD` utterances: float16 features one behind the other, memory-mapped, and a list of what was said by
whom. What is in it depends on the seed and its number alone, so a store grows by further shards, an interrupted build
goes on where it stopped, and training may begin while later shards are still made.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sensorium import hub
from sensorium.errors import SensoriumError
from sensorium.training.data import people, spoken_questions, voices
from sensorium.training.data.spoken_sentences import Said, Sentences

VERSION = "2"  # of texts, voices and disturbances
SHARD = 400
PEOPLE = "people"
SENTENCES = 60  # held-out sentences of the test shard, by each voice


@dataclass(frozen=True)
class Utterance:
    """What was said, from which source, by whom; frames `start` to `end` of its shard."""

    text: str
    source: str
    voice: str
    start: int
    end: int


class Speaker(Protocol):
    """A voice, or one recording of one."""

    @property
    def engine(self) -> str:
        """What makes the sound."""

    @property
    def name(self) -> str:
        """Who speaks."""

    def say(self, text: str) -> voices.Samples:
        """A text as mono sound at 16 kHz, without the silence around it."""


class Shard:
    """Utterances and their features float16 [frames, dim] of one file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.features: NDArray[np.float16] = np.load(path, mmap_mode="r")
        self.utterances = [Utterance(**fields) for fields in json.loads(path.with_suffix(".json").read_text())]

    def heard(self, utterance: Utterance) -> NDArray[np.float16]:
        """Features of one utterance, [frames, dim]."""
        return self.features[utterance.start : utterance.end]


class ListenStore:
    """The shards of a seed.

    Args:
        encoder: the frozen speech encoder.
        encode: the tokenizer's; it says which words are common.
        seed: of everything that is drawn.
        mixture: of texts and voices (`spoken_sentences.MIXTURES`), or "people" for recordings (`data.people`).
        say: takes a line about what is being made.
    """

    def __init__(
        self,
        encoder: Any,
        encode: Callable[[str], list[int]],
        seed: int,
        say: Callable[[str], None],
        mixture: str = "broad",
    ) -> None:
        self.encoder, self.encode, self.seed, self.say, self.mixture = encoder, encode, seed, say, mixture
        of = "" if mixture == "broad" else f"{mixture} "
        name = hashlib.sha256(f"{of}{VERSION} {seed} {encoder.spec.fingerprint}".encode()).hexdigest()[:24]
        self.directory = hub.cache_dir("training") / f"listen-{name}"

    def shard(self, number: int) -> Shard:
        """A shard of the training half, made where it is not there yet."""
        return self._kept(f"{number:05d}", lambda: self._drawn(number))

    def test(self) -> Shard:
        """Questions of the split "dev" and held-out sentences by every test voice, every other one disturbed."""
        return self._kept("test", self._test)

    def _drawn(self, number: int) -> Iterator[tuple[Said, Speaker, np.random.Generator]]:
        if self.mixture == PEOPLE:
            recordings = people.recordings()
            order = np.random.default_rng([self.seed, 1 << 21]).permutation(len(recordings))
            for i in range(SHARD):  # each once, then each again with another disturbance
                one = recordings[int(order[(number * SHARD + i) % len(order)])]
                yield Said(one.text, PEOPLE), one, np.random.default_rng([self.seed, number, i])
            return
        texts = Sentences(self.encode)
        for i in range(SHARD):
            rng = np.random.default_rng([self.seed, number, i])
            yield texts.draw(rng, mixture=self.mixture), voices.draw(rng, self.mixture), rng

    def _test(self) -> Iterator[tuple[Said, Speaker, np.random.Generator | None]]:
        rng = np.random.default_rng([self.seed, 1 << 20])
        texts = Sentences(self.encode)
        asked = [Said(each.question, "test questions") for each in spoken_questions.questions("dev")]
        sentences: list[Said] = []
        while len(sentences) < SENTENCES:
            said = texts.draw(rng, "test")
            if said.source in ("examples", "about"):
                sentences.append(Said(said.text, "test sentences"))
        for k, voice in enumerate(voices.TEST_VOICES):
            for i, each in enumerate([*asked, *sentences]):
                yield each, voice, np.random.default_rng([self.seed, k, i]) if (i + k) % 2 else None

    def _kept(self, name: str, drawn: Callable[[], Iterator[tuple[Said, Speaker, Any]]]) -> Shard:
        path = self.directory / f"{name}.npy"
        if not path.is_file():
            with hub.file_lock(path):
                if not path.is_file():
                    self.say(f"Spoken texts {name} ({self.mixture}) are being said; half a minute each ...")
                    self._make(path, drawn())
        return Shard(path)

    def _make(self, path: Path, drawn: Iterator[tuple[Said, Speaker, Any]]) -> None:
        began, at = time.monotonic(), 0
        features: list[NDArray[np.float16]] = []
        utterances: list[Utterance] = []
        for said, voice, rng in drawn:
            try:
                sound = voice.say(said.text)
            except SensoriumError as error:
                if "said nothing" not in str(error):
                    raise
                continue
            heard = self.encoder.encode([quiet(sound) if rng is None else voices.disturbed(sound, rng)])[0]
            features.append(heard.astype(np.float16))
            who = f"{voice.engine}:{voice.name}"
            utterances.append(Utterance(said.text, said.source, who, at, at + len(heard)))
            at += len(heard)
        with hub.atomic_write(path.with_suffix(".json"), "w") as text:
            text.write(json.dumps([asdict(utterance) for utterance in utterances]))
        with hub.atomic_write(path, "wb") as file:
            np.save(file, np.concatenate(features))
        took = time.monotonic() - began
        self.say(f"Spoken texts {path.stem}: {len(utterances)} in {took:.0f} s, {at / 50 / 60:.1f} minutes of sound")


def quiet(sound: voices.Samples) -> voices.Samples:
    """A sound as it is, at a usual loudness, between two short silences."""
    loudness = float(np.sqrt(np.mean(sound**2))) + 1e-9
    padded = np.pad(sound * (0.07 / loudness), (int(0.15 * voices.RATE), int(0.2 * voices.RATE)))
    return np.clip(padded, -1, 1).astype(np.float32)
