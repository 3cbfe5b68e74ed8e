"""The speech output suite: answers said while they are generated, by the output projector and by the text cascade.

Both say the same answers to questions about nouns that training never asked about. Phoneme error rate compares the
projector's units with those that the generator's text front-end makes of the answer (whose own are, by definition,
without error); ASR-WER compares what Whisper tiny.en hears with the words of the answer, so the cascade's column is the
floor that the generator and the recogniser share. Rates are sums of edits over sums of lengths, and intervals resample
whole answers.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sensorium.evaluation import intervals
from sensorium.evaluation.random_projector import with_random_units
from sensorium.evaluation.recognisers import no_recogniser
from sensorium.evaluation.scorecard import Row, Scorecard
from sensorium.evaluation.speech_metrics import edits, words

if TYPE_CHECKING:
    from sensorium.model import Model

LONGEST = 48
Hear = Callable[[np.ndarray, int], str]
"""Sound and its rate -> text."""
SECTION = "speech output, answers to held-out questions"


@dataclass(frozen=True)
class Said:
    """One answer by one way: its text, units and sound, and its seconds by stage (see `STAGES`)."""

    text: str
    units: list[int]
    sound: np.ndarray
    seconds: dict[str, float]


STAGES = ("prefill", "units", "generator", "first sound")
"""Of an answer: prefill, projector or text front-end in all, generator in all, from the call to the first sound."""

WHOLE = "whole"
"""From the call to the last sample; by the seconds of sound that come of it, the real-time factor."""


def evaluate_speaking(
    model: Model,
    *,
    questions: Iterable[str],
    hear: Hear | None = None,
    longest: int = LONGEST,
    progress: Callable[[int, int], None] | None = None,
) -> Scorecard:
    """Say answers both ways and compare.

    Args:
        model: the composition; without an output projector only the cascade's column is filled.
        questions: what to ask.
        hear: sound and its rate -> text; None for Whisper tiny.en.
        longest: tokens of an answer.
        progress: called with (done, all).

    Raises:
        SensoriumError: a recogniser ran while the model spoke.
    """
    asked = list(questions)
    hear = hear or listener()
    generator = model.parts.generator.get()
    ways: dict[str, tuple[Model, bool]] = {"cascade": (model, True)}
    if model.parts.output.get():
        ways |= {"model": (model, False), "random projector": (with_random_units(model), False)}
    for one, cascade in ways.values():
        say(one, "Say hello.", cascade, 4)  # loads what is loaded but once
    found: dict[str, list[Said]] = {way: [] for way in ways}
    for done, question in enumerate(asked):
        for way, (one, cascade) in ways.items():
            with contextlib.nullcontext() if cascade else no_recogniser():
                found[way].append(say(one, question, cascade, longest))
        if progress:
            progress(done + 1, len(asked))
    rows = []
    if "model" in found:
        pairs = {
            way: [(generator.units_of(said.text), said.units) for said in found[way]]
            for way in ("random projector", "model")
        }
        errors = {way: rate(each) for way, each in pairs.items()}
        rows.append(Row(SECTION, "phoneme error rate", None, None, errors, lower_is_better=True))
    heard = {
        way: [(words(said.text), words(hear(said.sound, generator.rate))) for said in each]
        for way, each in found.items()
    }
    scores = {way: rate(each) for way, each in heard.items()}
    beyond = _beyond(heard["model"], heard["cascade"]) if "model" in heard else None
    rows.append(Row(SECTION, "ASR-WER (tiny.en)", None, None, scores, beyond, lower_is_better=True))
    for stage in STAGES:
        numbers = {
            way: median([said.seconds[stage] for said in found[way]]) for way in found if way in ("cascade", "model")
        }
        rows.append(Row(SECTION, f"{stage}, s (median)", None, None, numbers, unit="number", lower_is_better=True))
    factors = {
        way: median([said.seconds[WHOLE] * generator.rate / max(len(said.sound), 1) for said in found[way]])
        for way in found
        if way in ("cascade", "model")
    }
    rows.append(Row(SECTION, "real-time factor (median)", None, None, factors, unit="number", lower_is_better=True))
    seconds = {way: sum(len(one.sound) for one in said) / generator.rate for way, said in found.items()}
    return Scorecard("speech", model.name, rows, {"questions": len(asked), "tokens": longest, "sound_s": seconds})


def say(model: Model, question: str, cascade: bool, longest: int) -> Said:
    """One greedy answer, said while it is generated."""
    sound: list[np.ndarray] = [np.zeros(0, np.float32)]
    speaker = model.speaker(sound.append, cascade=cascade)
    model.parts.bare.get().clear_cache()  # every prompt is prefilled, as a new one would be
    began = time.perf_counter()
    answer = model.chat(question, speaker=speaker, max_tokens=longest)
    whole = time.perf_counter() - began
    timings = speaker.timings
    first = timings.first_sound_s if timings.first_sound_s is not None else float("nan")
    stages = (answer.timings.prefill_s, timings.units_s, timings.generator_s, first)
    return Said(answer.text, speaker.units, np.concatenate(sound), {**dict(zip(STAGES, stages)), WHOLE: whole})


def listener() -> Hear:
    """Whisper tiny.en, greedy."""
    from sensorium.media import load_audio
    from sensorium.tasks.transcribe import Transcriber

    transcriber = Transcriber("tiny.en")

    def hear(sound: np.ndarray, rate: int) -> str:
        return transcriber.text(load_audio(sound, array_rate=rate).samples) if len(sound) else ""

    return hear


def rate(pairs: list[tuple[Any, Any]]) -> intervals.Estimate:
    """The errors of (meant, heard) over the lengths of what was meant."""
    wrong, total = _counts(pairs)
    return intervals.bootstrap(lambda weights: weights @ wrong / np.maximum(weights @ total, 1), len(pairs))


def _counts(pairs: list[tuple[Any, Any]]) -> tuple[np.ndarray, np.ndarray]:
    wrong = np.array([edits(meant, said) for meant, said in pairs], np.float64)
    return wrong, np.array([len(meant) for meant, _ in pairs], np.float64)


def _beyond(pairs: list[tuple[Any, Any]], others: list[tuple[Any, Any]]) -> intervals.Estimate:
    """How much higher one rate is than the other's of the same answers."""
    (wrong, total), (less, all_of) = _counts(pairs), _counts(others)
    return intervals.bootstrap(
        lambda weights: (
            weights @ wrong / np.maximum(weights @ total, 1) - weights @ less / np.maximum(weights @ all_of, 1)
        ),
        len(pairs),
    )


def median(values: Sequence[float]) -> intervals.Estimate:
    """The median of those that are numbers, with its bootstrap interval."""
    known = np.array([value for value in values if not np.isnan(value)])
    if not len(known):
        return intervals.Estimate(float("nan"), float("nan"), float("nan"), 0, 0)
    drawn = np.random.default_rng(0).choice(known, (intervals.RESAMPLES, len(known)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return intervals.Estimate(float(np.median(known)), float(low), float(high), len(known), len(known))
