"""Probabilities of labels for a picture from a two-tower model: likeness of the picture and of what a label says.

Each label is put into several sentences (the seven of the CLIP paper's "simple" set, as open_clip lists them, with the
label's article where it takes one); their vectors are averaged and made length 1 again. The temperature of the softmax
comes with the model: it was fitted on photographs that are used for nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sensorium.errors import UsageError
from sensorium.media import load_image
from sensorium.tasks.classify import as_answer, check_labels

if TYPE_CHECKING:
    from sensorium.two_tower import TwoTower

TEMPLATES = (
    "{}",
    "a photo of {}",
    "a picture of {}",
    "an image of {}",
    "a photo of a large {bare}",
    "a photo of a small {bare}",
    "art of {}",
)


def classify_clip(
    model: TwoTower,
    image: Any,
    labels: Iterable[str],
    *,
    templates: Sequence[str] = TEMPLATES,
    temperature: float | None = None,
) -> list[tuple[str, float]]:
    """Probabilities of `labels` for one picture, given that one of them is right.

    Args:
        model: the two-tower model.
        image: anything `load_image` takes.
        labels: at least two different texts.
        templates: sentences with `{}` for the label with its article, or `{bare}` for the label alone.
        temperature: divides the cosines; the model's own by default.

    Returns:
        (label, probability), highest first; the probabilities sum to 1.

    Raises:
        UsageError: the labels, the templates or the temperature are no such.
        SensoriumError: the picture cannot be read.
    """
    return classifier(model, labels, templates=templates, temperature=temperature)(load_image(image))


def classifier(
    model: TwoTower,
    labels: Iterable[str],
    *,
    templates: Sequence[str] = TEMPLATES,
    temperature: float | None = None,
) -> Callable[[Any], list[tuple[str, float]]]:
    """`classify_clip` for many pictures: the labels are encoded once, now."""
    cleaned = check_labels(labels)
    classes = label_vectors(model, cleaned, templates)

    def of(image: Any) -> list[tuple[str, float]]:
        shares = probabilities_of(model, classes @ model.embed(image), temperature)
        return [(cleaned[i], float(shares[i])) for i in np.argsort(-shares, kind="stable")]

    return of


def label_vectors(model: TwoTower, labels: Sequence[str], templates: Sequence[str] = TEMPLATES) -> np.ndarray:
    """One vector a label, the normalised mean over the templates: float32 [labels, dim]."""
    if isinstance(templates, str) or not templates or not all(isinstance(t, str) for t in templates):
        raise UsageError("the templates are no list of texts; give at least one, such as 'a photo of {}'.")
    texts = [_filled(template, label) for label in labels for template in templates]
    vectors = model.embed_texts(texts).reshape(len(labels), len(templates), -1).mean(axis=1)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def probabilities_of(model: TwoTower, cosines: np.ndarray, temperature: float | None = None) -> np.ndarray:
    """Softmax of cosines [labels] over the temperature."""
    divisor = model.spec.temperature if temperature is None else temperature
    if not isinstance(divisor, (int, float)) or not 0 < divisor < float("inf"):
        raise UsageError(f"the temperature is {divisor!r}; give a number above 0.")
    scores = np.asarray(cosines, np.float64) / divisor
    shares = np.exp(scores - scores.max())
    return shares / shares.sum()


def _filled(template: str, label: str) -> str:
    said = as_answer(label).rstrip(".")  # "An apple"; the text tower does not tell capitals
    bare = label.split(" ", 1)[1] if label.lower().startswith(("a ", "an ", "the ", "some ")) else label
    return template.replace("{bare}", bare).replace("{}", said)
