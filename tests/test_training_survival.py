"""Runs survive what happens to them: SIGKILL at any moment, a full disk, a broken sample, a file that has gone."""

from __future__ import annotations

import json
import random
import resource
import time

import numpy as np
import pytest
from PIL import Image as Pillow

import tiny
import tiny_training

torch = pytest.importorskip("torch")

import tiny_ranks  # noqa: E402
from sensorium.training import checkpoint  # noqa: E402

pytestmark = pytest.mark.timeout(300)
STEPS = 12


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """The tiny composition, a catalogue, and the home of all runs, with the features already computed."""
    directory = tmp_path_factory.mktemp("survival")
    return tiny.write(directory / "model"), tiny_training.write_catalogue(directory / "pictures"), directory / "home"


def recipe(material, output, **changes):
    plan = tiny_training.recipe(
        *material[:2], output, **{"train__steps": STEPS, "train__checkpoint_every": 4, **changes}
    )
    return tiny_training.write_recipe(output.with_suffix(".yaml"), plan)


def command(*arguments, limit=0):
    """`sensorium` in this process; files of at most ``limit`` bytes."""
    from sensorium.cli import run

    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    return run([str(argument) for argument in arguments])


def start(material, output, *arguments, ranks=1, **options):
    """`sensorium ARGUMENTS` in processes of their own, as a launcher starts them."""
    home = {"SENSORIUM_HOME": str(material[2]), "SENSORIUM_OFFLINE": "1"}
    port = tiny_ranks.free_port()
    return [
        tiny_ranks.Child(
            _command, arguments, options, error=output.with_suffix(f".{rank}.err"),
            environment={**home, **(tiny_ranks.launcher(rank, ranks, port) if ranks > 1 else {})},
        )
        for rank in range(ranks)
    ]  # fmt: skip


def _command(arguments, options):
    return command(*arguments, **options)


def finish(material, output, *arguments, ranks=1, code=0, **options):
    """Run to the end; returns what it said on standard error."""
    codes = [child.result() for child in start(material, output, *arguments, ranks=ranks, **options)]
    said = "".join(output.with_suffix(f".{rank}.err").read_text() for rank in range(ranks))
    assert codes == [code] * ranks, said
    assert "Traceback" not in said
    return said


def lines(output):
    try:
        return [
            json.loads(line) for line in (output / "log.jsonl").read_text().splitlines(keepends=True) if "\n" in line
        ]
    except FileNotFoundError:
        return []


def losses(output):
    return {line["step"]: line["loss"] for line in lines(output)}


def complaint(said):
    found = [line for line in said.splitlines() if line.startswith("sensorium: ")]
    assert found and len(set(found)) == 1 and found[0].endswith(".") and len(found[0]) < 420, said
    return found[0]


# SIGKILL --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(material, tmp_path_factory):
    """The losses and weights of an uninterrupted run, by number of processes and sharding."""
    made = {}

    def run(ranks, sharding):
        if (ranks, sharding) not in made:
            output = tmp_path_factory.mktemp("whole") / f"{ranks}{sharding}"
            path = recipe(material, output, train__sharding=sharding)
            finish(material, output, "train", path, ranks=ranks)
            made[ranks, sharding] = output
        return made[ranks, sharding]

    return run


@pytest.mark.parametrize(("ranks", "sharding", "seeds"), [(1, "none", (1, 2)), (2, "none", (3,)), (2, "full", (4,))])
def test_killed_at_any_moment_a_run_goes_on_bit_for_bit(material, whole, tmp_path, ranks, sharding, seeds):
    """Killed once and again, at random steps and moments within them; then resumed to the end."""
    expected = whole(ranks, sharding)
    output = tmp_path / "parts"
    path = recipe(material, output, train__sharding=sharding)
    for seed in seeds:
        chance = random.Random(seed)
        again = ["--resume", output] if (output / checkpoint.FILE).exists() else []
        children = start(material, output, "train", path, *again, ranks=ranks)
        at = chance.randrange(5, STEPS - 1)
        until = time.monotonic() + 120
        while len(lines(output)) < at and time.monotonic() < until:
            time.sleep(0.0005)
        time.sleep(chance.random() * 0.02)
        for child in children:
            child.kill()
        assert (output / checkpoint.FILE).is_file()
        checkpoint.trained(output)
    finish(material, output, "train", path, "--resume", output, ranks=ranks)
    assert losses(output) == losses(expected) and len(losses(output)) == STEPS
    for name in ("image.safetensors", "lora.safetensors"):
        assert (output / "composition" / name).read_bytes() == (expected / "composition" / name).read_bytes()


def test_one_process_killed_ends_the_other_in_a_sentence(material, tmp_path):
    output = tmp_path / "one-gone"
    first, second = start(material, output, "train", recipe(material, output, train__steps=100_000), ranks=2)
    until = time.monotonic() + 120
    while len(lines(output)) < 5 and time.monotonic() < until:
        time.sleep(0.01)
    second.kill()
    assert first.result() == 1
    said = output.with_suffix(".0.err").read_text()
    assert "Another process of this run has gone" in complaint(said) and f"--resume {output}" in said
    assert checkpoint.trained(output)


