"""A spoken question in, text and speech out, no transcript in between.

recording --encoder, projector--> LLM --> text, as it comes
                                      --> output projector or text front-end --> generator --> sound, as it comes
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sensorium.arguments import shown
from sensorium.errors import UsageError
from sensorium.generators.base import Samples
from sensorium.messages import kind_of
from sensorium.tasks.ask import question
from sensorium.tasks.speak import wav_file

if TYPE_CHECKING:
    from sensorium.answer import Answer
    from sensorium.model import Model


@dataclass(frozen=True)
class ListenTimings:
    """Seconds. The question is decoded and the parts are loaded before the clock starts.

    Attributes:
        question_s: how long the question lasts.
        encode_s: encoder and projector.
        prefill_s: the LLM reads the question.
        first_token_s: from the question's end to the first piece of text.
        first_sound_s: from the question's end to the first sound; None where nothing is said.
        total_s: from the question's end to the end of the answer and its sound.
        sound_s: how long the answer's sound lasts.
        real_time_factor: `total_s` over `sound_s`; None where nothing is said. Below 1, sound is made faster than it
            plays.
    """

    question_s: float
    encode_s: float
    prefill_s: float
    first_token_s: float
    first_sound_s: float | None
    total_s: float
    sound_s: float
    real_time_factor: float | None


@dataclass(frozen=True)
class Reply:
    """What was answered. `sound` is float32 [n], -1..1, at `rate`; empty where a sink took it or nothing was said."""

    answer: Answer
    sound: Samples
    rate: int
    timings: ListenTimings

    def __str__(self) -> str:
        return self.answer.text

    def save(self, path: str | Path) -> None:
        """Write the sound as a 16-bit WAV file.

        Raises:
            UsageError: there is no sound in the reply, or `path` is no path.
            SensoriumError: the file cannot be written.
        """
        if not isinstance(path, (str, os.PathLike)):
            raise UsageError(f"the path is {shown(path)}; give that of the WAV file to write.")
        if not len(self.sound):
            raise UsageError("the reply holds no sound to save; ask with speak=True and without a sink.")
        with wav_file(Path(path), self.rate) as append:
            append(self.sound)

    def to_dict(self) -> dict[str, Any]:
        """The object that `sensorium listen --json` prints."""
        timings = {name: value if value is None else round(value, 4) for name, value in asdict(self.timings).items()}
        return {**self.answer.to_dict(), "timings": timings}


def listen(
    model: Model,
    sound: Any,
    *,
    image: Any = None,
    sink: Callable[[Samples], None] | None = None,
    show: Callable[[str], Any] | None = None,
    speak: bool = True,
    cascade: bool | None = None,
    **options: Any,
) -> Reply:
    """Answer a spoken question.

    Args:
        model: the composed model.
        sound: anything that `load_audio` takes, but arrays; one question or a list of its parts.
        image: pictures that it is about, one or a list.
        sink: takes the answer's sound as it is made, float32 [n] at the generator's rate; None to keep it in the reply.
        show: takes the answer's text as it comes.
        speak: say the answer; False to write it only.
        cascade: as of `Model.speaker`.
        **options: as of `Model.chat`.

    Raises:
        UsageError: the composition takes no speech, or an option is malformed.
        SensoriumError: the sound cannot be read, holds silence, or a part cannot be loaded.
    """
    messages = question(None, image, sound, model.hearing)
    media = messages[0].media
    model.load().parts.ready({kind_of(medium) for medium in media})
    kept: list[Samples] = []
    said = 0

    def take(samples: Samples) -> None:
        nonlocal said
        said += len(samples)
        (sink or kept.append)(samples)

    rate = model.parts.generator.get().rate if speak else 0
    speaker = model.speaker(take, cascade=cascade) if speak else None
    began = time.perf_counter()
    if speaker:
        speaker.timings.started = began
    stream = model.chat(messages, stream=True, speaker=speaker, **options)
    first = None
    for piece in stream:
        first = time.perf_counter() - began if first is None else first
        if show:
            show(piece)
    total = time.perf_counter() - began
    answer = stream.answer
    seconds = said / rate if rate else 0.0
    timings = ListenTimings(
        question_s=sum(medium.seconds for medium in media if kind_of(medium) == "speech"),
        encode_s=answer.timings.encode_s,
        prefill_s=answer.timings.prefill_s,
        first_token_s=total if first is None else first,
        first_sound_s=speaker.timings.first_sound_s if speaker else None,
        total_s=total,
        sound_s=seconds,
        real_time_factor=total / seconds if seconds else None,
    )
    return Reply(answer, np.concatenate(kept) if kept else np.zeros(0, np.float32), rate, timings)
