"""The feature cache: what a frozen encoder makes of a medium, computed once and shared by all recipes.

A row is found by sha256 of the medium's bytes, the encoder's fingerprint, the preprocessing and the number format. All
but the first name a directory; in it stand shards that never change once they have their name and that hold their own
index (`feature_shard`). So nothing but the shard being written can be lost, at whatever moment a process is killed,
and any number of processes may fill one cache: each claims the media that it works on (`feature_upkeep`).

    cache = FeatureCache.of(part)                       # part: EncoderPart(kind, weights, options)
    cache.fill(media, part, workers=2)                  # once
    cache.get([digest(medium)])                         # [float16 [cells, dim]], or None where there is none
    features = CachedFeatures(cache, part)              # media -> float32 [media, cells, dim], as training wants them
"""

from __future__ import annotations

import hashlib
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from sensorium import hub
from sensorium.encoders.base import FeatureSpec, Grid, Vector
from sensorium.errors import SensoriumError
from sensorium.hub.progress import say
from sensorium.media import Image
from sensorium.training import feature_upkeep as upkeep
from sensorium.training.data.formats.ahead import ahead
from sensorium.training.feature_shard import SUFFIX, Damaged, Row, Shard, Space, shard_name, used, write_shard

if TYPE_CHECKING:
    from sensorium.training.frozen import Frozen

SHARD_BYTES = 40_000_000  # a shard: what a crash loses, and what eviction frees at once
MOST_ROWS = 4096
FLUSH_S = 60.0  # what training encodes itself is written at least so often
MAPPED = 128  # shards mapped at a time: each takes a file descriptor


class Medium(Protocol):
    """What is encoded; `data.formats.sample.MediaRef` is one."""

    @property
    def name(self) -> str:
        """For messages."""
        ...

    def read(self) -> bytes:
        """The encoded bytes. Raises SensoriumError."""
        ...

    def load(self) -> Image:
        """The decoded picture. Raises SensoriumError."""
        ...


@dataclass(frozen=True)
class EncoderPart:
    """A frozen encoder as a worker process creates it: a kind of `encoders.kinds()`, its weights and its options."""

    kind: str
    weights: Path
    options: Mapping[str, Any]

    def create(self) -> Any:
        """The encoder, with one thread."""
        from sensorium import encoders

        return encoders.create(self.kind, self.weights, **{**self.options, "threads": 1})

    def space(self, spec: FeatureSpec | None = None, dtype: str = "fp16") -> Space:
        """Where its features belong; without the spec the encoder is created to ask for it."""
        spec = spec or self.create().spec
        cells = spec.layout.cells if isinstance(spec.layout, Grid) else 1 if isinstance(spec.layout, Vector) else None
        kept = {name: value for name, value in self.options.items() if name != "threads"}
        return Space(spec.fingerprint, spec.dim, cells, dtype, {"kind": self.kind, "options": kept})


def digest(medium: Medium) -> str:
    """The key of a medium: sha256 of its bytes, hexadecimal. Raises SensoriumError when it cannot be read."""
    return hashlib.sha256(medium.read()).hexdigest()


