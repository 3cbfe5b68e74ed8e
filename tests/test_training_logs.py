"""Further logs of a run: TensorBoard, Weights & Biases (a stand-in), and what happens when they fail or are missing."""

from __future__ import annotations

import json
import math
import sys
import types
from importlib.util import find_spec

import pytest

import tiny
import tiny_training

torch = pytest.importorskip("torch")

from sensorium.training import logs  # noqa: E402
from sensorium.training.logs.line import Progress  # noqa: E402
from sensorium.training.plot import clock, curve  # noqa: E402


def line(step, loss=1.0, **parts):
    return Progress(step, 10, loss, 0.5, 100.0, 0.1, 1.0, parts)


class Run:
    """What wandb.init returns, as far as it is used."""

    def __init__(self, store, options):
        self.store = store
        store.append(("init", options))

    def define_metric(self, name, **options):
        self.store.append(("metric", name, options))

    def log(self, numbers):
        self.store.append(("log", numbers))

    def finish(self):
        self.store.append(("finish",))


@pytest.fixture
def wandb(monkeypatch):
    """A module in wandb's place; what is called, in order."""
    calls = []
    fake = types.ModuleType("wandb")
    fake.__spec__ = types.SimpleNamespace(name="wandb")
    fake.init = lambda **options: Run(calls, options)
    fake.api = types.SimpleNamespace(api_key=None)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    return calls


def test_wandb_stays_offline_without_an_account_and_keeps_its_id(wandb, tmp_path, monkeypatch):
    for first in (0, 4):
        (opened,) = logs.open_loggers(("wandb",), tmp_path, "mine", {"lora.rank": 2}, first).values()
        opened.write(line(first, loss=math.nan, scale=3.0))
        opened.close()
    inits = [call[1] for call in wandb if call[0] == "init"]
    assert [options["mode"] for options in inits] == ["offline", "offline"]
    assert inits[0]["id"] == inits[1]["id"] and inits[0]["resume"] == "allow"
    assert inits[0]["config"] == {"lora.rank": 2} and inits[0]["name"] == "mine"
    assert ("metric", "*", {"step_metric": "step"}) in wandb
    logged = [call[1] for call in wandb if call[0] == "log"]
    assert [numbers["step"] for numbers in logged] == [0, 4] and logged[0]["scale"] == 3.0
    monkeypatch.setenv("WANDB_API_KEY", "k")
    logs.open_loggers(("wandb",), tmp_path, "mine", {}, 0)
    assert wandb[-2][1]["mode"] == "online"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    logs.open_loggers(("wandb",), tmp_path, "mine", {}, 0)
    assert wandb[-2][1]["mode"] == "disabled"


def test_a_log_that_fails_ends_alone(tmp_path, capfd):
    class Broken:
        written = 0

        def write(self, line):
            Broken.written += 1
            raise ConnectionError("no\nserver")

        def close(self):
            raise AssertionError("closed after it had failed")

    lines = logs.Logs(tmp_path, 0, None, lambda first: {"wandb": Broken()})
    for step in range(3):
        lines.write(line(step))
    lines.close()
    assert Broken.written == 1
    assert capfd.readouterr().err == "wandb failed (ConnectionError: no); the run goes on with log.jsonl.\n"
    assert [json.loads(text)["step"] for text in (tmp_path / "log.jsonl").read_text().splitlines()] == [0, 1, 2]

    def fails(first):
        raise RuntimeError("no account")

    logs.Logs(tmp_path, 0, None, fails).close()
    assert "train.log failed (RuntimeError: no account)" in capfd.readouterr().err


