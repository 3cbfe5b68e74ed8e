"""The frozen encoder's features of composite scenes, computed once and memory-mapped.

A store is a directory of shards: ``00000.npy`` (float16 [scenes, cells, dim]) and ``00000.json`` (the scenes' labels).
Its name is a digest of all that determines its content: catalogue, encoder fingerprint, scene seed and mix, but not how
many scenes there are: a larger plan adds shards. A last shard that is not whole has its count in its name
(``00001-40.npy``). Shards are written under a temporary name and renamed, so an interrupted build goes on where it
stopped.

Scenes are not media: they have no bytes to be addressed by, only a plan and an index, and they carry labels. So they
keep files of their own beside the feature cache (`features`), with which they share the engines and the upkeep.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sensorium import hub
from sensorium.errors import SensoriumError
from sensorium.training import engines
from sensorium.training.feature_shard import used
from sensorium.training.feature_upkeep import Lease

if TYPE_CHECKING:
    from sensorium.training.data.scenes import Pool, Scene

SHARD = 250  # scenes a file: 40 MB at 64 cells of 1280
VERSION = 3  # raise when the drawing of scenes changes


@dataclass(frozen=True)
class StorePlan:
    """What a store holds.

    Attributes:
        catalogue: the catalogue file; only its rows with split "train" are drawn.
        scenes, seed, mix: how many scenes, from which seed, of which kinds.
        encoder_kind, encoder_weights, encoder_options, fingerprint: the frozen encoder.
        shard: scenes a file.
    """

    catalogue: Path
    scenes: int
    seed: int
    mix: dict[str, float]
    encoder_kind: str
    encoder_weights: Path
    encoder_options: dict[str, Any]
    fingerprint: str
    shard: int = SHARD

    def directory(self) -> Path:
        """Where the store stands in the user's cache."""
        digest = hashlib.sha256(self.catalogue.read_bytes())
        digest.update(json.dumps([VERSION, self.shard, self.seed, sorted(self.mix.items()), self.fingerprint]).encode())
        return hub.cache_dir("features", digest.hexdigest()[:24])


def _shards(scenes: int, size: int) -> Iterator[tuple[int, int]]:
    """(index, scenes) of every shard."""
    for index in range(-(-scenes // size)):
        yield index, min(size, scenes - index * size)


def _features_file(directory: Path, index: int, count: int, size: int) -> Path:
    """The file with the first ``count`` scenes of a shard: a whole shard serves a smaller plan too."""
    whole = directory / f"{index:05d}.npy"
    return whole if count == size or whole.is_file() else directory / f"{index:05d}-{count}.npy"


def pool_of(plan: StorePlan) -> Pool:
    """What a plan's scenes are drawn from."""
    from sensorium.training.data.scenes import Pool, load_items

    return Pool([item for item in load_items(plan.catalogue) if item.split == "train"])


def draw(plan: StorePlan, pool: Pool, index: int) -> Scene:
    """The scene of a plan that the store holds the features of at ``index``."""
    from sensorium.training.data.scenes import compose

    return compose(pool, (plan.seed << 32) + index, plan.mix or None)


def _build_shard(task: tuple[StorePlan, Path, int, int]) -> int:
    """Draw and encode one shard: of a plan, in a directory, its index and scenes; runs in a worker with one thread."""
    from sensorium import encoders

    global _worker
    plan, directory, index, count = task
    key = (plan.catalogue, plan.fingerprint)
    if _worker is None or _worker[0] != key:
        pool = pool_of(plan)
        encoder = encoders.create(plan.encoder_kind, plan.encoder_weights, threads=1, **plan.encoder_options)
        _worker = (key, pool, encoder)
    _, pool, encoder = _worker
    first = index * plan.shard
    scenes = [draw(plan, pool, first + i) for i in range(count)]
    features = encoder.encode([scene.pixels for scene in scenes]).astype(np.float16)
    target = _features_file(directory, index, count, plan.shard)
    with hub.atomic_write(target.with_suffix(".json"), "w") as text:
        json.dump([scene.labels() for scene in scenes], text)
    with hub.atomic_write(target) as file:  # last, so that features never lack their labels
        np.save(file, features)
    return count


_worker: Any = None


def build(
    plan: StorePlan,
    workers: int | None = None,
    report: Callable[[int, int], None] | None = None,
    engine: str = "local",
) -> Path:
    """Compute what is missing of a store and return its directory.

    Args:
        plan: what it holds.
        workers, engine: where, see `engines.spread`.
        report: called with (scenes done, scenes in all).
    """
    directory = plan.directory()
    directory.mkdir(parents=True, exist_ok=True)
    shards = _shards(plan.scenes, plan.shard)
    missing = [(i, n) for i, n in shards if not _features_file(directory, i, n, plan.shard).is_file()]
    done = plan.scenes - sum(count for _, count in missing)
    if report:
        report(done, plan.scenes)
    if not missing:
        return directory
    tasks = ((plan, directory, index, count) for index, count in missing)
    for count in engines.spread(_build_shard, tasks, engine=engine, workers=workers):
        done += count
        if report:
            report(done, plan.scenes)
    return directory


class SceneStore:
    """Random access to the first ``scenes`` of a built store: ``store[i]`` -> (features float16 [cells, dim], labels).

    Raises:
        SensoriumError: a shard is missing or damaged.
    """

    def __init__(self, directory: Path, scenes: int, shard: int = SHARD) -> None:
        self.features: list[np.ndarray] = []
        self.labels: list[list[dict[str, Any]]] = []
        for index, count in _shards(scenes, shard):
            path = _features_file(directory, index, count, shard)
            try:
                features = np.load(path, mmap_mode="r")
                labels = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
                if features.ndim != 3 or not count <= len(features) == len(labels):
                    raise ValueError(f"{len(features)} scenes, {len(labels)} labels")
            except (OSError, ValueError, EOFError) as error:
                raise SensoriumError(
                    f"The features {path} cannot be read ({error}); delete the file and run again."
                ) from None
            self.features.append(features[:count])
            self.labels.append(labels[:count])
        self.directory, self.length, self.shard = directory, scenes, shard
        with contextlib.suppress(SensoriumError):  # a cache of someone else's
            self._lease = Lease(directory.parent)  # so that no other process makes room by removing it
            self._lease.add([directory])
        used(directory)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[np.ndarray, dict[str, Any]]:
        if not 0 <= index < self.length:
            raise IndexError(index)
        shard, row = divmod(index, self.shard)
        return self.features[shard][row], self.labels[shard][row]

    def cells(self, count: int) -> np.ndarray:
        """About ``count`` feature vectors spread over the store: [n, dim]."""
        step = max(1, len(self) * 9 // count)
        return np.concatenate([np.asarray(self[i][0][::7], np.float32) for i in range(0, len(self), step)])