class FeatureCache:
    """The rows of one encoder, preprocessing and number format.

    Args:
        space: which.
        root: the directory of all features; by default ``features`` in the cache directory.
        limit: bytes that the media features of all spaces may take; by default `feature_upkeep.bound()`. What was used
            least recently goes first, but no shard that a living process has opened.
        rows: media a shard; by default what makes about 40 MB.
        note: is told, in a sentence, of each damaged shard, which is then computed again.
    """

    def __init__(
        self,
        space: Space,
        root: Path | None = None,
        *,
        limit: int | None = None,
        rows: int | None = None,
        note: Callable[[str], None] | None = None,
    ) -> None:
        self.space = space
        self.root = root or hub.cache_dir("features")
        self.directory = self.root / upkeep.MEDIA / space.name
        self.limit = limit or upkeep.bound()
        self.rows = rows or max(1, min(MOST_ROWS, SHARD_BYTES // space.bytes_of(space.cells or 256)))
        self._note = note or say
        self._index: dict[bytes, tuple[str, int]] = {}
        self._known: set[str] = set()
        self._mapped: OrderedDict[str, Shard] = OrderedDict()
        self._lock = threading.RLock()
        self._lease: upkeep.Lease | None = None
        self._flushed = time.monotonic()
        self._pending = _Pending(self.directory, space)
        weakref.finalize(self, self._pending.flush)
        self.refresh()

    @classmethod
    def of(cls, part: EncoderPart, dtype: str = "fp16", **options: Any) -> FeatureCache:
        """The cache of an encoder, with the options of `FeatureCache`."""
        return cls(part.space(dtype=dtype), **options)

    def __len__(self) -> int:
        return len(self._index) + len(self._pending.rows)

    def __contains__(self, key: str) -> bool:
        raw = bytes.fromhex(key)
        return raw in self._index or raw in self._pending.rows

    def get(self, keys: Sequence[str]) -> list[np.ndarray | None]:
        """The features of media, in the order of the keys; None where there are none.

        Returns:
            [cells, dim] each: float16 as mapped (not writable), or float32 from int8.
        """
        with self._lock:
            return [self._get(bytes.fromhex(key)) for key in keys]

    def read(self, keys: Sequence[str]) -> np.ndarray:
        """The features of media as one array, float32 [keys, cells, dim]. Raises SensoriumError when one is missing."""
        found = self.get(keys)
        missing = sum(row is None for row in found)
        if missing:
            raise SensoriumError(
                f"{missing} of {len(found)} media have no features in {self.directory}; run `sensorium features` again."
            )
        shape = (len(found), *(found[0].shape if found and found[0] is not None else (0, self.space.dim)))
        rows = np.empty(shape, np.float32)
        for at, row in enumerate(found):
            rows[at] = row
        return rows

    def stream(self, batches: Iterable[Sequence[str]], depth: int = 4) -> Iterator[np.ndarray]:
        """`read` for each batch of keys, up to ``depth`` of them ahead in a thread."""
        return ahead(map(self.read, batches), depth)

    def put(self, key: str, features: np.ndarray) -> np.ndarray:
        """Keep one medium's features, float32 [cells, dim]; returns them as `get` would give them from now on.

        XX
        """
        row = self.space.pack(features)
        with self._lock:
            self._pending.rows[bytes.fromhex(key)] = row
            if len(self._pending.rows) >= self.rows or time.monotonic() - self._flushed > FLUSH_S:
                self.flush()
        return row.features()

    def flush(self) -> None:
        """Write what was `put`."""
        with self._lock:
            self._flushed = time.monotonic()
            if self._pending.flush():
                self.refresh()
                upkeep.evict(self.root, self.limit)

    def close(self) -> None:
        """Write what was `put` and let others evict what this cache has opened."""
        self.flush()
        with self._lock:
            self._mapped.clear()
            if self._lease:
                self._lease.close()
                self._lease = None

    def __enter__(self) -> FeatureCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def refresh(self) -> None:
        """Look for shards that other processes have written or removed."""
        with self._lock:
            there = {path.name for path in self.directory.glob(f"[!.]*{SUFFIX}")} if self.directory.is_dir() else set()
            self._forget(self._known - there)
            for name in sorted(there - self._known):
                try:
                    keys = Shard(self.directory / name, self.space).keys
                except FileNotFoundError:
                    continue
                except Damaged as damage:
                    self._drop(name, damage)
                    continue
                self._known.add(name)
                for row, key in enumerate(keys):
                    self._index.setdefault(key, (name, row))

    def fill(
        self,
        media: Sequence[Medium],
        part: EncoderPart,
        workers: int | None = None,
        report: Callable[[int, int], None] | None = None,
        engine: str = "local",
    ) -> Filled:
        """Encode what is missing; see `feature_fill.fill`."""
        from sensorium.training.feature_fill import fill

        return fill(self, media, part, workers, report, engine)

    def lease(self, names: Iterable[str]) -> None:
        """Keep shards from being evicted while this process lives (or until `close`)."""
        with self._lock, suppress(SensoriumError):  # a cache of someone else's is read without
            if self._lease is None:
                self._lease = upkeep.Lease(self.root)
            self._lease.add([self.directory / name for name in names])

    def shards_of(self, keys: Iterable[bytes]) -> set[str]:
        """The names of the shards that hold these rows."""
        return {self._index[key][0] for key in keys if key in self._index}

    # Inside the lock --------------------------------------------------------------------------------------------------

    def _get(self, key: bytes) -> np.ndarray | None:
        if key in self._pending.rows:
            return self._pending.rows[key].features()
        while key in self._index:  # another shard may hold the row as well
            name, row = self._index[key]
            try:
                return self._shard(name).row(row).features()
            except FileNotFoundError:
                self._forget({name})
            except Damaged as damage:
                self._drop(name, damage)
        return None

    def _shard(self, name: str) -> Shard:
        if name in self._mapped:
            self._mapped.move_to_end(name)
            return self._mapped[name]
        path = self.directory / name
        self.lease([name])
        shard = self._mapped[name] = Shard(path, self.space)
        used(path)
        while len(self._mapped) > MAPPED:
            self._mapped.popitem(last=False)  # rows that were given keep their mapping
        return shard

    def _forget(self, names: set[str]) -> None:
        if not names:
            return
        self._known -= names
        for name in names:
            self._mapped.pop(name, None)
        self._index = {key: place for key, place in self._index.items() if place[0] not in names}

    def _drop(self, name: str, damage: Damaged) -> None:
        """Remove a damaged shard, so that what it held is computed again."""
        self._forget({name})
        path = self.directory / name
        self._note(f"The features {path} are damaged ({damage}); they are computed again.")
        with suppress(OSError):
            path.unlink()


@dataclass(frozen=True)
class Filled:
    """What `FeatureCache.fill` did: media encoded, media that were there, the name of each broken one and why."""

    encoded: int
    present: int
    broken: Mapping[str, str]


class _Pending:
    """Rows that are not written yet; apart from the cache, so that they can be written when it is gone."""

    def __init__(self, directory: Path, space: Space) -> None:
        self.directory, self.space = directory, space
        self.rows: dict[bytes, Row] = {}

    def flush(self) -> bool:
        """Write them as one shard; whether there were any."""
        if not self.rows:
            return False
        keys = sorted(self.rows)
        write_shard(self.directory / shard_name(keys), self.space, keys, [self.rows[key] for key in keys])
        self.rows.clear()
        return True


class CachedFeatures:
    """Media -> float32 [media, cells, dim] for training: from the cache, or encoded once and kept.

    What a picture gives does not depend on whether it was in the cache: a fresh one, too, is rounded as it is stored.

    Args:
        cache: where features are kept.
        part: the frozen encoder; it is created when a picture is missing.
    """

    def __init__(self, cache: FeatureCache, part: EncoderPart) -> None:
        self.cache, self._part = cache, part
        self._encoder: Any = None
        self._digests: dict[Any, str] = {}

    @classmethod
    def of(cls, frozen: Frozen, dtype: str = "fp16") -> CachedFeatures:
        """Of a run's encoder of pictures."""
        declared = frozen.composition.spec.encoders["image"]
        part = EncoderPart(declared.kind, frozen.encoder, declared.options)
        return cls(FeatureCache(part.space(frozen.features, dtype)), part)

    def __call__(self, media: Sequence[Medium]) -> np.ndarray:
        """The features, in the order of the media. Raises SensoriumError for a medium that cannot be opened."""
        keys = [self._digest(medium) for medium in media]
        found = self.cache.get(keys)
        if any(row is None for row in found):
            self.cache.refresh()
            found = self.cache.get(keys)
        rows = np.zeros((len(media), self.cache.space.cells or 0, self.cache.space.dim), np.float32)
        for at, row in enumerate(found):
            if row is None:  # asked again, as the same picture may stand twice in a batch
                row = self.cache.get(keys[at : at + 1])[0]
            rows[at] = row if row is not None else self._encode(media[at], keys[at])
        return rows

    def _digest(self, medium: Medium) -> str:
        """Remembered for files that do not change while this process runs."""
        path = getattr(medium, "path", None)
        if path is None:
            return digest(medium)
        try:
            state = path.stat()
        except OSError:
            return digest(medium)  # raises the sentence
        known = (path, getattr(medium, "span", None), state.st_size, state.st_mtime_ns)
        if known not in self._digests:
            self._digests[known] = digest(medium)
        return self._digests[known]

    def _encode(self, medium: Medium, key: str) -> np.ndarray:
        self._encoder = self._encoder or self._part.create()
        return self.cache.put(key, self._encoder.encode([medium.load().pixels])[0])
