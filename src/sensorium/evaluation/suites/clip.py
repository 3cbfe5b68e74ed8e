"""The two-tower suite: retrieval both ways over pictures that training never showed, and zero-shot classification.

Retrieval runs over single pictures of the catalogue's test half (a drawing style and a tenth of all nouns were held
out), one a noun, so that each text is right for one picture. Beside the model stand chance and the same towers with
random heads: what the frozen parts alone give.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sensorium.errors import SensoriumError
from sensorium.evaluation import intervals
from sensorium.evaluation.scenes import encoder_knows
from sensorium.evaluation.scorecard import Row, Scorecard

if TYPE_CHECKING:
    from collections.abc import Callable

    from sensorium.training.data.scenes import Item
    from sensorium.two_tower import TwoTower

PICTURES = 500
SIDE = 320
RETRIEVAL, UNSEEN, PHOTOS = "retrieval, unseen pictures", "retrieval, unseen nouns", "zero-shot, photographs"
STRANGE = "retrieval, unseen nouns that no class of the image encoder is called"
TEXT = "a picture of {}"


@dataclass(frozen=True)
class Retrieval:
    """Pictures, their texts and the nouns in them: what is examined, [n] each.

    ``new`` says whose noun training never showed or named; the others are of a style that it never showed.
    """

    images: list[np.ndarray]
    texts: list[str]
    new: np.ndarray
    nouns: list[str]


def evaluate_clip(
    model: TwoTower,
    *,
    catalogue: Path | None = None,
    pictures: int = PICTURES,
    split: Literal["dev", "test"] = "test",
    with_scenes: bool = True,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Scorecard:
    """The suite of one two-tower model.

    Args:
        model: what is examined.
        catalogue: named pictures with their split; None takes the one that training uses.
        pictures: over how many pictures to retrieve, at most.
        split: photographs of the development or the test half.
        with_scenes: False leaves retrieval out and fetches no training pictures.
        seed: of the choice of pictures and of the random heads.
        progress: called with (encoded, all).
    """
    notes: list[str] = []
    started = time.perf_counter()
    made: list[Row] = []
    if with_scenes:
        material = retrieval(catalogue_path(catalogue), pictures, seed)
        notes.append(f"Digest of the pictures and texts of the retrieval: {digest(material)}.")
        made += retrieval_rows(model, material, seed, progress)
    made += photo_rows(model, split, seed, notes)
    if not made:
        raise SensoriumError("No picture of the clip suite can be had here; see the notes above and try again online.")
    facts = {"split": split, "seconds": round(time.perf_counter() - started, 1), "date": time.strftime("%Y-%m-%d")}
    return Scorecard("clip", model.name, made, facts, notes)


def catalogue_path(given: Path | None) -> Path:
    """The catalogue of one's own, or the one that training uses."""
    from sensorium.training.data.catalogue import registry_catalogue

    return given or registry_catalogue(note="Retrieval over unseen pictures needs it; --no-scenes leaves it out.")


def retrieval(catalogue: Path, pictures: int, seed: int = 0) -> Retrieval:
    """Draw pictures of the test half, one a noun, on white, with the text that names each; unseen nouns first."""
    from sensorium.training.data.questions import indefinite
    from sensorium.training.data.scenes import load_items

    rows = load_items(catalogue)
    shown = {word for row in rows if row.split == "train" for word in (row.name, *row.also)}
    test = [row for row in rows if row.split == "test" and row.kind != "background" and row.name != "background"]
    by_name: dict[str, list[Item]] = {}
    for row in test:
        by_name.setdefault(row.name, []).append(row)
    rng = np.random.default_rng([seed, 0xC119])
    names = sorted(by_name)
    rng.shuffle(names)
    names.sort(key=lambda name: name in shown)
    chosen = [by_name[name][int(rng.integers(len(by_name[name])))] for name in names[:pictures]]
    if len(chosen) < 2:
        raise SensoriumError(f"The catalogue {catalogue} has {len(chosen)} pictures in its test half; give another.")
    texts = [
        indefinite(f"{row.attributes['color']} {row.name}" if row.attributes.get("color") else row.name)
        for row in chosen
    ]
    new = np.array([row.name not in shown for row in chosen])
    return Retrieval(
        [_on_white(row) for row in chosen], [TEXT.format(text) for text in texts], new, [row.name for row in chosen]
    )


