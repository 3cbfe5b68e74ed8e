"""What the two towers give, computed once: pooled features of scenes, and of texts.

The heads read two numbers per feature of a picture, its mean and its maximum over the cells; of the store's 164 kB a
scene that is 5 kB. Both files are memory-mapped and named by all that determines them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sensorium import hub
from sensorium.errors import SensoriumError

if TYPE_CHECKING:
    from sensorium.encoders.base import TextEncoder
    from sensorium.training.scene_store import SceneStore

VERSION = 1  # raise when pooling changes
Report = Callable[[int, int], None]
_CHUNK = 512


def pool(features: np.ndarray) -> np.ndarray:
    """[B, cells, dim] -> float32 [B, 2 * dim]: the mean and the maximum over the cells."""
    features = np.asarray(features, np.float32)
    return np.concatenate((features.mean(axis=1), features.max(axis=1)), axis=1)


def pooled_scenes(store: SceneStore, report: Report | None = None) -> np.ndarray:
    """The pooled features of every scene of a store, float16 [scenes, 2 * dim], kept beside it."""

    def fill(out: np.ndarray) -> None:
        row = 0
        for shard in store.features:  # one shard at a time: a page of the disk is read once
            out[row : row + len(shard)] = pool(shard)
            row += len(shard)
            if report:
                report(row, len(store))

    dim = store.features[0].shape[-1]
    return _kept(store.directory / f"pooled-{len(store)}-{VERSION}.npy", (len(store), 2 * dim), fill)


def encode_pictures(
    files: Sequence[tuple[Path, str]], encoder: Any, report: Report | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Pooled features of picture files, and which of them could be read.

    Args:
        files: path and digest (of its bytes) of each.
        encoder: an image encoder.

    Returns:
        float16 [N, 2 * dim] and bool [N].
    """
    from sensorium.media import load_image

    dim = encoder.spec.dim
    broken = hub.cache_dir("features", "pictures") / "none"
    good = np.ones(len(files), bool)

    def fill(out: np.ndarray) -> None:
        for at, (path, _) in enumerate(files):
            try:
                out[at] = pool(encoder.encode([load_image(path).pixels]))[0]
            except SensoriumError:
                out[at] = -1.0  # features are never negative, so this stands for a broken picture
            if report:
                report(at + 1, len(files))

    names = "\n".join(digest for _, digest in files)
    name = hashlib.sha256(f"{VERSION};{encoder.spec.fingerprint};{names}".encode()).hexdigest()[:32]
    found = _kept(broken.with_name(f"{name}.npy"), (len(files), 2 * dim), fill)
    good[:] = ~(np.asarray(found[:, :dim]) == -1.0).all(axis=1) if len(files) else good
    return found, good


def encode_texts(texts: Sequence[str], encoder: TextEncoder, report: Report | None = None) -> np.ndarray:
    """The sentence encoder's vectors of texts, float16 [N, dim], kept in the cache."""

    def fill(out: np.ndarray) -> None:
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # texts of one length share a batch
        for start in range(0, len(texts), _CHUNK):
            places = order[start : start + _CHUNK]
            out[places] = encoder.encode_text([texts[i] for i in places])
            if report:
                report(min(start + _CHUNK, len(texts)), len(texts))

    digest = hashlib.sha256(encoder.spec.fingerprint.encode())
    for text in texts:
        digest.update(hashlib.sha256(text.encode("utf-8", "replace")).digest())
    path = hub.cache_dir("features", "texts") / f"{digest.hexdigest()[:32]}.npy"
    return _kept(path, (len(texts), encoder.spec.dim), fill)


def _kept(path: Path, shape: tuple[int, int], fill: Callable[[np.ndarray], None]) -> np.ndarray:
    """The array of a file; made first where there is none, or one of another shape. Safe among processes."""
    with hub.file_lock(path):
        try:
            found = np.load(path, mmap_mode="r", allow_pickle=False)
            if found.shape == shape and found.dtype == np.float16:
                return found
        except (OSError, ValueError, EOFError):
            pass
        made = np.zeros(shape, np.float16)
        fill(made)
        with hub.atomic_write(path) as file:
            np.save(file, made)
        return made
