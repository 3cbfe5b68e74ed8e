"""What the two towers give, computed once: pooled features of scenes and of picture files, and vectors of texts.

The heads read two numbers per feature of a picture, its mean and its maximum over the cells; of the 164 kB that the
store of scenes and the common feature cache hold of a picture, that is 5 kB. So what is pooled is kept beside them, in
files that are memory-mapped and named by all that determines them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sensorium import hub
from sensorium.errors import SensoriumError
from sensorium.training.data.formats.sample import MediaRef
from sensorium.training.features import CachedFeatures, EncoderPart, FeatureCache, digest

if TYPE_CHECKING:
    from sensorium.encoders.base import FeatureSpec, TextEncoder
    from sensorium.training.scene_store import SceneStore

VERSION = 1  # raise when pooling changes
Report = Callable[[int, int], None]
BROKEN = -6e4  # far below any feature: the row of a picture that cannot be read
MOST = 4096  # pictures whose features are asked of the cache at a time
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
    files: Sequence[Path], part: EncoderPart, spec: FeatureSpec, report: Report | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Pooled features of picture files, by way of the common feature cache, and which of them could be read.

    A set that is larger than the cache passes through it in parts.

    Args:
        files: in any order, with or without repetitions.
        part: the frozen encoder.
        spec: what it gives.
        report: called with (pictures done, all).

    Returns:
        float16 [N, 2 * dim] and bool [N].
    """
    media = [MediaRef(str(path), path) for path in files]
    keys = [_digest(medium) for medium in media]

    def fill(out: np.ndarray) -> None:
        out[:] = BROKEN
        with FeatureCache(part.space(spec)) as cache:
            features = CachedFeatures(cache, part)
            size = max(1, min(MOST, cache.limit // (4 * cache.space.bytes_of(cache.space.cells or 1))))
            for start in range(0, len(media), size):
                chunk = media[start : start + size]
                broken = cache.fill(chunk, part, report=_behind(report, start, len(media))).broken
                unread = {key for medium, key in zip(chunk, keys[start:]) if medium.name in broken}
                for at, medium in enumerate(chunk, start):
                    if keys[at] not in unread:
                        out[at] = pool(features([medium]))[0]

    name = hashlib.sha256(f"cached-{VERSION};{spec.fingerprint};{';'.join(keys)}".encode()).hexdigest()[:32]
    found = _kept(hub.cache_dir("features", "pictures") / f"{name}.npy", (len(files), 2 * spec.dim), fill)
    return found, ~(np.asarray(found[:, : spec.dim]) == BROKEN).all(axis=1)


def readable(files: Sequence[Path], report: Report | None = None) -> np.ndarray:
    """Which picture files can be decoded, bool [N]: for a tower that will see them in every step."""
    media = [MediaRef(str(path), path) for path in files]

    def fill(out: np.ndarray) -> None:
        for at, medium in enumerate(media):
            with suppress(SensoriumError):
                medium.load()
                out[at] = 1
            if report:
                report(at + 1, len(media))

    name = hashlib.sha256(f"readable-{VERSION};{';'.join(map(_digest, media))}".encode()).hexdigest()[:32]
    return _kept(hub.cache_dir("features", "pictures") / f"{name}.npy", (len(files), 1), fill)[:, 0] > 0


def _digest(medium: MediaRef) -> str:
    try:
        return digest(medium)
    except SensoriumError:
        return ""


def _behind(report: Report | None, start: int, total: int) -> Report | None:
    """A report of a part of the work as one of the whole."""
    return None if report is None else lambda done, _: report(start + done, total)


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
