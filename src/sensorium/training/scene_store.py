"""The frozen encoder's features of composite scenes, computed once and memory-mapped.

A store is a directory of shards: ``00000.npy`` (float16 [scenes, cells, dim]) and ``00000.json`` (the scenes' labels). Its
name is a digest of all that determines its content: catalogue, encoder fingerprint, scene seed and mix. Shards are written
under a temporary name and renamed, so an interrupted build goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sensorium import hub

SHARD = 250  # scenes a file: 40 MB at 64 cells of 1280
VERSION = 1  # raise when the drawing of scenes changes


@dataclass(frozen=True)
class StorePlan:
    """What a store holds.

    Attributes:
        catalogue: the catalogue file; only its rows with split "train" are drawn.
        scenes, seed, mix: how many scenes, from which seed, of which kinds.
        encoder_kind, encoder_weights, encoder_options, fingerprint: the frozen encoder.
    """

    catalogue: Path
    scenes: int
    seed: int
    mix: dict[str, float]
    encoder_kind: str
    encoder_weights: Path
    encoder_options: dict[str, Any]
    fingerprint: str

    def directory(self) -> Path:
        """Where the store stands in the user's cache."""
        digest = hashlib.sha256(self.catalogue.read_bytes())
        digest.update(json.dumps([VERSION, SHARD, self.seed, sorted(self.mix.items()), self.fingerprint]).encode())
        return hub.cache_dir("features", digest.hexdigest()[:24])


def _build_shard(plan: StorePlan, directory: Path, index: int) -> int:
    """Draw and encode one shard; runs in a worker process with one thread."""
    from sensorium import encoders
    from sensorium.training.data.scenes import Pool, compose, load_items

    global _worker
    key = (plan.catalogue, plan.fingerprint)
    if _worker is None or _worker[0] != key:
        pool = Pool([item for item in load_items(plan.catalogue) if item.split == "train"])
        encoder = encoders.create(plan.encoder_kind, plan.encoder_weights, threads=1, **plan.encoder_options)
        _worker = (key, pool, encoder)
    _, pool, encoder = _worker
    first = index * SHARD
    count = min(SHARD, plan.scenes - first)
    scenes = [compose(pool, (plan.seed << 32) + first + i, plan.mix or None) for i in range(count)]
    features = encoder.encode([scene.pixels for scene in scenes]).astype(np.float16)
    target = directory / f"{index:05d}"
    with hub.atomic_write(target.with_suffix(".json")) as temporary:
        Path(temporary).write_text(json.dumps([scene.labels() for scene in scenes]), encoding="utf-8")
    with hub.atomic_write(target.with_suffix(".npy")) as temporary, Path(temporary).open("wb") as file:
        np.save(file, features)
    return count


_worker: Any = None


def build(plan: StorePlan, workers: int | None = None, report: Callable[[int, int], None] | None = None) -> Path:
    """Compute what is missing of a store and return its directory.

    Args:
        plan: what it holds.
        workers: processes; one per core by default.
        report: called with (scenes done, scenes in all).
    """
    directory = plan.directory()
    directory.mkdir(parents=True, exist_ok=True)
    shards = range(-(-plan.scenes // SHARD))
    missing = [i for i in shards if not (directory / f"{i:05d}.npy").is_file()]
    done = plan.scenes - sum(min(SHARD, plan.scenes - i * SHARD) for i in missing)
    if report:
        report(done, plan.scenes)
    if missing:
        with ProcessPoolExecutor(workers or len(os.sched_getaffinity(0))) as pool:
            for future in as_completed([pool.submit(_build_shard, plan, directory, i) for i in missing]):
                done += future.result()
                if report:
                    report(done, plan.scenes)
    return directory


class SceneStore:
    """Random access to a built store: ``store[i]`` -> (features float16 [cells, dim], labels)."""

    def __init__(self, directory: Path, scenes: int) -> None:
        self.features: list[np.ndarray] = []
        self.labels: list[list[dict[str, Any]]] = []
        for index in range(-(-scenes // SHARD)):
            path = directory / f"{index:05d}.npy"
            self.features.append(np.load(path, mmap_mode="r"))
            self.labels.append(json.loads(path.with_suffix(".json").read_text(encoding="utf-8")))
        self.length = sum(len(part) for part in self.labels)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[np.ndarray, dict[str, Any]]:
        shard, row = divmod(index, SHARD)
        return self.features[shard][row], self.labels[shard][row]

    def cells(self, count: int) -> np.ndarray:
        """About ``count`` feature vectors spread over the store: [n, dim]."""
        step = max(1, len(self) * 9 // count)
        return np.concatenate([np.asarray(self[i][0][::7], np.float32) for i in range(0, len(self), step)])
