"""The stream of samples: shuffled, weighted, divided and resumed without losing or repeating one."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from format_files import FORMATS, NEEDS_PYARROW, write_lines
from sensorium.errors import SensoriumError, UsageError
from sensorium.training.data.formats.batches import PackedBatches
from sensorium.training.data.formats.encode import Encoded
from sensorium.training.data.formats.mixture import Mixture
from sensorium.training.data.formats.readers import open_set
from sensorium.training.data.formats.sample import Sample


def sets(directory: Path, sizes: list[list[int]]):
    """Data sets of several files each; the sample's id is "set.file.line"."""
    readers = []
    for s, files in enumerate(sizes):
        (directory / str(s)).mkdir(exist_ok=True)
        for f, size in enumerate(files):
            rows = [{"id": f"{s}.{f}.{i}", "question": "Q", "answer": "x" * (1 + i * 7 % 11)} for i in range(size)]
            write_lines(directory / str(s) / f"{f}.jsonl", rows)
        readers.append(open_set(directory / str(s), "messages"))
    return readers


def ids(stream, count=None):
    return [sample.id for sample in islice(stream, count)]


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=5), min_size=1, max_size=3),
    seed=st.integers(0, 99),
    window=st.integers(1, 12),
    lanes=st.integers(1, 4),
    lane=st.integers(0, 3),
    before=st.integers(0, 60),
    temperature=st.sampled_from([0.5, 1.0, 3.0]),
    epochs=st.sampled_from([None, 1, 3]),
)
def test_a_resumed_stream_goes_on_as_the_uninterrupted_one(
    tmp_path_factory, sizes, seed, window, lanes, lane, before, temperature, epochs
):
    readers = sets(tmp_path_factory.mktemp("sets"), sizes)
    weighted = [(reader, 1.0 + i) for i, reader in enumerate(readers)]
    options = {"seed": seed, "window": window, "lanes": lanes, "lane": lane % lanes, "temperature": temperature}
    whole = Mixture(weighted, epochs=epochs, **options)
    ids(whole, before)
    state = json.loads(json.dumps(whole.state()))
    assert len(json.dumps(state)) < 60 + 40 * len(sizes) + 40
    resumed = Mixture(weighted, epochs=epochs, **options)
    resumed.restore(state)
    for _ in range(3):  # also behind further positions
        assert ids(whole, 17) == ids(resumed, 17)
        assert whole.state() == resumed.state()


@settings(max_examples=40, deadline=None)
@given(
    files=st.lists(st.integers(1, 9), min_size=1, max_size=9),
    lanes=st.integers(1, 5),
    window=st.integers(1, 50),
    epochs=st.integers(1, 3),
)
def test_lanes_divide_every_epoch(tmp_path_factory, files, lanes, window, epochs):
    [reader] = sets(tmp_path_factory.mktemp("sets"), [files])
    seen = Counter()
    for lane in range(lanes):
        seen.update(ids(Mixture([(reader, 1)], lane=lane, lanes=lanes, window=window, epochs=epochs)))
    assert seen == {f"0.{f}.{i}": epochs for f, size in enumerate(files) for i in range(size)}


def test_every_format_is_resumed(tmp_path):
    for name, make in FORMATS.items():
        if name in NEEDS_PYARROW:
            pytest.importorskip("pyarrow")
        reader = open_set(make(tmp_path / name))
        whole = Mixture([(reader, 1)], window=3, epochs=3)
        order = ids(whole)
        assert len(order) == 24 and len(set(order)) == 8
        for before in range(24):
            first, second = (Mixture([(reader, 1)], window=3, epochs=3) for _ in range(2))
            assert ids(first, before) == order[:before]
            second.restore(first.state())
            assert ids(second) == order[before:]


def test_epochs_differ_and_seeds_differ(tmp_path):
    [reader] = sets(tmp_path, [[40, 40]])
    order = ids(Mixture([(reader, 1)], epochs=2))
    assert sorted(order[:80]) == sorted(order[80:]) and order[:80] != order[80:]
    assert order[:80] != sorted(order[:80])
    assert ids(Mixture([(reader, 1)], epochs=2)) == order != ids(Mixture([(reader, 1)], epochs=2, seed=1))


@pytest.mark.parametrize(("temperature", "share"), [(1.0, 0.8), (2.0, 2 / 3), (1e9, 0.5), (0.5, 16 / 17)])
def test_weights_and_temperature(tmp_path, temperature, share):
    a, b = sets(tmp_path, [[5], [5]])
    drawn = Counter(name[0] for name in ids(Mixture([(a, 4), (b, 1)], temperature=temperature), 2000))
    assert abs(drawn["0"] / 2000 - share) < 0.04


