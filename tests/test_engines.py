"""Engines: the same results wherever tasks run; interrupts and dead workers end in a sentence. And `sensorium features`
on top of them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import tiny
import tiny_features
import tiny_training
from sensorium.errors import SensoriumError, UsageError
from sensorium.training import engines
from sensorium.training import feature_upkeep as upkeep
from sensorium.training.features import FeatureCache
from sensorium.training.scene_store import StorePlan, build

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def cluster():
    """A Ray cluster of two workers, for all tests: starting one takes seconds."""
    pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        ray, _ = engines._connect(2)
    yield ray
    ray.shutdown()


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("SENSORIUM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SENSORIUM_OFFLINE", "1")
    return tmp_path / "home"


@pytest.fixture(params=["local", "ray"])
def engine(request):
    if request.param == "ray":
        request.getfixturevalue("cluster")
    return request.param


@contextlib.contextmanager
def interrupted_after(seconds):
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    yield
    timer.join()


def test_every_task_is_done_once(engine):
    assert sorted(engines.spread(tiny_features.double, range(7), engine=engine, workers=2)) == list(range(0, 14, 2))
    assert list(engines.spread(tiny_features.double, [], engine=engine, workers=2)) == []


def test_tasks_are_taken_as_they_are_needed():
    taken = []
    results = engines.spread(tiny_features.double, (taken.append(n) or n for n in range(100)), workers=1)
    assert [next(results) for _ in range(3)] == [0, 2, 4] and len(taken) == 3


@pytest.mark.parametrize(
    ("work", "sentence"),
    [
        (tiny_features.complain, r"^The picture \d is broken\.$"),
        (tiny_features.die, r"ended before its time.*run the command again|so run the command again"),
    ],
)
def test_what_goes_wrong_in_a_worker_is_a_sentence(engine, work, sentence):
    with pytest.raises(SensoriumError, match=sentence) as caught:
        list(engines.spread(work, range(3), engine=engine, workers=2))
    assert "\n" not in str(caught.value)


def test_a_bug_on_the_cluster_is_a_sentence(cluster):
    with pytest.raises(SensoriumError, match=r"failed \(KeyError: 0\).*same version") as caught:
        list(engines.spread(tiny_features.trip, [0], engine="ray", workers=2))
    assert "\n" not in str(caught.value)


def test_an_interrupt_does_not_wait_for_tasks(engine):
    began = time.monotonic()
    with interrupted_after(4), pytest.raises(KeyboardInterrupt):
        list(engines.spread(tiny_features.sleep, range(4), engine=engine, workers=2))
    assert time.monotonic() - began < 50


def test_an_engine_that_is_not_there(monkeypatch):
    with pytest.raises(UsageError, match="use local or ray"):
        engines.spread(tiny_features.double, [1], engine="slurm")
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SensoriumError, match=r'pip install -e "\.\[ray\]"'):
        engines.spread(tiny_features.double, [1], engine="ray")


def test_a_cluster_writes_the_bytes_that_this_machine_writes(cluster, tmp_path):
    media, part = tiny_features.pictures(tmp_path / "pictures", 14), tiny_features.encoder(tmp_path)
    written = []
    for where in ("local", "ray"):
        cache = FeatureCache.of(part, "int8", root=tmp_path / where, rows=4)
        assert cache.fill(media, part, workers=2 if where == "ray" else 1, engine=where).encoded == 14
        written.append({path.name: path.read_bytes() for path in cache.directory.glob("*.safetensors")})
    assert written[0] == written[1] and len(written[0]) == 4


def test_a_cluster_composes_the_scenes_that_this_machine_composes(cluster, tmp_path, monkeypatch):
    catalogue, part = tiny_training.write_catalogue(tmp_path / "catalogue"), tiny_features.encoder(tmp_path)
    plan = StorePlan(
        catalogue, 9, 3, {}, part.kind, part.weights, dict(part.options), part.create().spec.fingerprint, 5
    )
    written = []
    for where in ("local", "ray"):
        monkeypatch.setenv("SENSORIUM_HOME", str(tmp_path / where))
        directory = build(plan, 2 if where == "ray" else 1, engine=where)
        written.append({path.name: path.read_bytes() for path in directory.iterdir()})
    assert written[0] == written[1] and len(written[0]) == 4
    assert replace(plan, scenes=20).directory() == plan.directory()


# The command ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def recipe(tmp_path):
    """A stage on scenes, then one on two sets, one of which names a picture that is broken."""
    pytest.importorskip("torch")
    model = tiny.write(tmp_path / "model")
    for name, count in (("a", 4), ("b", 6)):  # b holds the pictures of a, too
        media = tiny_features.pictures(tmp_path / name, count)
        asked = {"type": "text", "text": "What?"}
        lines = [
            {"messages": [
                {"role": "user", "content": [{"type": "image", "image": medium.name}, asked]},
                {"role": "assistant", "content": "Noise."},
            ]}
            for medium in media
        ]  # fmt: skip
        (tmp_path / name / "set.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "b" / "5.png").write_bytes(b"no picture")
    plan = tiny_training.recipe(model, tiny_training.write_catalogue(tmp_path / "catalogue"), tmp_path / "out")
    drawn, rest = {key: plan["data"].pop(key) for key in ("catalogue", "scenes", "mix", "questions")}, plan["data"]
    sets = [{"path": str(tmp_path / name / "set.jsonl")} for name in ("a", "b")]
    plan["data"] = {**rest, **drawn}
    plan["stages"] = [
        {"name": "scenes"},
        {"name": "files", "data": {"scenes": 0, "mix": {}, "questions": {}, "sets": sets, "features": "int8"}},
    ]
    return tiny_training.write_recipe(tmp_path / "recipe.yaml", plan)


def test_a_recipe_is_filled_told_and_pruned(recipe, sensorium, engine):
    code, out, err = sensorium("features", recipe, "--engine", engine, "--workers", "2", "--set", "data.scenes=5")
    assert code == 0, err
    store, media = map(Path, out.split())
    assert len(np.load(store / "00000-5.npy")) == 5
    assert len(err.splitlines()) == 1 and "5.png" in err
    code, out, _ = sensorium("features", "--info", "--json")
    held = {entry["kind"]: entry for entry in json.loads(out)["held"]}
    assert code == 0 and set(held) == {"media", "scenes"}
    assert held["media"]["directory"] == str(media) and held["media"]["dtype"] == "int8"
    assert held["media"]["files"] == held["scenes"]["files"] == 1
    _, out, _ = sensorium("features", "--info")
    assert "int8, encoder" in out and "used 0 days ago" in out
    old = time.time() - 1e6
    os.utime(store, (old, old))
    _, out, _ = sensorium("features", "--prune", "5kB")
    assert not store.exists() and list(media.glob("*.safetensors")) and " freed" in out
    code, out, _ = sensorium("features", "--prune", "0", "--json")
    assert json.loads(out)["freed"] > 0 and not json.loads(out)["held"]


def test_training_uses_what_the_command_has_filled(recipe, sensorium, tmp_path, monkeypatch):
    broken = tmp_path / "b" / "5.png"
    broken.write_bytes((tmp_path / "a" / "0.png").read_bytes())
    options = ("--set", "data.scenes=8", "--set", "train.steps=1")
    assert sensorium("features", recipe, *options)[0] == 0
    encoders = []
    monkeypatch.setattr("sensorium.training.features.EncoderPart.create", lambda self: encoders.append(self))
    code, _, err = sensorium("train", recipe, *options)
    assert code == 0, err
    assert not encoders


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        ([], 2, "Name a recipe"),
        (["gone.yaml"], 1, "gone.yaml"),
        (["--prune", "much"], 2, "'much' is no size"),
        (["x.yaml", "--engine", "slurm"], 2, "use local or ray"),
    ],
)
def test_wrong_calls_are_one_sentence(sensorium, arguments, code, sentence):
    pytest.importorskip("torch")
    given = sensorium("features", *arguments)
    assert given[1] == "" and sentence in given[2] and len(given[2].splitlines()) == 1
    assert given[0] in (code, 2)


def test_an_interrupted_command_says_how_it_goes_on(recipe, sensorium, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("sensorium.training.feature_recipe.build", interrupt)
    code, _, err = sensorium("features", recipe)
    assert code == 130 and "the same command goes on from there" in err


def test_a_store_that_is_read_is_not_pruned(recipe, sensorium):
    from sensorium.training.scene_store import SceneStore

    _, out, _ = sensorium("features", recipe, "--set", "data.scenes=3")
    directory = Path(out.split()[0])
    store = SceneStore(directory, 3)
    upkeep.evict(directory.parent, 0, scenes=True)
    assert len(store[2][0]) and directory.exists()
    del store
    upkeep.evict(directory.parent, 0, scenes=True)
    assert not directory.exists()
