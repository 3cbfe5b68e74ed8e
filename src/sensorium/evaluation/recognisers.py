"""Proof that no speech recogniser runs where a model is said to hear, or to speak, by itself."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from operator import attrgetter
from typing import Any

from sensorium.encoders.whisper import need
from sensorium.errors import SensoriumError

DECODERS = {
    ("ctranslate2", "models.Whisper"): ("generate", "align", "detect_language"),
    ("faster_whisper", "WhisperModel"): ("transcribe",),
}
"""Module and class -> what makes words of sound. CTranslate2's Whisper has one way in for features (`encode`) and these
three that decode; faster-whisper stands on it, and is watched itself because silence never reaches the decoder."""


@contextlib.contextmanager
def no_recogniser() -> Iterator[list[str]]:
    """Inside, each call of a decoder is noted, by any thread; what the cascade transcribes belongs outside.

    The classes are watched, not their instances, so it does not matter whether a model was opened before (as a live
    encoder's was), inside, or by whom.

    Yields:
        The calls so far, such as "Whisper.generate".

    Raises:
        SensoriumError: at the end, when there was one.
    """
    used: list[str] = []
    with contextlib.ExitStack() as stack:
        for (module, name), methods in DECODERS.items():
            try:
                owner = attrgetter(name)(need(module))
            except SensoriumError:  # not installed, so nobody can call it
                continue
            for method in methods:
                stack.enter_context(_noted(owner, method, used))
        yield used
    if used:
        calls = ", ".join(dict.fromkeys(used))
        raise SensoriumError(
            f"A speech recogniser ran where the model should do without one ({calls}); this is a bug, please report it."
        )


@contextlib.contextmanager
def _noted(owner: Any, method: str, used: list[str]) -> Iterator[None]:
    before = vars(owner)[method]  # as the class holds it: what `getattr` gives may be bound
    real = getattr(owner, method)

    @functools.wraps(real)
    def noting(*args: Any, **kwargs: Any) -> Any:
        used.append(f"{owner.__name__}.{method}")
        return real(*args, **kwargs)

    setattr(owner, method, noting)
    try:
        yield
    finally:
        setattr(owner, method, before)
