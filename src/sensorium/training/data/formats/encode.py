"""Sample -> ids, labels and the places of its media, through the same `prompt.render` that inference uses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from sensorium.errors import SensoriumError
from sensorium.prompt import IGNORE, Tokens, render
from sensorium.training.data.formats.sample import MediaRef, Sample

Count = Callable[[Any], int] | int


class SampleError(SensoriumError):
    """A sample cannot be trained on; ``kind`` is "no answer", "empty answer" or "too long"."""

    def __init__(self, kind: str, sentence: str) -> None:
        super().__init__(sentence)
        self.kind = kind


@dataclass(frozen=True, eq=False)
class Encoded:
    """A sample as positions.

    Attributes:
        id: the sample's.
        ids: int64 [n], 0 where media stand.
        labels: int64 [n], `prompt.IGNORE` where nothing is learnt.
        places: (start, end) of each medium.
        media: what stands there.
    """

    id: str
    ids: np.ndarray
    labels: np.ndarray
    places: tuple[tuple[int, int], ...]
    media: tuple[MediaRef, ...]

    @property
    def length(self) -> int:
        """Positions in all."""
        return len(self.ids)


def encode(
    sample: Sample, tokenizer: Tokens, count: Count, *, template: str = "chatml", limit: int | None = None
) -> Encoded:
    """Lay a sample out. What stands behind its last target teaches nothing and is left off.

    Args:
        sample: the sample.
        tokenizer: the backbone's.
        count: tokens of a medium (`Composition.tokens`), a number or a function of the medium.
        template: a key of `prompt.TEMPLATES`.
        limit: positions that a sample may take; nothing is ever cut off to fit.

    Raises:
        SampleError: it has no answer, an empty one, or more positions than fit.
    """
    answers = sample.answers
    if not answers:
        raise SampleError(
            "no answer", f"The sample {sample.id!r} ({sample.where}) has no assistant turn to learn from."
        )
    empty = next((i for i, answer in enumerate(answers, 1) if not answer.strip()), None)
    if empty:
        raise SampleError("empty answer", f"Answer {empty} of the sample {sample.id!r} ({sample.where}) is empty.")
    rendered = render(sample.messages, tokenizer, count, template=template, generate=False)
    labels = np.array(rendered.labels(), np.int64)
    end = int(np.flatnonzero(labels != IGNORE)[-1]) + 1
    if limit is not None and end > limit:
        raise SampleError(
            "too long",
            f"The sample {sample.id!r} ({sample.where}) takes {end} tokens, of which {rendered.media_tokens} are its "
            f"{len(rendered.media)} pictures, and {limit} fit; shorten it, or make rows longer.",
        )
    places = tuple(place for place in rendered.media_positions() if place[1] <= end)
    return Encoded(
        sample.id, np.array(rendered.ids()[:end], np.int64), labels[:end], places, rendered.media[: len(places)]
    )
