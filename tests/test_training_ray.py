"""A training in two workers of Ray Train: the losses of a single process."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest

import tiny
import tiny_training
from test_training_run import complaint, losses

pytest.importorskip("torch")
needs_ray = pytest.mark.skipif(not all(map(find_spec, ("ray", "pandas"))), reason="ray[train] is not installed")


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """Two recipes that differ in their output alone."""
    monkeypatch.setenv("SENSORIUM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SENSORIUM_OFFLINE", "1")
    model, catalogue = tiny.write(tmp_path / "model"), tiny_training.write_catalogue(tmp_path / "pictures")

    def write(name, **changes):
        plan = tiny_training.recipe(model, catalogue, tmp_path / name, train__steps=4, **changes)
        return tiny_training.write_recipe(tmp_path / f"{name}.yaml", plan), tmp_path / name

    return write


@needs_ray
@pytest.mark.timeout(600)
def test_two_workers_of_ray_take_the_steps_of_one_process(recipe, sensorium):
    path, alone = recipe("alone")
    assert sensorium("train", path)[0] == 0
    path, two = recipe("two")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}
    command = [sys.executable, "-m", "sensorium.training.on_ray", path.name, "workers=2", "train.log_every=1"]
    done = subprocess.run(
        command, cwd=path.parent, env=environment, capture_output=True, text=True, check=False, timeout=500
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(two / "composition")
    one = losses(alone)
    np.testing.assert_allclose([losses(two)[step] for step in one], list(one.values()), rtol=1e-4)
    assert (two / "composition" / "manifest.json").is_file()


def test_what_cannot_be_run_on_ray_is_a_sentence(recipe, monkeypatch, capfd, tmp_path):
    from sensorium import console
    from sensorium.training import on_ray

    def call(*arguments):
        code = console.guard(lambda: on_ray.main([str(argument) for argument in arguments]))
        return code, *capfd.readouterr()

    path, _ = recipe("a")
    assert "takes a recipe" in complaint(call(), 2)
    assert "workers='none'" in complaint(call(path, "workers=none"), 2)
    monkeypatch.setattr(on_ray, "find_spec", lambda name: None)
    assert "needs Ray with its extra train" in complaint(call(path), 1)


def test_the_sentence_of_a_worker_is_found_under_what_ray_wraps_it_in():
    from sensorium.errors import SensoriumError
    from sensorium.training.on_ray import _sentence

    class Wrapped(Exception):
        def __init__(self, failures):
            super().__init__("two lines\nof Ray's")
            self.worker_failures = failures

    class Task(Exception):
        def __init__(self, cause):
            self.cause = cause

    assert _sentence(Wrapped({1: Task(SensoriumError("The picture is gone."))})) == "The picture is gone."
    assert _sentence(Wrapped({0: ValueError("odd\nthing")})) == (
        "The training on Ray failed (ValueError: odd); the workers' own logs have more."
    )
