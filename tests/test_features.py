"""The feature cache: what is read is what was written, whoever wrote it and however that ended."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

import tiny_features
from sensorium.errors import SensoriumError, UsageError
from sensorium.training import feature_upkeep as upkeep
from sensorium.training.data.formats.sample import MediaRef
from sensorium.training.feature_shard import Damaged, Shard, Space, shard_name, write_shard
from sensorium.training.features import CachedFeatures, FeatureCache, digest

CELLS = tiny_features.GRID**2


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    directory = tmp_path_factory.mktemp("pictures")
    return tiny_features.pictures(directory, 20), tiny_features.encoder(directory)


@pytest.fixture
def media(material):
    return material[0]


@pytest.fixture
def part(material):
    return material[1]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("SENSORIUM_HOME", str(tmp_path / "home"))
    monkeypatch.delenv(upkeep.VARIABLE, raising=False)
    monkeypatch.setattr(os, "fsync", lambda _: None)  # a test need not survive a power failure
    return tmp_path / "home"


@pytest.fixture
def opened(part, tmp_path):
    """Open the cache of a root, with shards of four rows."""

    def open_cache(root="root", dtype="fp16", **options):
        notes = []
        cache = FeatureCache.of(part, dtype, root=tmp_path / root, **{"rows": 4, "note": notes.append, **options})
        cache.notes = notes
        return cache

    return open_cache


def files(cache):
    return {path.name: path.read_bytes() for path in cache.directory.glob("*.safetensors")}


def expected(media, part):
    return np.stack([part.create().encode([medium.load().pixels])[0] for medium in media])


# Shards ---------------------------------------------------------------------------------------------------------------


def test_a_shard_is_safetensors(media, part, opened):
    cache = opened()
    cache.fill(media[:4], part, workers=1)
    (path,) = cache.directory.glob("*.safetensors")
    with safe_open(path, "numpy") as file:
        assert set(file.keys()) == {"ends", "keys", "crc", "values"}
        assert [bytes(key).hex() for key in file.get_tensor("keys")] == [digest(medium) for medium in media[:4]]
        values = file.get_tensor("values").reshape(4, CELLS, -1)
        assert json.loads(file.metadata()["space"]) == json.loads(cache.space.text)
    np.testing.assert_array_equal(values, expected(media[:4], part).astype(np.float16))


def test_media_of_different_lengths_share_a_shard(tmp_path):
    space = Space("0" * 64, 3, None, "int8")
    rows = [np.random.default_rng(i).normal(size=(n, 3)) for i, n in enumerate((5, 1, 9))]
    keys = [hashlib.sha256(bytes([i])).digest() for i in range(3)]
    path = tmp_path / shard_name(keys)
    write_shard(path, space, keys, [space.pack(row) for row in rows])
    shard = Shard(path, space)
    assert shard.keys == keys
    for i, row in enumerate(rows):
        np.testing.assert_allclose(shard.row(i).features(), row, atol=np.abs(row).max() / 200)


@given(st.integers(0, 2**32), st.floats(-30, 30), st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_int8_is_off_by_no_more_than_it_says(seed, exponent, dim):
    """No value by more than 1/254 of the largest of its cell; the page names 1/254."""
    features = (np.random.default_rng(seed).standard_cauchy((6, dim)) * 2.0**exponent).astype(np.float32)
    features[0] = 0
    row = Space("0" * 64, dim, 6, "int8").pack(features)
    largest = np.abs(features).max(axis=1, keepdims=True)
    assert row.values.dtype == np.int8
    assert (np.abs(row.features() - features) <= largest / 254 * 1.0001).all()
    assert not row.features()[0].any()


def test_fp16_is_half_precision_of_the_features(media, part, opened):
    cache = opened()
    cache.fill(media[:3], part, workers=1)
    np.testing.assert_array_equal(
        cache.read([digest(medium) for medium in media[:3]]), expected(media[:3], part).astype(np.float16)
    )


@pytest.mark.parametrize(("value", "dtype"), [(np.nan, "int8"), (np.inf, "fp16"), (1e6, "fp16")])
def test_what_a_format_cannot_hold_is_refused(value, dtype):
    with pytest.raises(SensoriumError, match=r"not finite|as int8"):
        Space("0" * 64, 2, 1, dtype).pack(np.array([[1.0, value]]))


def test_features_of_another_shape_are_refused(opened):
    with pytest.raises(SensoriumError, match="use the encoder that the cache was opened for"):
        opened().put("00" * 32, np.zeros((CELLS + 1, tiny_features.DIM)))


# Filling --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["fp16", "int8"])
def test_any_number_of_workers_writes_the_same_bytes(media, part, opened, dtype):
    one, two = opened("one", dtype), opened("two", dtype)
    again = [*media, *media[:3]]
    progress = []
    done = one.fill(again, part, workers=1, report=lambda *step: progress.append(step))
    assert (done.encoded, done.present, done.broken) == (20, 0, {})
    assert progress == [(n, 20) for n in (0, 4, 8, 12, 16, 20)]
    two.fill(again, part, workers=2)
    assert files(one) == files(two) and len(files(one)) == 5
    before = files(one)
    assert one.fill(media[::-1], part, workers=2).present == 20
    assert files(one) == before


def test_equal_bytes_under_two_names_are_one_row(media, part, opened, tmp_path):
    copy = tmp_path / "copy.png"
    copy.write_bytes(media[0].path.read_bytes())
    cache = opened()
    assert cache.fill([media[0], MediaRef("copy.png", copy)], part, workers=1).encoded == 1


def test_broken_media_are_named_and_the_others_encoded(media, part, opened, tmp_path):
    noise = tmp_path / "noise.png"
    noise.write_bytes(b"no picture")
    bad = [MediaRef("noise.png", noise), MediaRef("gone.png", tmp_path / "gone.png")]
    cache = opened()
    filled = cache.fill([*bad, *media[:5]], part, workers=1)
    assert filled.encoded == 5 and set(filled.broken) == {"noise.png", "gone.png"}
    assert all(reason.endswith(".") and "\n" not in reason for reason in filled.broken.values())


def test_another_encoder_preprocessing_or_format_is_another_place(part, tmp_path):
    space = part.space()
    other = tiny_features.encoder(tmp_path, seed=1)
    finer = type(part)(part.kind, part.weights, {"grid": 5})
    assert len({space.name, part.space(dtype="int8").name, other.space().name, finer.space().name}) == 4
    assert type(part)(part.kind, part.weights, {"grid": 4, "threads": 3}).space() == space
    kept = Space(space.encoder, space.dim, space.cells, "fp16", {"kind": "other"})
    assert kept.name != space.name


def test_the_weights_must_be_those_of_the_cache(media, part, opened, tmp_path):
    other = tiny_features.encoder(tmp_path, seed=1)
    with pytest.raises(SensoriumError, match="must see the same weights"):
        opened().fill(media, other, workers=1)


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import tiny_features
from sensorium.training import feature_fill, feature_shard
from sensorium.training.features import EncoderPart, FeatureCache
from sensorium.training.data.formats.sample import MediaRef
part = EncoderPart("linear-patches", Path({weights!r}), {{"grid": {grid}}})
media = [MediaRef(p.name, p) for p in sorted(Path({pictures!r}).glob("*.png"), key=lambda p: int(p.stem))]
cache = FeatureCache.of(part, root=Path({root!r}), rows=4)
{body}
"""