# The disk -------------------------------------------------------------------------------------------------------------


def test_a_full_disk_ends_a_run_in_a_sentence(material, tmp_path, ranks=2):
    """No file may grow as large as a checkpoint is: process 0 fails in writing, and the other hears of it."""
    output = tmp_path / "full"
    path = recipe(material, output)
    finish(material, output, "train", path, "--set", "train.steps=4", ranks=ranks)
    longer = ("--set", "train.steps=12")
    limit = (output / checkpoint.FILE).stat().st_size - 1000
    said = finish(material, output, "train", path, "--resume", output, *longer, ranks=ranks, code=1, limit=limit)
    assert "cannot be written" in complaint(said) and "make room and resume" in said
    assert not list(output.glob("*.tmp"))
    assert checkpoint.check(output, json.loads(_header(output)["facts"])) == 4
    finish(material, output, "train", path, "--resume", output, *longer, ranks=ranks)
    assert sorted(losses(output)) == list(range(STEPS))  # of other losses: the first steps' schedule was a shorter one


def _header(output):
    from safetensors import safe_open

    with safe_open(str(output / checkpoint.FILE), "pt") as file:
        return file.metadata()


def test_a_disk_too_full_for_the_log_ends_in_a_sentence(material, tmp_path):
    output = tmp_path / "log"
    path = recipe(material, output, train__checkpoint_every=100, train__steps=400)
    said = finish(material, output, "train", path, code=1, limit=9000)
    assert "log.jsonl" in complaint(said) or "cannot be written" in complaint(said)


# Samples --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def samples(tmp_path):
    """Messages with pictures in files, one picture a sample, in their order."""
    directory = tmp_path / "samples"
    directory.mkdir()
    rows = []
    for i in range(40):
        Pillow.new("RGB", (24, 24), (i * 6, 255 - i * 6, 40)).save(directory / f"{i:02d}.png")
        asked = [{"type": "image", "image": f"{i:02d}.png"}, {"type": "text", "text": "What?"}]
        turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": f"Number {i}."}]
        rows.append(json.dumps({"id": f"m{i}", "messages": turns}))
    (directory / "messages.jsonl").write_text("\n".join(rows) + "\n")
    return directory


def of_files(material, output, samples, **changes):
    data = {"sets": [{"path": str(samples / "messages.jsonl")}]}
    return recipe(material, output, data=data, train__row_tokens=120, train__steps=200, **changes)


@pytest.mark.parametrize(("how", "ranks"), [("gone", 1), ("broken", 2)])
def test_a_picture_that_goes_or_breaks_ends_a_run_with_its_name_and_a_checkpoint(
    material, tmp_path, samples, how, ranks
):
    output = tmp_path / "out"
    path = of_files(material, output, samples, train__checkpoint_every=100)
    kept = {file: file.read_bytes() for file in samples.glob("*.png")}
    children = start(material, output, "train", path, ranks=ranks)
    until = time.monotonic() + 120
    while len(lines(output)) < 2 and time.monotonic() < until:
        time.sleep(0.001)
    for file, data in kept.items():
        if how == "gone":
            file.unlink()
        else:
            file.write_bytes(data[:40])
    assert [child.result() for child in children] == [1] * ranks
    said = "".join(output.with_suffix(f".{rank}.err").read_text() for rank in range(ranks))
    sentence = complaint(said)
    assert ".png" in sentence and "The checkpoint in" in sentence
    step = int(sentence.rpartition("is of step ")[2].rstrip("."))
    assert len(losses(output)) == step < 200
    for file, data in kept.items():
        file.write_bytes(data)
    finish(material, output, "train", path, "--resume", output, "--set", f"train.steps={step + 2}", ranks=ranks)
    assert sorted(losses(output)) == list(range(step + 2))


def test_a_record_that_is_no_sample_ends_a_run_with_its_name(material, tmp_path, samples):
    output, file = tmp_path / "out", samples / "messages.jsonl"
    rows = file.read_text().splitlines()
    rows[25] = '{"id": "m25", "messages": [{"role": "user", "content": "Why?"}]}'
    file.write_text("\n".join(rows) + "\n")
    said = finish(material, output, "train", of_files(material, output, samples), code=1)
    assert "m25" in complaint(said) or "line 26" in complaint(said)


def test_a_shard_that_goes_while_a_run_reads_it_changes_nothing(material, whole, tmp_path):
    """Features of scenes are mapped when a run begins; a removed file lives as long as somebody reads it."""
    output = tmp_path / "shards"
    children = start(material, output, "train", recipe(material, output, data__seed=9))
    until = time.monotonic() + 120
    while len(lines(output)) < 2 and time.monotonic() < until:
        time.sleep(0.001)
    for file in (material[2]).rglob("0000*.npy"):
        file.unlink()
    assert [child.result() for child in children] == [0]
    again = tmp_path / "again"
    finish(material, again, "train", recipe(material, again, data__seed=9))  # computes them anew
    assert losses(again) == losses(output) and np.isfinite(list(losses(output).values())).all()
