"""Probabilities of labels for a picture, read from the LLM itself.

The score of a label is the mean log-probability per token that the LLM gives it as the answer, minus the same with a
picture that shows nothing (plain grey): the pointwise mutual information of picture and label (Holtzman et al. 2021,
"Surface form competition", arXiv 2104.08315). Without this correction frequent words win whatever the picture shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sensorium.errors import UsageError
from sensorium.media import Image, load_image
from sensorium.messages import Message

if TYPE_CHECKING:
    from sensorium.model import Model

PROMPT = "What is in this picture?"
TEMPERATURE = 1.0
"""Divides the scores before the softmax."""


def check_labels(labels: Sequence[str]) -> list[str]:
    """The labels, stripped. Raises UsageError for fewer than two, an empty one or one that stands twice."""
    cleaned = [label.strip() for label in labels]
    if len(cleaned) < 2:
        raise UsageError(
            f"{len(cleaned)} label{'s were' if not cleaned else ' was'} given; give at least two to choose between."
        )
    if not all(cleaned):
        raise UsageError("a label is empty; write what it stands for.")
    if len(set(cleaned)) < len(cleaned):
        twice = next(label for label in cleaned if cleaned.count(label) > 1)
        raise UsageError(f"the label {twice!r} was given twice; give it once.")
    return cleaned


def classify(model: Model, image: Any, labels: Sequence[str], *, prompt: str | None = None) -> list[tuple[str, float]]:
    """Probabilities of `labels` for one picture.

    Args:
        model: the composed model.
        image: anything `load_image` takes.
        labels: at least two different texts.
        prompt: the question that the labels answer.

    Returns:
        (label, probability), highest first; the probabilities sum to 1.

    Raises:
        UsageError: the labels are too few, empty or repeated.
        SensoriumError: the picture cannot be read.
    """
    cleaned = check_labels(labels)
    picture = load_image(image)
    seen = _scores(model, picture, cleaned, prompt or PROMPT)
    blind = _scores(model, neutral(), cleaned, prompt or PROMPT)
    scores = (seen - blind) / TEMPERATURE
    probabilities = np.exp(scores - scores.max())
    probabilities /= probabilities.sum()
    order = np.argsort(-probabilities, kind="stable")
    return [(cleaned[i], float(probabilities[i])) for i in order]


def neutral() -> Image:
    """A picture that shows nothing: mid-grey."""
    return load_image(np.full((64, 64, 3), 127, np.uint8))


def _scores(model: Model, picture: Image, labels: list[str], prompt: str) -> np.ndarray:
    logprobs, tokens = model.score([Message("user", [picture, prompt])], labels)
    return logprobs / np.maximum(tokens, 1)