def process(part, media, root, body, **options):
    code = SCRIPT.format(
        tests=str(Path(__file__).parent), weights=str(part.weights), grid=tiny_features.GRID,
        pictures=str(media[0].path.parent), root=str(root), body=body,
    )  # fmt: skip
    return subprocess.Popen([sys.executable, "-c", code], text=True, stdout=subprocess.PIPE, **options)


def test_processes_that_fill_one_cache_share_the_work(media, part, opened):
    slow = "import time\nload = MediaRef.load\nMediaRef.load = lambda *a: (time.sleep(0.1), load(*a))[1]\n"
    body = slow + "print('ready', flush=True)\nsys.stdin.readline()\nprint(cache.fill(media, part, workers=1).encoded)"
    cache = opened()
    processes = [process(part, media, cache.root, body, stdin=subprocess.PIPE) for _ in range(3)]
    for one in processes:
        assert one.stdout.readline() == "ready\n"
    for one in processes:
        one.stdin.write("\n")
        one.stdin.flush()
    encoded = [int(one.communicate(timeout=60)[0]) for one in processes]
    assert sum(encoded) == len(media), encoded
    cache.refresh()
    np.testing.assert_array_equal(
        cache.read([digest(medium) for medium in media]), expected(media, part).astype(np.float16)
    )
    assert not list((cache.directory / "claims").iterdir())


