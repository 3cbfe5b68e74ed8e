"""`sensorium search`: right order, incremental index, broken files, many at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image as Pillow

import tiny_clip
from sensorium.cli import run
from sensorium.errors import SensoriumError, UsageError
from sensorium.tasks.search import bring_up_to_date, index_path, read_index, search
from sensorium.two_tower import TwoTower


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tiny_clip.write(tmp_path_factory.mktemp("search-model") / "tiny-clip")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("SENSORIUM_HOME", str(tmp_path_factory.getbasetemp() / "search-home"))


@pytest.fixture
def model(directory):
    return TwoTower(directory, threads=1)


@pytest.fixture
def folder(tmp_path):
    return tiny_clip.pictures(tmp_path / "pictures")


@pytest.fixture
def sensorium(capsys, directory):
    def call(*arguments):
        code = run(["search", *map(str, arguments), "--model", str(directory)])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return call


def names(result):
    return [each.file.name for each in result.found]


def test_the_most_like_come_first(model, folder):
    result = search(model, folder, "a red apple", top=10)
    wanted = model.embed(text="a red apple")
    scores = {
        path.name: float(model.embed(path) @ wanted) for path in [*folder.glob("*.png"), *folder.glob("deep/*.png")]
    }
    assert names(result) == sorted(scores, key=lambda name: -scores[name])
    assert [each.score for each in result.found] == [pytest.approx(scores[n], abs=2e-3) for n in names(result)]
    assert (result.pictures, result.encoded, result.skipped) == (4, 4, {})
    assert len(search(model, folder, "a red apple", top=2).found) == 2


def test_a_picture_finds_itself(model, folder):
    for name in ("red", "green", "white"):
        assert names(search(model, folder, image=folder / f"{name}.png", top=1)) == [f"{name}.png"]


def test_only_what_is_new_or_changed_is_encoded(model, folder):
    assert search(model, folder, "a").encoded == 4
    assert search(model, folder, "a").encoded == 0
    Pillow.new("RGB", (20, 20), (10, 10, 10)).save(folder / "black.jpg")
    Pillow.new("RGB", (20, 20), (240, 220, 20)).save(folder / "red.png")
    (folder / "white.png").unlink()
    result = search(model, folder, image=folder / "red.png", top=9)
    assert (result.encoded, result.pictures) == (2, 4)
    assert names(result)[0] == "red.png" and "white.png" not in names(result)
    fresh = search(model, folder, image=folder / "red.png", top=9, index=folder.parent / "fresh.npz")
    assert [(e.file, e.score) for e in fresh.found] == [(e.file, e.score) for e in result.found]


def test_an_index_that_is_fresh_opens_no_encoder_of_pictures(directory, model, folder):
    search(model, folder, "a")
    other = TwoTower(directory)
    other.image_encoder.get = None  # type: ignore[method-assign]
    assert search(other, folder, "a").pictures == 4


def test_broken_pictures_are_skipped_noted_and_not_tried_again(model, folder, sensorium):
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff not a picture")
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.txt").write_text("no picture")
    (folder / ".hidden.png").write_bytes((folder / "red.png").read_bytes())
    (folder / "gone.png").symlink_to("nowhere")
    code, out, err = sensorium(folder, "a red apple")
    assert code == 0 and len(out.splitlines()) == 4
    assert err.count("\n") == 1 and "2 pictures cannot be read" in err
    result = search(model, folder, "a")
    assert result.encoded == 0 and set(result.skipped) == {"broken.jpg", "empty.png"}
    Pillow.new("RGB", (20, 20)).save(folder / "empty.png")
    assert set(search(model, folder, "a").skipped) == {"broken.jpg"}


def test_json(sensorium, folder):
    code, out, err = sensorium(folder, "two dogs", "--json", "--top", "2")
    value = json.loads(out)
    assert (code, err) == (0, "")
    assert set(value) == {"query", "directory", "pictures", "encoded", "results", "skipped"}
    assert len(value["results"]) == 2 and set(value["results"][0]) == {"file", "score"}
    code, out, _ = sensorium(folder, "-a", folder / "red.png", "--json")
    assert code == 0 and json.loads(out)["results"][0]["file"].endswith("red.png")


def test_an_empty_folder(sensorium, tmp_path):
    (tmp_path / "none").mkdir()
    code, out, err = sensorium(tmp_path / "none", "a")
    assert (code, out) == (0, "") and "holds no pictures" in err
    assert json.loads(sensorium(tmp_path / "none", "a", "--json")[1])["results"] == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["FOLDER"],
        ["FOLDER", ""],
        ["FOLDER", "   "],
        ["FOLDER", "a", "--top", "0"],
        ["FOLDER", "a", "--top", "-1"],
        ["FOLDER", "a", "--top", "abc"],
        ["FOLDER", "x" * 3000],
        ["nowhere", "a"],
        ["x" * 5000, "a"],
        ["FOLDER/red.png", "a"],
        ["FOLDER", "a", "-a", "FOLDER/red.png"],
        ["FOLDER", "-a", "nowhere.png"],
        ["FOLDER", "a", "--index", "FOLDER"],
    ],
)
def test_wrong_calls(sensorium, folder, arguments):
    code, out, err = sensorium(*(str(a).replace("FOLDER", str(folder)) for a in arguments))
    assert code in (1, 2) and out == "" and len(err.splitlines()) == 1 and err.startswith("sensorium: ")
    if "--top" in arguments:
        wanted = "a whole number" if "abc" in arguments else "1 or more"
        assert err == f"sensorium: --top takes {wanted}; see `sensorium search --help`.\n"


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"x" * 500])
def test_a_damaged_index_is_made_anew(model, folder, data):
    search(model, folder, "a")
    place = index_path(model, folder)
    whole = place.read_bytes()
    for damage in (data, whole[: len(whole) // 2], whole[:40] + data + whole[60:]):
        place.write_bytes(damage)
        assert search(model, folder, "a").pictures == 4
        assert read_index(place, model.identity()) is not None


def test_an_index_of_another_model_is_not_used(model, folder, tmp_path):
    other = TwoTower(tiny_clip.write(tmp_path / "other", seed=5))
    place = tmp_path / "index.npz"
    assert search(model, folder, "a", index=place).encoded == 4
    assert search(other, folder, "a", index=place).encoded == 4
    assert index_path(model, folder) != index_path(other, folder)


def test_an_interrupt_keeps_what_was_written(model, folder, monkeypatch):
    from sensorium.tasks import search as task

    monkeypatch.setattr(task, "_SAVE_EVERY", 1)
    seen = []

    def stop(done, total):
        seen.append(done)
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(model, folder, "a", progress=stop)
    assert search(model, folder, "a").encoded == 2  # the third was encoded, and not written yet


def test_an_index_that_cannot_be_written(model, folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SensoriumError, match="cannot be written"):
        search(model, folder, "a", index=tmp_path / "file" / "index.npz")
    with pytest.raises(UsageError):
        search(model, folder)


def test_no_file_of_another_kind_is_overwritten(sensorium, folder, tmp_path):
    notes = tmp_path / "notes.txt"
    notes.write_text("my own")
    os.mkfifo(tmp_path / "pipe")
    np.savez(tmp_path / "other.npz", vectors=np.zeros(3))
    for place, reason in (
        (notes, "no index of pictures"),
        (tmp_path / "other.npz", "no index of pictures"),
        (tmp_path / "pipe", "no regular file"),
        (tmp_path, "it is a directory"),
        (tmp_path / "gone" / "x.npz", "gone does not exist"),
    ):
        code, out, err = sensorium(str(folder), "a", "--index", str(place))
        assert code == 2 and out == "" and reason in err
    before = {notes, tmp_path / "pipe", tmp_path / "other.npz"}
    assert before == set(tmp_path.iterdir()) - {folder}
    assert sensorium(str(folder), "a", "--index", str(tmp_path / "mine.npz"))[0] == 0
    assert {tmp_path / "mine.npz"} == set(tmp_path.iterdir()) - {folder} - before  # and no lock beside it
    assert notes.read_text() == "my own" and (tmp_path / "pipe").is_fifo()


def test_many_threads_at_once_agree(model, folder):
    with ThreadPoolExecutor(20) as pool:
        results = list(pool.map(lambda _: search(model, folder, "a red apple"), range(20)))
    assert len({tuple(names(r)) for r in results}) == 1
    assert sum(r.encoded for r in results) == 4  # one of them encoded, once


def test_processes_at_once_agree(directory, folder):
    command = [sys.executable, "-m", "sensorium", "search", str(folder), "a", "--json", "--model", str(directory)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) for _ in range(3)]
    found = [json.loads(process.communicate()[0]) for process in running]
    assert all(process.returncode == 0 for process in running)
    assert sum(each["encoded"] for each in found) == 4
    assert len({json.dumps(each["results"]) for each in found}) == 1


def test_the_index_is_small(model, folder):
    kept, _ = bring_up_to_date(model, folder, index_path(model, folder))
    assert kept.vectors.shape == (4, tiny_clip.SPACE)
    np.testing.assert_allclose(np.linalg.norm(kept.vectors, axis=1), 1, atol=1e-3)
