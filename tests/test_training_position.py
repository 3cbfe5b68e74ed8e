"""The position in the data: a resumed run reads on from it, whatever the number of processes."""

from __future__ import annotations

import json

import numpy as np
import pytest

import tiny
from format_files import write_lines

torch = pytest.importorskip("torch")

from sensorium.errors import SensoriumError  # noqa: E402
from sensorium.training import loop  # noqa: E402
from sensorium.training.data.formats.batches import PackedBatches  # noqa: E402
from sensorium.training.data.formats.encode import encode  # noqa: E402
from sensorium.training.data.formats.readers import open_set  # noqa: E402
from sensorium.training.data.formats.task import PackedTask  # noqa: E402
from test_training_loop import CELLS, DIM, ROWS, TOKENS, build, losses, recipe  # noqa: E402


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    directory = tmp_path_factory.mktemp("position")
    tiny.write_gguf(directory / "llm.gguf", np.random.default_rng(0))
    rows = [{"question": f"What is {i}?", "answer": f"{i} is {i * 7}."} for i in range(60)]
    return directory / "llm.gguf", write_lines(directory / "text.jsonl", rows)


def stream(parts, rank=0, world=1, read=None):
    """Batches of text; ``read`` counts the samples that are laid out."""
    _, _, tokenizer = build(parts[0])

    def lay_out(sample):
        if read is not None:
            read.append(sample.id)
        return encode(sample, tokenizer, TOKENS)

    return PackedBatches(
        [(open_set(parts[1]), 1.0)], lay_out, lambda media: np.zeros((len(media), CELLS, DIM), np.float32),
        rows=ROWS, row_tokens=120, pool=4, window=8, rank=rank, world=world,
    )  # fmt: skip


def run(parts, output, given, **options):
    projector, llm, _ = build(parts[0])
    output.mkdir(exist_ok=True)
    plan = recipe(steps=12, checkpoint_every=100)
    loop.train_loop(PackedTask(projector, llm, given, plan.learning_rate), plan, output, **options)


def test_a_resumed_run_reads_on_and_does_not_read_again(parts, tmp_path):
    run(parts, tmp_path / "whole", stream(parts))
    asked = iter([False] * 9 + [True])
    with pytest.raises(KeyboardInterrupt):
        run(parts, tmp_path / "parts", stream(parts), stopping=lambda: next(asked))
    read: list = []
    run(parts, tmp_path / "parts", stream(parts, read=read), resume=True)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    again: list = []
    consumed = stream(parts, read=again)
    list(consumed.batches(0, 12))
    assert len(read) < 0.6 * len(again)


def test_the_position_of_two_processes_serves_one(parts):
    def next_rows(given, step):
        return [rows.samples for _, rows in given.batches(step, step + 2)]

    states = []
    for rank in range(2):
        one = stream(parts, rank, 2)
        list(one.batches(0, 5))
        states.append(json.loads(json.dumps(one.state())))
    alone, whole = stream(parts), stream(parts)
    projector, llm, _ = build(parts[0])
    PackedTask(projector, llm, alone, recipe().learning_rate).seek(states)
    list(whole.batches(0, 5))
    assert next_rows(alone, 5) == next_rows(whole, 5)
    second = stream(parts, 1, 2)
    PackedTask(projector, llm, second, recipe().learning_rate).seek([whole.state()])
    assert [rows[0] for rows in next_rows(second, 7)] == [rows[2] for rows in next_rows(whole, 7)]


def test_a_position_of_other_rows_is_refused(parts):
    given = stream(parts)
    list(given.batches(0, 1))
    state = given.state()
    with pytest.raises(SensoriumError, match="another number of rows"):
        stream(parts).restore({**state, "lanes": state["lanes"][:3]})
