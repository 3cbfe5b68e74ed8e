"""Filling the feature cache: media are hashed, claimed by the shard, encoded by workers, and nothing is done twice."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from sensorium import hub
from sensorium.errors import SensoriumError
from sensorium.training import engines
from sensorium.training import feature_upkeep as upkeep
from sensorium.training.feature_shard import Row, Space, shard_name, write_shard
from sensorium.training.features import EncoderPart, FeatureCache, Filled, Medium, digest

CLAIMS = "claims"
_POLL_S = 0.2


@dataclass(frozen=True)
class ShardTask:
    """One shard to be made: the medium of each key, by which encoder, where."""

    space: Space
    directory: Path
    part: EncoderPart
    media: Mapping[str, Medium]


@dataclass(frozen=True)
class ShardDone:
    """A shard that was made, or tried: the task's keys, and the reason for each that could not be encoded."""

    keys: tuple[str, ...]
    broken: Mapping[str, str]


def fill(
    cache: FeatureCache,
    media: Sequence[Medium],
    part: EncoderPart,
    workers: int | None = None,
    report: Callable[[int, int], None] | None = None,
    engine: str = "local",
) -> Filled:
    """Encode what a cache lacks. An interrupted call loses the shards being written, and the next one goes on.

    The shards that one call writes are the same, byte for byte, for any number of workers and any engine: media are
    divided in the order in which they are given. Several processes that fill one cache share the work.

    Args:
        cache: where the features go.
        media: in any order, with or without repetitions.
        part: the encoder; its fingerprint must be the cache's.
        workers: see `engines.spread`.
        report: called with (media done, media in all).
        engine: "local" or "ray".

    Raises:
        SensoriumError: the features would not fit the bound of the cache, the encoder is another one, a worker died,
            the disk is full.
    """
    engines.check(engine)
    upkeep.remove_stale(cache.root)
    wanted, unreadable = _hashed(media)
    _check_size(cache, len(wanted))
    cache.refresh()
    cache.lease(cache.shards_of(map(bytes.fromhex, wanted)))
    encoded, done, total = 0, sum(key in cache for key in wanted) + len(unreadable), len(wanted) + len(unreadable)
    if report:
        report(done, total)
    claims, broken = _Claims(cache, wanted, part), dict[str, str]()
    try:
        while claims.left:
            tasks = claims.tasks()
            first = next(tasks, None)
            if first is None and claims.left:  # others are at the rest; should they die, it is ours
                time.sleep(_POLL_S)
            if first is None:
                continue
            for made in engines.spread(make_shard, chain([first], tasks), engine=engine, workers=workers):
                cache.refresh()
                cache.lease(cache.shards_of(map(bytes.fromhex, made.keys)))
                claims.release(made.keys)
                upkeep.evict(cache.root, cache.limit)
                broken |= {wanted[key].name: reason for key, reason in made.broken.items()}
                encoded += len(made.keys) - len(made.broken)
                done += len(made.keys)
                if report:
                    report(done, total)
    finally:
        claims.close()
    if report and done < total:  # others did the rest
        report(total, total)
    return Filled(encoded, len(wanted) - encoded - len(broken), {**unreadable, **broken})


def make_shard(task: ShardTask) -> ShardDone:
    """Encode the media of a task, one at a time, and write their shard; runs in a worker with one thread."""
    encoder = _encoder(task.part, task.space)
    rows: dict[bytes, Row] = {}
    broken: dict[str, str] = {}
    for key, medium in task.media.items():
        try:
            picture = medium.load()
            if picture.sha256 != key:
                raise SensoriumError(f"{medium.name} changed while it was read.")
        except SensoriumError as error:
            broken[key] = str(error)
            continue
        rows[bytes.fromhex(key)] = task.space.pack(encoder.encode([picture.pixels])[0])
    if rows:
        keys = list(rows)
        write_shard(task.directory / shard_name(keys), task.space, keys, list(rows.values()))
    return ShardDone(tuple(task.media), broken)


_created: tuple[Any, Any] | None = None  # of this process: the part it was created from, and the encoder


def _encoder(part: EncoderPart, space: Space) -> Any:
    global _created
    key = (part.kind, part.weights, repr(part.options), space.encoder)
    if _created is None or _created[0] != key:
        encoder = part.create()
        if encoder.spec.fingerprint != space.encoder:
            raise SensoriumError(
                f"The encoder of {part.weights} has the fingerprint {encoder.spec.fingerprint[:12]} here and not "
                f"{space.encoder[:12]}; every machine must see the same weights."
            )
        _created = (key, encoder)
    return _created[1]


class _Claims:
    """Which media this process computes, told to the others that fill the same cache."""

    def __init__(self, cache: FeatureCache, wanted: Mapping[str, Medium], part: EncoderPart) -> None:
        self.left = deque(key for key in wanted if key not in cache)
        self._cache, self._wanted, self._part = cache, wanted, part
        self._held: set[str] = set()
        self._roll = upkeep.Roll(cache.directory / CLAIMS) if self.left else None

    def tasks(self) -> Iterator[ShardTask]:
        """A task for each shard's worth of media that nobody has; what others have claimed stays in ``left``."""
        later: list[str] = []
        while self.left:
            chunk: list[str] = []
            with hub.file_lock(self._cache.directory / CLAIMS):
                self._cache.refresh()
                others = upkeep.live(self._cache.directory / CLAIMS, but=self._roll)
                while self.left and len(chunk) < self._cache.rows:
                    key = self.left.popleft()
                    if key not in self._cache:
                        (later if key in others else chunk).append(key)
                over = not self.left
                if over:
                    self.left.extend(later)
                self._held.update(chunk)
                self._write()
            if chunk:
                media = {key: self._wanted[key] for key in chunk}
                yield ShardTask(self._cache.space, self._cache.directory, self._part, media)
            if over:
                return

    def release(self, keys: Sequence[str]) -> None:
        """These are done."""
        with hub.file_lock(self._cache.directory / CLAIMS):
            self._held.difference_update(keys)
            self._write()

    def close(self) -> None:
        """Leave what is left to others."""
        if self._roll:
            self._roll.close()

    def _write(self) -> None:
        if self._roll:
            self._roll.replace(sorted(self._held))


def _hashed(media: Sequence[Medium]) -> tuple[dict[str, Medium], dict[str, str]]:
    """The media by their keys, in order, each content once; and the reason for each that cannot be read, by name."""
    wanted: dict[str, Medium] = {}
    unreadable: dict[str, str] = {}
    for medium in media:
        try:
            wanted.setdefault(digest(medium), medium)
        except SensoriumError as error:
            unreadable[medium.name] = str(error)
    return wanted, unreadable


def _check_size(cache: FeatureCache, media: int) -> None:
    size = media * cache.space.bytes_of(cache.space.cells or 1)
    if size > cache.limit:
        raise SensoriumError(
            f"The features of {media} media take {upkeep.human(size)} as {cache.space.dtype}, and the cache may take "
            f"{upkeep.human(cache.limit)}; set {upkeep.VARIABLE} to more gigabytes, or keep them as int8."
        )
