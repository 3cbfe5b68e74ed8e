"""The speech suite: what is understood of speech, what is said, and how soon.

Questions and pictures are those that training held out, spoken by synthetic voices that it held out; and recordings of
two people, the like of whom it never heard. Of either split, "dev" is for choices and "test" for results.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sensorium.errors import UsageError
from sensorium.evaluation import latency
from sensorium.evaluation.human_voices import Recording, recordings
from sensorium.evaluation.random_projector import with_random_projector
from sensorium.evaluation.recognisers import no_recogniser
from sensorium.evaluation.scorecard import Row, Scorecard
from sensorium.evaluation.speech_metrics import words
from sensorium.evaluation.suites.listening import SpokenItem, listening_rows, ways
from sensorium.evaluation.suites.speaking import SECTION, Hear, evaluate_speaking, listener, median, rate

if TYPE_CHECKING:
    from sensorium.model import Model

RATE = 16_000
SEEN_EACH, RECORDINGS, ANSWERS, TIMED = 50, 120, 24, 15
SPOKEN, SEEN, PEOPLE = (
    "spoken questions, held-out voices",
    "spoken yes/no about photographs, held-out voices",
    "people: which sentence was said",
)
SOON = "question of two seconds to first sound, seconds"
REPEAT = "Repeat this sentence."
SPLIT_NOTES = {
    "dev": "Spoken questions and photographs are a development set: choices of the training were made by looking at "
    "them. Recordings of people were not.",
    "test": "Spoken questions are of a table of their own, about things that no other question asks about; they were "
    "chosen by what the language model reads, never by what is heard of them. They are spoken by voices that training "
    "never heard. Nothing was chosen by recordings of people or by photographs either.",
}
"""What a scorecard says about what was asked, by split."""


def evaluate_speech(
    model: Model,
    *,
    split: Literal["dev", "test"] = "test",
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    notes: list[str] | None = None,
) -> Scorecard:
    """Run the suite.

    Args:
        model: the composition; what it has no projector for is left out, with a note.
        split: spoken questions and photographs to choose by ("dev") or for results alone ("test").
        limit: at most so many items of each kind.
        progress: called with (done, all), from the beginning for each part.
        notes: further notes for the scorecard.

    Raises:
        UsageError: the composition neither listens nor speaks.
        SensoriumError: recordings or synthetic voices cannot be had, or a recogniser ran on the direct path.
    """
    listens = "speech" in model.composition.spec.projectors
    speaks = model.parts.output.get() is not None
    if not (listens or speaks):
        raise UsageError(f"the model {model.name!r} has no projector for speech, neither in nor out.")
    hear = listener()
    notes = [*(notes or []), "No decoder of a speech recogniser ran on the direct path: every call is watched for."]
    rows: list[Row] = []
    facts: dict[str, Any] = {"split": split}
    if listens:
        items = [*question_items(split, limit), *photo_items(split, limit), *people_items(limit)]
        by = ways(model, with_random_projector(model), lambda sound: hear(sound, RATE))
        rows += listening_rows(items, by, progress)
        facts["spoken_items"] = len(items)
        notes.append(SPLIT_NOTES[split])
    else:
        notes.append("The composition has no speech input projector.")
    said = evaluate_speaking(model, questions=_asked(limit), hear=hear, progress=progress)
    rows += [*said.rows, _people_floor(hear, limit)]
    facts |= said.facts
    if listens:
        rows += latency_rows(model, hear, limit, progress)
    return Scorecard("speech", model.name, rows, facts, notes)


def question_items(split: Literal["dev", "test"], limit: int | None = None) -> list[SpokenItem]:
    """Questions of a split, each in one of the held-out voices; every other one in a room, with noise or a bad line."""
    from sensorium.training.data.spoken_questions import questions

    asked = questions(split)
    asked = _some(asked, limit or len(asked))
    sounds = held_out_voices([question.question for question in asked])
    return [
        SpokenItem(SPOKEN, one.question, sound, one.choices, one.answer, cluster=one.question)
        for one, sound in zip(asked, sounds)
    ]


def photo_items(split: Literal["dev", "test"], limit: int | None = None) -> list[SpokenItem]:
    """Yes/no questions about photographs, spoken; as many with yes as with no."""
    from sensorium.evaluation import photos
    from sensorium.media import load_image

    wanted = photos.photos(split)[:limit]
    found = photos.photo_items(wanted, photos.fetch_photos(wanted))
    asked = [item for item in found if item.task == "yesno"]
    asked = [
        each
        for answer in ("yes", "no")
        for each in _some([i for i in asked if i.answer == answer], min(limit or SEEN_EACH, SEEN_EACH))
    ]
    sounds = held_out_voices([item.question for item in asked])
    return [
        SpokenItem(
            SEEN, i.question, sound, ("Yes", "No"), i.answer.capitalize(), image=load_image(i.image), cluster=i.unit
        )
        for i, sound in zip(asked, sounds)
    ]


def people_items(limit: int | None = None) -> list[SpokenItem]:
    """Recordings, each with three other recorded sentences of about its length to choose from."""
    from sensorium.media import load_audio

    every = recordings()
    items = []
    for number, one in enumerate(_some(every, min(limit or RECORDINGS, RECORDINGS))):
        near = sorted(every, key=lambda other: (abs(len(other.text.split()) - len(one.text.split())), other.text))
        pool = list(dict.fromkeys(other.text for other in near if other.text != one.text))[:12]
        rng = np.random.default_rng(number)
        choices = [one.text, *(pool[int(i)] for i in rng.permutation(len(pool))[:3])]
        rng.shuffle(choices)
        sound = load_audio(one.path).samples
        items.append(SpokenItem(PEOPLE, one.text, sound, tuple(choices), one.text, REPEAT))
    return items


def held_out_voices(texts: Sequence[str], *, disturb: bool = True) -> Iterator[np.ndarray]:
    """Texts in the voices that training never heard, one after the other: float32 [samples] at 16 kHz."""
    from sensorium.training.data.voices import TEST_VOICES, disturbed

    for number, text in enumerate(texts):
        sound = TEST_VOICES[number % len(TEST_VOICES)].say(text)
        yield disturbed(sound, np.random.default_rng(number)) if disturb and number % 2 else sound


def latency_rows(
    model: Model, hear: Hear, limit: int | None = None, progress: Callable[[int, int], None] | None = None
) -> list[Row]:
    """The medians of `latency.STAGES`, direct and by the cascade."""
    by = measure_latency(model, hear, min(limit or TIMED, TIMED), progress)
    return [
        Row(SOON, stage, None, None, {way: median(values[stage]) for way, values in by.items()},
            unit="number", lower_is_better=True)
        for stage in (*latency.STAGES, latency.WHOLE)
    ]  # fmt: skip


def measure_latency(
    model: Model, hear: Hear, rounds: int, progress: Callable[[int, int], None] | None = None
) -> dict[str, dict[str, list[float]]]:
    """Seconds by way and stage: the two ways take turns, and what was loaded first is asked for beforehand."""
    spoken = model.parts.output.get() is not None
    found: dict[str, dict[str, list[float]]] = {"cascade": {}, **({"model": {}} if spoken else {})}
    for number, sound in enumerate(two_second_questions(rounds + 1)):
        for way, values in found.items():
            if way == "cascade":
                spent = latency.first_sound(model, sound, transcribe=_to_text(hear))
            else:
                with no_recogniser():
                    spent = latency.first_sound(model, sound)
            if number:  # the first is not counted
                for stage, seconds in spent.items():
                    values.setdefault(stage, []).append(seconds)
        if progress:
            progress(number + 1, rounds + 1)
    return found


def two_second_questions(number: int) -> list[np.ndarray]:
    """Different questions in hibari's voice, cut or filled with silence to exactly two seconds."""
    from sensorium.training.data.spoken_questions import questions
    from sensorium.training.data.voices import Voice

    voice, found = Voice("hibari", "heart"), []
    for question in questions("dev"):
        sound = voice.say(question.question)
        if 1.7 * RATE <= len(sound) <= 2.05 * RATE:
            found.append(np.pad(sound, (0, max(0, 2 * RATE - len(sound))))[: 2 * RATE])
        if len(found) == number:
            break
    return found


def _asked(limit: int | None) -> list[str]:
    from sensorium.training.data.spoken import questions

    return list(questions(min(limit or ANSWERS, ANSWERS), 1, held_out=True, known=lambda noun: len(noun) < 8))


def _people_floor(hear: Hear, limit: int | None) -> Row:
    """What the recogniser makes of people: words that it gets wrong are not all the speaker's fault."""
    from sensorium.media import load_audio

    chosen: list[Recording] = _some(recordings(), limit or 40)
    pairs = [(words(one.text), words(hear(load_audio(one.path).samples, RATE))) for one in chosen]
    name = "ASR-WER (tiny.en) of recordings of people"
    return Row(SECTION, name, None, None, {"people": rate(pairs)}, lower_is_better=True)


def _to_text(hear: Hear) -> Callable[[np.ndarray], str]:
    return lambda sound: hear(sound, RATE)


def _some(values: Sequence[Any], number: int) -> list[Any]:
    """So many of them, evenly spread."""
    if len(values) <= number:
        return list(values)
    return [values[int(i)] for i in np.linspace(0, len(values) - 1, number).round()]