def _on_white(item: Item) -> np.ndarray:
    """The picture, whole, on a white square with a margin."""
    from PIL import Image

    from sensorium.training.data.scenes import open_cutout

    picture = open_cutout(item)
    canvas = Image.new("RGB", (SIDE, SIDE), (255, 255, 255))
    scale = 0.85 * SIDE / max(picture.size)
    picture = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))
    canvas.paste(picture, ((SIDE - picture.width) // 2, (SIDE - picture.height) // 2), picture.getchannel("A"))
    return np.asarray(canvas)


def retrieval_rows(
    model: TwoTower, material: Retrieval, seed: int = 0, progress: Callable[[int, int], None] | None = None
) -> list[Row]:
    """R@1 and R@5 both ways: over all pictures, over those of unseen nouns, and of those over the encoder's too."""
    images = material.images
    features = np.concatenate([_encode(model, image, at, len(images), progress) for at, image in enumerate(images)])
    vectors = model.text_encoder.get().encode_text(material.texts)
    columns = {
        "model": (model.project_images(features), model.project_texts(vectors)),
        "random heads": random_heads(features, vectors, seed),
    }
    made = []
    strange = material.new & ~np.array([encoder_knows(noun) for noun in material.nouns])
    for section, chosen in ((RETRIEVAL, np.ones(len(strange), bool)), (UNSEEN, material.new), (STRANGE, strange)):
        n = int(chosen.sum())
        if n < 6:  # too few for R@5 to say anything
            continue
        cosines = {name: one[chosen] @ other[chosen].T for name, (one, other) in columns.items()}
        for direction, turned in (("picture to text", False), ("text to picture", True)):
            for k in (1, 5):
                scores = {
                    name: intervals.rate(hits(matrix.T if turned else matrix, k)) for name, matrix in cosines.items()
                }
                made.append(Row(section, f"{direction}, R@{k} of {n}", min(1.0, k / n), None, scores, None, None))
    return made


def hits(cosines: np.ndarray, k: int) -> np.ndarray:
    """For each row of [n, n], whether its own column is among the ``k`` highest; what ties with it counts before it."""
    own = cosines.diagonal()[:, None]
    return np.asarray((cosines >= own).sum(axis=1) <= k)


def random_heads(features: np.ndarray, vectors: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Both towers' features through random linear heads, normalised: what training had to improve on."""
    rng = np.random.default_rng([seed, 0x4EAD])
    made = []
    for rows in (features.mean(axis=1), vectors):
        rows = (rows - rows.mean(axis=0)) @ rng.normal(size=(rows.shape[1], 384)).astype(np.float32)
        made.append(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12))
    return made[0], made[1]


def photo_rows(model: TwoTower, split: Literal["dev", "test"], seed: int, notes: list[str]) -> list[Row]:
    """Zero-shot classification of the labelled photographs: which of all their main nouns is shown?"""
    from sensorium.evaluation import photos
    from sensorium.media import load_image
    from sensorium.tasks.clip import label_vectors

    wanted = photos.photos(split)
    files = photos.fetch_photos(wanted, missing=notes.append)
    here = [photo for photo in wanted if photo.id in files and photo.nouns]
    if len(here) < 2:
        return []
    labels = sorted({photo.nouns[0] for photo in here})
    classes = label_vectors(model, labels)
    features = np.concatenate([_encode(model, load_image(files[photo.id]).pixels) for photo in here])
    images = model.project_images(features)
    plain = random_heads(features, model.text_encoder.get().encode_text(labels), seed)
    right = right_labels(here, labels)
    return [
        Row(
            PHOTOS,
            f"main thing, top {k} of {len(labels)}",
            chance(right, k),
            None,
            {
                "model": intervals.rate(_top(images @ classes.T, right, k)),
                "random heads": intervals.rate(_top(plain[0] @ plain[1].T, right, k)),
            },
            None,
            None,
        )
        for k in (1, 5)
    ]


def right_labels(chosen: Sequence[Any], labels: Sequence[str]) -> np.ndarray:
    """bool [photographs, labels]: whether a label names something that the photograph certainly shows."""
    return np.array([[label in photo.nouns or label in photo.present for label in labels] for photo in chosen])


def chance(right: np.ndarray, k: int) -> float:
    """How often ``k`` labels drawn at random hold a right one, averaged over the rows of ``right``."""
    n = right.shape[1]
    k = min(k, n)
    return float(np.mean([1 - math.comb(n - int(row.sum()), k) / math.comb(n, k) for row in right]))


def _top(scores: np.ndarray, right: np.ndarray, k: int) -> np.ndarray:
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.asarray(np.take_along_axis(right, best, axis=1).any(axis=1))


def fit_temperature(model: TwoTower, split: Literal["dev", "test"] = "dev") -> float:
    """The temperature that makes the true labels of the development photographs most probable, to two digits."""
    from sensorium.evaluation import photos
    from sensorium.media import load_image
    from sensorium.tasks.clip import label_vectors

    wanted = photos.photos(split)
    files = photos.fetch_photos(wanted)
    here = [photo for photo in wanted if photo.id in files and photo.nouns]
    labels = sorted({photo.nouns[0] for photo in here})
    images = np.stack([model.embed(load_image(files[photo.id])) for photo in here])
    cosines = (images @ label_vectors(model, labels).T).astype(np.float64)
    right = right_labels(here, labels)
    best = min(np.geomspace(0.005, 0.5, 60), key=lambda t: _loss(cosines / t, right))
    return float(f"{best:.2g}")


def _loss(scores: np.ndarray, right: np.ndarray) -> float:
    shares = np.exp(scores - scores.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    return float(-np.log(np.maximum((shares * right).sum(axis=1), 1e-12)).mean())


def _encode(
    model: TwoTower, image: np.ndarray, at: int = 0, total: int = 0, progress: Callable[[int, int], None] | None = None
) -> np.ndarray:
    features = model.image_encoder.get().encode([image])
    if progress:
        progress(at + 1, total)
    return features


def digest(material: Retrieval) -> str:
    """Of the pictures and their texts: two scorecards with the same digest can be compared."""
    made = hashlib.sha256()
    for image, text in zip(material.images, material.texts):
        made.update(image.tobytes() + text.encode())
    return made.hexdigest()[:16]