def test_a_missing_package_is_found_before_anything_is_loaded(tmp_path, sensorium, monkeypatch):
    """The recipe's composition does not even exist."""
    import importlib.util

    monkeypatch.setattr(
        "sensorium.training.logs.find_spec", lambda name: None if name == "wandb" else importlib.util.find_spec(name)
    )
    plan = tiny_training.recipe(tmp_path / "nowhere", tmp_path / "nothing", tmp_path / "out", train__log=["wandb"])
    code, out, err = sensorium("train", tiny_training.write_recipe(tmp_path / "r.yaml", plan))
    assert (code, out) == (1, "")
    assert "lists wandb, which is not installed; run `pip install" in err and "[logs]" in err
    plan = tiny_training.recipe(tmp_path / "nowhere", tmp_path / "nothing", tmp_path / "out", train__log=["paper"])
    code, _, err = sensorium("train", tiny_training.write_recipe(tmp_path / "r.yaml", plan))
    assert code == 2 and "tensorboard" in err


def test_a_run_writes_what_its_recipe_lists(tmp_path, sensorium, wandb, monkeypatch):
    monkeypatch.setenv("SENSORIUM_HOME", str(tmp_path / "home"))
    catalogue = tiny_training.write_catalogue(tmp_path / "pictures")
    listed = ["wandb", *(["tensorboard"] if find_spec("tensorboard") else [])]
    plan = tiny_training.recipe(tiny.write(tmp_path / "model"), catalogue, tmp_path / "out", train__log=listed)
    code, _, err = sensorium("train", tiny_training.write_recipe(tmp_path / "r.yaml", plan))
    assert code == 0 and "failed" not in err, err
    logged = [call[1] for call in wandb if call[0] == "log"]
    expected = [json.loads(text) for text in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert logged == expected and len(logged) == 6 and wandb[-1] == ("finish",)
    if "tensorboard" in listed:
        assert len(scalars(tmp_path / "out" / "tensorboard")["loss"]) == 6


def scalars(directory):
    """{tag: {step: value}} of event files; what was purged is left out."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(directory))
    read.Reload()
    return {tag: {event.step: event.value for event in read.Scalars(tag)} for tag in read.Tags()["scalars"]}


def test_tensorboard_holds_each_step_once_after_a_resumption(tmp_path):
    pytest.importorskip("tensorboard")
    for first, loss in ((0, 1.0), (3, 2.0)):
        (opened,) = logs.open_loggers(("tensorboard",), tmp_path, "mine", {}, first).values()
        for step in range(first, first + 5):
            opened.write(line(step, loss, scale=7.0))
        opened.close()
    seen = scalars(tmp_path / "tensorboard")
    assert seen["loss"] == {0: 1.0, 1: 1.0, 2: 1.0, **dict.fromkeys(range(3, 8), 2.0)}
    assert set(seen) == {"loss", "gradient_norm", "tokens_per_s", "minutes", "rate", "scale"}


# In the terminal ------------------------------------------------------------------------------------------------------


def test_a_curve_falls_with_its_values_and_is_as_wide_as_allowed():
    drawn = curve([10 - i for i in range(200)], width=30, height=4)
    assert [text.partition(" ┤")[0].strip() for text in drawn] == ["9", "", "", "-188"]
    shapes = [text.partition("┤")[2] for text in drawn]
    assert {len(shape) for shape in shapes} == {30}
    first = [next(i for i, dot in enumerate(shape) if dot != "⠀") for shape in shapes]
    assert first == sorted(first) and first[0] == 0 and first[-1] > 15


def test_a_curve_shows_steps_gaps_and_nothing():
    assert curve([]) == curve([math.nan]) == []
    assert [text.partition("┤")[2] for text in curve([1.0, 1.0], height=2)] == ["⠀", "⣀"]
    step = curve([1.0, 1.0, 0.0, 0.0], height=2)  # a fall is a line from the point before
    assert [text.partition("┤")[2] for text in step] == ["⠉⡆", "⠀⣇"]
    gap = curve([1.0, 1.0, math.nan, math.nan, 1.0, 1.0], height=2)
    assert gap[-1].partition("┤")[2] == "⣀⠀⣀"


def test_a_clock_shows_minutes_and_hours():
    assert [clock(m) for m in (0.0, 0.75, 62.05, math.inf)] == ["0:00", "0:45", "1:02:03", "?"]