KILLS = {
    "before the shard has a name": "import os\nfrom sensorium.hub import paths\n"
    "paths._replace = lambda *_: os.kill(os.getpid(), 9) if len(cache) == 8 else os.replace(*_)\n",
    "in the middle of the values": "import os\nwrite = feature_shard.Row.crc\nfeature_shard.Row.crc = lambda *a: "
    "os.kill(os.getpid(), 9) if len(cache) == 8 else write(*a)\n",
    "between two shards": "import os\nfill_rest = cache.refresh\n"
    "def refresh():\n    fill_rest()\n    len(cache) == 8 and os.kill(os.getpid(), 9)\ncache.refresh = refresh\n",
}


@pytest.mark.parametrize("moment", KILLS)
def test_a_kill_loses_nothing_but_the_shard_being_written(media, part, opened, moment):
    cache = opened()
    killed = process(part, media, cache.root, KILLS[moment] + "cache.fill(media, part, workers=1)")
    killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL
    cache.refresh()
    assert len(cache) == 8 and not cache.notes
    keys = [digest(medium) for medium in media]
    np.testing.assert_array_equal(cache.read(keys[:8]), expected(media[:8], part).astype(np.float16))
    assert cache.get(keys[8:]) == [None] * 12
    assert cache.fill(media, part, workers=1).encoded == 12
    np.testing.assert_array_equal(cache.read(keys), expected(media, part).astype(np.float16))
    for leftover in cache.directory.glob(".*.tmp"):
        os.utime(leftover, (0, 0))
    upkeep.remove_stale(cache.root)
    assert not list(cache.directory.glob(".*.tmp"))


def test_workers_end_with_a_parent_that_was_killed(media, part, opened):
    body = """
import multiprocessing, os, threading, time
from sensorium.training import engines
def report():
    while len(multiprocessing.active_children()) < 2: time.sleep(0.05)
    time.sleep(3)
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    os.kill(os.getpid(), 9)
if __name__ == "__main__":
    threading.Thread(target=report).start()
    list(engines.spread(tiny_features.sleep, range(4), workers=2))
"""
    cache = opened()
    killed = process(part, media, cache.root, body, env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)})
    workers = [int(word) for word in killed.communicate(timeout=120)[0].split()]
    assert len(workers) == 2
    until = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


# Reading --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["fp16", "int8"])
def test_a_batch_does_not_depend_on_what_was_cached(media, part, opened, dtype):
    order = [media[i] for i in (7, 3, 3, 19, 0, 11)]
    warm, partly, cold = (opened(root, dtype) for root in ("warm", "partly", "cold"))
    warm.fill(media, part, workers=1)
    partly.fill(media[:8], part, workers=1)
    batches = [CachedFeatures(cache, part)(order) for cache in (warm, partly, cold)]
    assert batches[0].dtype == np.float32 and batches[0].shape == (6, CELLS, tiny_features.DIM)
    assert len({batch.tobytes() for batch in batches}) == 1
    cold.close()
    assert len(opened("cold", dtype)) == 5, "what training encoded is kept"


def test_training_encodes_no_picture_twice(media, part, opened, monkeypatch):
    calls = []
    load = MediaRef.load
    monkeypatch.setattr(MediaRef, "load", lambda self, *rest: (calls.append(self.name), load(self, *rest))[1])
    features = CachedFeatures(opened(), part)
    for _ in range(3):
        features(media[:6])
    assert sorted(calls) == sorted(medium.name for medium in media[:6])
    fresh = CachedFeatures(opened(), part)
    fresh(media[:4])
    assert len(calls) == 6


