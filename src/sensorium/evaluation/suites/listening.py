"""What a model understands of speech: every question as text, as sound, and as the transcript of that sound.

The text is the ceiling (the same LLM reads what was said), a projector with shuffled weights the floor, and the cascade
(Whisper's transcript, then the same LLM) what a projector competes with. All ways have the same prompt, in which
only what stands in the place of the words differs, and are scored alike.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sensorium.evaluation import intervals
from sensorium.evaluation.intervals import Estimate
from sensorium.evaluation.recognisers import no_recogniser
from sensorium.evaluation.scorecard import Row
from sensorium.messages import Message

if TYPE_CHECKING:
    from sensorium.model import Model

KL_TOKENS = 12
"""Tokens of the answers over which two ways' answers are compared."""


@dataclass(frozen=True, eq=False)
class SpokenItem:
    """Something said, and choices of which one is right.

    Attributes:
        section: of the scorecard.
        said: the words.
        sound: the same, float32 [samples] at 16 kHz.
        choices: what may be answered.
        answer: the right one.
        asked: what is asked about it in writing; nothing where the speech is itself the question.
        image: a picture that the question is about (`sensorium.Image`).
        cluster: items of one cluster are not independent: the thing asked about, the picture.
    """

    section: str
    said: str
    sound: np.ndarray
    choices: tuple[str, ...]
    answer: str
    asked: str = ""
    image: Any = None
    cluster: str = ""


@dataclass(frozen=True)
class Way:
    """A way for what was said to reach a model: `put` gives what stands in the place of the words.

    On a `direct` one the model hears the sound itself, and no recogniser may run.
    """

    model: Model
    put: Callable[[SpokenItem], Any]
    direct: bool = False

    def message(self, item: SpokenItem) -> Message:
        """What the user says."""
        words = [self.put(item), *([item.asked] if item.asked else [])]  # a line each
        return Message("user", [*([] if item.image is None else [item.image]), *words])


def ways(model: Model, random: Model, transcribe: Callable[[np.ndarray], str]) -> dict[str, Way]:
    """The columns of the scorecard, and "text"."""
    heard: dict[int, str] = {}

    def transcript(item: SpokenItem) -> str:
        if id(item) not in heard:
            heard[id(item)] = transcribe(item.sound)
        return heard[id(item)] or "..."

    def sound(item: SpokenItem) -> Any:
        from sensorium.media import load_audio

        return load_audio(item.sound, array_rate=16_000)

    return {
        "text": Way(model, lambda item: item.said),
        "random projector": Way(random, sound, direct=True),
        "cascade": Way(model, transcript),
        "model": Way(model, sound, direct=True),
    }


def listening_rows(
    items: Sequence[SpokenItem], by: dict[str, Way], progress: Callable[[int, int], None] | None = None
) -> list[Row]:
    """For each section its accuracy by way, the gap to the text, and how far the answers are from the text's.

    Raises:
        SensoriumError: a recogniser ran on a direct way.
    """
    rows = []
    done, every = 0, len(items) * len(by)
    for section in dict.fromkeys(item.section for item in items):
        chosen = [item for item in items if item.section == section]
        clusters = [item.cluster or item.said for item in chosen]
        right, apart = {}, {}
        answers = [written_answer(by["text"], item, seed) for seed, item in enumerate(chosen)]
        for name, way in by.items():
            with no_recogniser() if way.direct else contextlib.nullcontext():
                right[name] = np.array([is_right(way, item) for item in chosen], np.float64)
                if name != "text":
                    apart[name] = np.array(
                        [divergence(by["text"], way, item, ids) for item, ids in zip(chosen, answers)]
                    )
            done += len(chosen)
            if progress:
                progress(done, every)
        chance = float(np.mean([1 / len(item.choices) for item in chosen]))
        accuracy = {name: intervals.rate(values, clusters) for name, values in right.items()}
        gaps = {name: _mean(right[name] - right["text"], clusters) for name in apart}
        beyond, p = (
            _mean(right["model"] - right["cascade"], clusters),
            intervals.mcnemar(right["model"], right["cascade"]),
        )
        kl = {name: _mean(values, clusters) for name, values in apart.items()}
        rows += [
            Row(section, "right answers", chance, None, accuracy, beyond, p),
            Row(section, "the same, beyond the text's", None, None, gaps),
            Row(
                section, "KL from the text's answer, nats a token", None, None, kl, unit="number", lower_is_better=True
            ),
        ]
    return rows


def is_right(way: Way, item: SpokenItem) -> bool:
    """Whether the right choice is the likeliest beginning of an answer."""
    scores, _ = _weighed(way, item, item.choices)
    return item.choices[int(np.argmax(scores))] == item.answer


def written_answer(way: Way, item: SpokenItem, seed: int) -> str:
    """A sampled answer, by which `divergence` is estimated."""
    return str(way.model.chat([way.message(item)], max_tokens=KL_TOKENS, temperature=1.0, seed=seed).text)


def divergence(text: Way, way: Way, item: SpokenItem, answer: str) -> float:
    """An unbiased estimate of KL(text's answers || way's answers) in nats a token, from one answer that the text's way
    gave: the difference of its log-probabilities."""
    (one, tokens), (other, _) = (_weighed(each, item, [answer or "..."]) for each in (text, way))
    return float((one[0] - other[0]) / tokens[0])


def _weighed(way: Way, item: SpokenItem, answers: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Log-probability of each answer as the beginning of what is said, and its number of tokens."""
    prepared = way.model.prepare([way.message(item)])
    ids = [prepared.tokenizer.encode_answer(answer) for answer in answers]
    return np.asarray(prepared.engine.score(prepared.segments, ids)), np.array([len(each) for each in ids])


def _mean(values: np.ndarray, clusters: Sequence[str]) -> Estimate:
    return intervals.bootstrap(lambda weights: weights @ values / weights.sum(axis=-1), len(values), clusters)
