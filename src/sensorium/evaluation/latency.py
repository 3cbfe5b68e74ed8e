"""From the end of a spoken question to the first sound of the answer: how long, and where the time goes.

The direct way takes the sound's features into the LLM and the LLM's hidden states into units of speech. The cascade
transcribes the question, gives the LLM the text, and says the answer's text a sentence at a time. Both run on the same
parts in the same process, warm, and end at their first sound.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from sensorium.messages import Message

if TYPE_CHECKING:
    from sensorium.model import Model

STAGES = ("transcribe", "encode", "prefill", "tokens", "units", "generator")
"""Recogniser (of the cascade); encoder and input projector (of the direct way); the prompt; the tokens that must be
there before anything is said; output projector or text front-end; units to sound."""
WHOLE = "first sound"
LONGEST = 64  # tokens; the cascade waits for a sentence's end


def first_sound(
    model: Model, sound: np.ndarray, *, transcribe: Callable[[np.ndarray], str] | None = None
) -> dict[str, float]:
    """Seconds of each stage, and of all in `WHOLE`.

    Args:
        model: warm, with speech projectors in and out.
        sound: the question, float32 [samples] at 16 kHz, all there; not asked before, since models remember.
        transcribe: the cascade's recogniser; None takes the direct way.
    """
    from sensorium.media import load_audio

    enough, heard = threading.Event(), []

    def sink(samples: np.ndarray) -> None:
        heard.append(time.perf_counter())
        enough.set()

    spent = dict.fromkeys(STAGES, 0.0)
    began = time.perf_counter()
    content: Any = load_audio(sound, array_rate=16_000)
    if transcribe is not None:
        content = transcribe(sound) or "..."
        spent["transcribe"] = time.perf_counter() - began
    speaker = model.speaker(sink, cascade=transcribe is not None)
    answer = model.chat([Message("user", [content])], speaker=speaker, cancel=enough, max_tokens=LONGEST)
    if not heard:
        raise ValueError("the answer says nothing; ask something else")
    whole = heard[0] - began
    spent["encode"] = answer.timings.encode_s
    spent["prefill"] = answer.timings.prefill_s
    spent["units"], spent["generator"] = speaker.timings.before_sound
    spent["tokens"] = whole - sum(spent.values())
    return {**spent, WHOLE: whole}