def test_a_changed_file_is_another_medium(media, part, opened, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(media[0].path.read_bytes())
    features = CachedFeatures(opened(), part)
    first = features([MediaRef("a.png", path)])
    path.write_bytes(media[1].path.read_bytes())
    os.utime(path, (1, 1))
    assert not np.array_equal(first, features([MediaRef("a.png", path)]))


def test_batches_are_read_ahead_in_order(media, part, opened):
    cache = opened()
    cache.fill(media, part, workers=1)
    keys = [digest(medium) for medium in media]
    batches = [keys[i : i + 5] for i in (10, 0, 15)]
    for batch, found in zip(batches, cache.stream(batches, depth=2), strict=True):
        np.testing.assert_array_equal(found, cache.read(batch))
    with pytest.raises(SensoriumError, match="1 of 2 media have no features"):
        list(cache.stream([[keys[0], "00" * 32]]))
    assert cache.read([]).shape[0] == 0


def test_more_shards_than_may_be_mapped(media, part, opened, monkeypatch):
    monkeypatch.setattr("sensorium.training.features.MAPPED", 2)
    cache = opened(rows=1)
    cache.fill(media, part, workers=1)
    keys = [digest(medium) for medium in media]
    rows = cache.get(keys)
    assert len(cache._mapped) == 2
    np.testing.assert_array_equal(np.stack(rows), expected(media, part).astype(np.float16))
    with pytest.raises(ValueError, match="read-only"):
        rows[0][0, 0] = 1


# Damage ---------------------------------------------------------------------------------------------------------------


def flip(where):
    def damage(data):
        at = where(data)
        return data[:at] + bytes([data[at] ^ 0x40]) + data[at + 1 :]

    return damage


DAMAGES = {
    "empty": lambda data: b"",
    "cut off": lambda data: data[:-100],
    "cut in the header": lambda data: data[:40],
    "longer": lambda data: data + b"x",
    "noise": lambda data: bytes(range(256)) * 20,
    "a huge header": lambda data: (2**62).to_bytes(8, "little") + data[8:],
    "a changed header": flip(lambda data: data.index(b"linear-patches")),
    "a changed end": flip(lambda data: len(data) - 4 * (CELLS * 48 + 44) + 8),
    "a changed key": flip(lambda data: len(data) - 4 * (CELLS * 48 + 44) + 40),
    "a changed value": flip(lambda data: len(data) - 5),
    "zeros at the end": lambda data: data[:-2000] + bytes(2000),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_shard_is_computed_again_with_one_note(media, part, opened, kind):
    cache = opened()
    cache.fill(media[:8], part, workers=1)
    before = files(cache)
    name = shard_name([bytes.fromhex(digest(medium)) for medium in media[4:8]])
    path = cache.directory / name
    path.write_bytes(DAMAGES[kind](before[name]))
    fresh = opened()
    found = CachedFeatures(fresh, part)(media[:8])
    np.testing.assert_array_equal(found, expected(media[:8], part).astype(np.float16))
    assert len(fresh.notes) == 1 and "computed again" in fresh.notes[0] and "\n" not in fresh.notes[0]
    assert not path.exists()
    fresh.close()
    again = opened()
    assert len(again) == 8 and not again.notes


@given(st.binary(max_size=400), st.integers(0, 300))
@settings(max_examples=100, deadline=None)
def test_no_file_breaks_the_reader(tmp_path_factory, noise, at):
    directory = tmp_path_factory.getbasetemp() / "noise"
    space = Space("0" * 64, 2, 3)
    path, whole = directory / shard_name([bytes(32)]), directory / "whole"
    if not whole.exists():
        write_shard(path, space, [bytes(32)], [space.pack(np.ones((3, 2)))])
        path.replace(whole)
    data = whole.read_bytes()
    for content in (noise, data[:at] + noise + data[at + len(noise) :], data[:at] + noise):
        path.write_bytes(content)
        try:
            row = Shard(path, space).row(0)
        except Damaged:
            continue
        assert row.features().tolist() == np.ones((3, 2)).tolist()


def test_a_shard_that_vanishes_is_missing_and_comes_back(media, part, opened):
    cache = opened()
    cache.fill(media[:4], part, workers=1)
    (path,) = cache.directory.glob("*.safetensors")
    reader = opened()
    path.unlink()
    keys = [digest(medium) for medium in media[:4]]
    assert reader.get(keys) == [None] * 4 and not reader.notes
    cache.fill(media[:4], part, workers=1)
    np.testing.assert_array_equal(CachedFeatures(reader, part)(media[:4]), reader.read(keys))


# Size -----------------------------------------------------------------------------------------------------------------


def age(cache, media, seconds):
    """Make shards look as if they had been used long ago."""
    for name in cache.shards_of(bytes.fromhex(digest(medium)) for medium in media):
        then = time.time() - seconds
        os.utime(cache.directory / name, (then, then))


def test_the_least_recently_used_shards_go_first(media, part, opened):
    with opened() as cache:
        cache.fill(media[:12], part, workers=1)
        shard = max(len(data) for data in files(cache).values())
        age(cache, media[:4], 100)
        age(cache, media[4:8], 300)
        age(cache, media[8:12], 200)
    with opened(limit=3 * shard) as cache:
        cache.fill(media[12:16], part, workers=1)
        keys = [digest(medium) for medium in media]
        cache.refresh()
        assert [row is not None for row in cache.get(keys)] == [True] * 4 + [False] * 4 + [True] * 8 + [False] * 4


def test_what_a_living_process_reads_is_never_evicted(media, part, opened):
    with opened() as cache:
        cache.fill(media[:8], part, workers=1)
        age(cache, media[:4], 1000)
        shard = max(len(data) for data in files(cache).values())
    body = "from sensorium.training.features import digest\ncache.get([digest(media[0])])\nprint('open', flush=True)\n"
    reader = process(part, media, cache.root, body + "sys.stdin.readline()", stdin=subprocess.PIPE)
    assert reader.stdout.readline() == "open\n"
    age(cache, media[:4], 1000)
    assert upkeep.evict(cache.root, shard) == shard
    cache.refresh()
    assert digest(media[0]) in cache and digest(media[4]) not in cache
    reader.kill()
    reader.wait()
    assert upkeep.evict(cache.root, 0) == shard, "a dead process holds nothing"
    assert not list((cache.root / "leases").iterdir())


def test_features_that_cannot_fit_are_refused_before_the_work(media, part, opened, monkeypatch):
    with pytest.raises(SensoriumError, match=r"20 media take .* as fp16.*SENSORIUM_FEATURES_GB.*int8"):
        opened(limit=1000).fill(media, part, workers=1)
    monkeypatch.setenv(upkeep.VARIABLE, "lots")
    with pytest.raises(UsageError, match="SENSORIUM_FEATURES_GB is 'lots'"):
        opened()
    monkeypatch.setenv(upkeep.VARIABLE, "1.5")
    assert opened().limit == 1_500_000_000


def test_a_full_disk_is_one_sentence(media, part, opened, monkeypatch):
    import errno

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    cache = opened()
    cache.fill(media[:4], part, workers=1)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SensoriumError, match="is full"):
        cache.fill(media, part, workers=1)
    fresh = opened()
    assert len(fresh) == 4 and not list(cache.directory.glob(".*"))


def test_a_cache_that_cannot_be_written_can_be_read(media, part, opened, monkeypatch):
    cache = opened()
    cache.fill(media[:4], part, workers=1)

    def refuse(*_, **__):
        raise SensoriumError("read-only")

    monkeypatch.setattr(upkeep.hub, "file_lock", refuse)
    assert opened().get([digest(media[0])])[0] is not None


@pytest.mark.parametrize(("text", "size"), [("20GB", 20e9), ("500 MB", 5e8), ("0", 0), ("1.5k", 1500), ("7", 7)])
def test_sizes(text, size):
    assert upkeep.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "1 PB", "1e9", "20 GiB"])
def test_no_sizes(text):
    with pytest.raises(UsageError, match="20GB"):
        upkeep.parse_size(text)