def test_memory_holds_a_window(tmp_path, monkeypatch):
    [reader] = sets(tmp_path, [[500]])
    alive = []
    made = reader.sample
    monkeypatch.setattr(reader, "sample", lambda record: alive.append(1) or made(record))
    next(Mixture([(reader, 1)], window=20))
    assert len(alive) <= 21


def test_a_window_is_also_bounded_in_bytes(tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")
    from sensorium.training.data.formats import mixture

    reader = open_set(FORMATS["parquet"](tmp_path))
    size = len(next(iter(reader.samples())).media[0].data)
    monkeypatch.setattr(mixture, "WINDOW_BYTES", 3 * size)
    source = Mixture([(reader, 1)], epochs=1)._sources[0]
    source.draw()
    assert len(source._block) == 3


def test_what_stops_a_stream(tmp_path):
    [reader] = sets(tmp_path, [[5]])
    (tmp_path / "0" / "1.jsonl").write_text('{"id": 1}\n')
    with pytest.raises(SensoriumError, match=r"1\.jsonl, line 1: it holds no messages"):
        ids(Mixture([(reader, 1)]), 30)
    (tmp_path / "0" / "1.jsonl").unlink()
    (tmp_path / "0" / "0.jsonl").write_text("\n")
    with pytest.raises(SensoriumError, match="holds no sample"):
        next(Mixture([(reader, 1)]))
    for bad in ([], [(reader, 0)], [(reader, -1)], [(reader, float("nan"))]):
        with pytest.raises(UsageError):
            Mixture(bad)


def test_a_position_of_other_data_is_refused(tmp_path):
    [reader] = sets(tmp_path, [[5, 5]])
    stream = Mixture([(reader, 1)])
    state = stream.state()
    for other in (Mixture([(reader, 2)]), Mixture([(reader, 1)], seed=1), Mixture([(reader, 1)], lanes=2)):
        with pytest.raises(SensoriumError, match="of other data"):
            other.restore(state)
    with (tmp_path / "0" / "1.jsonl").open("a") as file:
        file.write('{"caption": "more"}\n')
    with pytest.raises(SensoriumError, match="of other data"):
        Mixture([(reader, 1)]).restore(state)


# Batches --------------------------------------------------------------------------------------------------------------


def layout(sample: Sample) -> Encoded:
    """As long as its answer."""
    n = 1 + len(sample.answers[0])
    labels = np.full(n, -100)
    labels[1:] = 5
    return Encoded(sample.id, np.arange(n), labels, (), ())


def batches(readers, **options):
    weighted = [(reader, 1) for reader in readers]
    given = {"rows": 4, "row_tokens": 30, "pool": 6, "window": 7, **options}
    return PackedBatches(weighted, layout, lambda media: np.zeros((len(media), 1, 1), np.float32), **given)


def names(stream, start, stop):
    return [rows.samples for _, rows in stream.batches(start, stop)]


@pytest.mark.parametrize("world", [1, 2, 4])
def test_batches_do_not_depend_on_the_number_of_processes(tmp_path, world):
    readers = sets(tmp_path, [[30, 9], [11]])
    whole = names(batches(readers), 0, 12)
    parts = [names(batches(readers, rank=rank, world=world), 0, 12) for rank in range(world)]
    assert [sum(step, ()) for step in zip(*parts)] == whole


@pytest.mark.parametrize("at", [0, 1, 2, 5, 9])
def test_batches_are_resumed_from_their_position_or_from_the_step_alone(tmp_path, at):
    readers = sets(tmp_path, [[30, 9], [11]])
    whole = names(batches(readers), 0, 15)
    first = batches(readers)
    assert names(first, 0, at) == whole[:at]
    second = batches(readers)
    second.restore(json.loads(json.dumps(first.state())))
    assert names(second, at, 15) == whole[at:]
    assert names(batches(readers), at, 15) == whole[at:]


def test_a_position_is_that_of_the_batch_given_not_of_the_batch_made_ahead(tmp_path):
    import time

    readers = sets(tmp_path, [[30]])
    whole = names(batches(readers), 0, 9)
    stream = batches(readers)
    running = stream.batches(0, 9)
    next(running), next(running)
    time.sleep(0.2)
    state = stream.state()
    running.close()
    again = batches(readers)
    again.restore(state)
    assert state["step"] == 2 and names(again, 2, 9) == whole[2:]


def test_errors_come_out_of_the_thread(tmp_path):
    [reader] = sets(tmp_path, [[3]])
    with pytest.raises(SensoriumError, match="gone through"):
        names(batches([reader], epochs=1), 0, 50)
    with pytest.raises(UsageError, match="cannot be divided"):
        batches([reader], world=3)
    stream = batches([reader])
    names(stream, 0, 3)
    with pytest.raises(UsageError, match="cannot go back"):
        names(stream, 1, 3)
