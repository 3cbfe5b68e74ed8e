"""Model repositories as directories: pinned by commit and digest, fetched once, noticed when they change."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hub_server import File, Server, noise, sha256
from sensorium.errors import SensoriumError
from sensorium.hub import Folder, fetch_folder

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SOURCE = f"hf:org/name@{COMMIT}"
WANTED = ("*config.json", "model*.safetensors")


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SENSORIUM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("SENSORIUM_OFFLINE", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    bodies = {"config.json": b"{}", "model.safetensors": noise(5000), "README.md": b"x", "pytorch_model.bin": b"x"}
    with Server() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        for name, body in bodies.items():
            server.files[f"/org/name/resolve/{COMMIT}/{name}"] = File(body)
        large = {"oid": sha256(bodies["model.safetensors"]), "size": 5000, "pointerSize": 129}
        tree = [{"type": "file", "path": name, "size": len(body), "oid": "0" * 40} for name, body in bodies.items()]
        tree[1]["lfs"] = large
        tree.append({"type": "directory", "path": "onnx"})
        tree.append({"type": "file", "path": "../config.json", "size": 2, "oid": "0" * 40})
        server.files[f"/api/models/org/name/tree/{COMMIT}"] = File(json.dumps(tree).encode(), "application/json")
        yield server


def test_wanted_files_of_a_commit_are_fetched_once(repository: Server) -> None:
    path = fetch_folder(Folder(SOURCE), WANTED, progress=False)
    assert {file.name for file in path.iterdir()} == {"config.json", "model.safetensors", "seal.json"}
    asked = len(repository.requests)
    assert fetch_folder(Folder(SOURCE), WANTED, progress=False) == path
    assert len(repository.requests) == asked
    (path / "model.safetensors").unlink()
    (path / "model.safetensors").write_bytes(b"damaged")
    assert fetch_folder(Folder(SOURCE), WANTED, progress=False) == path
    assert (path / "model.safetensors").read_bytes() == noise(5000)


def test_another_file_than_the_listed_one_is_refused(repository: Server) -> None:
    repository.files[f"/org/name/resolve/{COMMIT}/model.safetensors"] = File(noise(5000, 1))
    with pytest.raises(SensoriumError, match="is refused, since the published file is not the pinned one"):
        fetch_folder(Folder(SOURCE), WANTED, progress=False)


def test_pinned_files_need_no_list_and_must_be_those(repository: Server) -> None:
    del repository.files[f"/api/models/org/name/tree/{COMMIT}"]
    pins = {"config.json": sha256(b"{}"), "model.safetensors": sha256(noise(5000))}
    assert (fetch_folder(Folder(SOURCE, pins), WANTED, progress=False) / "config.json").read_bytes() == b"{}"
    with pytest.raises(SensoriumError, match="is refused"):
        fetch_folder(Folder(SOURCE, {**pins, "config.json": "0" * 64}), WANTED, progress=False)
    with pytest.raises(SensoriumError, match="404"):
        fetch_folder(Folder(SOURCE), WANTED, progress=False)


def test_the_cache_of_huggingface_hub_serves_without_a_network(
    repository: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SensoriumError, match="never fetched and there is no network"):
        fetch_folder(Folder(SOURCE), WANTED, progress=False)
    snapshot = tmp_path / "hf/hub/models--org--name/snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_bytes(b"[]")
    path = fetch_folder(Folder(SOURCE), WANTED, progress=False)
    assert (path / "config.json").read_bytes() == b"[]"
    assert repository.requests == []


@pytest.mark.parametrize(
    ("source", "files", "says"),
    [
        ("hf:org/name@main", {}, "names a branch or a tag"),
        ("pypi:name==1", {}, "is no directory"),
        (SOURCE, {"../x": "0" * 64}, "no file name and sha256"),
        (SOURCE, {"x": "0"}, "no file name and sha256"),
    ],
)
def test_malformed_folders_are_refused(source: str, files: dict[str, str], says: str) -> None:
    with pytest.raises(SensoriumError, match=says):
        Folder(source, files)
