"""Which prepared graphs stay: those in use, those of other models, those that somebody else is preparing."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from sensorium.backbones.graph_cache import mark_used, prune
from sensorium.hub.paths import file_lock


def graph(home: Path, name: str, used: int, *, writer: int = 2, model: str = "a", quantization: str = "int8") -> Path:
    directory = home / name
    directory.mkdir()
    facts = {"writer": writer, "quantization": quantization, "spec": {"fingerprint": model}}
    (directory / "model.json").write_text(json.dumps(facts))
    (directory / "weights.bin").write_bytes(b"x")
    os.utime(directory, (used, used))
    return directory


def names(home: Path) -> set[str]:
    return {path.name for path in home.iterdir() if path.is_dir()}


def test_old_writers_and_the_longest_unused_go(tmp_path: Path) -> None:
    for i in range(5):
        graph(tmp_path, f"g{i}", 1000 + i)
    graph(tmp_path, "old", 9000, writer=1)
    graph(tmp_path, "other-model", 1, model="b", writer=1)
    graph(tmp_path, "exact", 1, quantization="fp32")
    (tmp_path / "broken").mkdir()
    (tmp_path / "encoder.onnx").write_bytes(b"x")
    latest = graph(tmp_path, "latest", 1)
    mark_used(tmp_path / "g0")
    removed = prune(latest, kept=3)
    assert {path.name for path in removed} == {"old", "g1", "g2", "g3"}
    assert names(tmp_path) == {"latest", "g0", "g4", "other-model", "exact", "broken"}
    assert prune(latest, kept=3) == []


def test_a_graph_that_another_process_prepares_stays(tmp_path: Path) -> None:
    latest = graph(tmp_path, "latest", 1)
    busy = graph(tmp_path, "busy", 1, writer=1)
    with file_lock(busy):
        assert prune(latest) == []
    assert prune(latest) == [busy]
    assert names(tmp_path) == {"latest"}


@pytest.mark.skipif(os.name == "nt", reason="open files cannot be removed there")
def test_an_open_graph_goes_on_working(tmp_path: Path) -> None:
    latest, old = graph(tmp_path, "latest", 1), graph(tmp_path, "old", 1, writer=1)
    with (old / "weights.bin").open("rb") as file:
        assert prune(latest) == [old]
        assert file.read() == b"x"


def test_without_facts_nothing_is_removed(tmp_path: Path) -> None:
    graph(tmp_path, "old", 1, writer=1)
    (tmp_path / "latest").mkdir()
    (tmp_path / "broken").mkdir()
    assert prune(tmp_path / "latest") == []
