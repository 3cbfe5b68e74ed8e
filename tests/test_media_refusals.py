"""What the door for images refuses: one sentence each, nothing printed, nothing decoded past a limit."""

from __future__ import annotations

import io
import os
import time
import warnings
from pathlib import Path

import pytest
from PIL import Image as Pillow

from bad_files import bad_images
from good_images import good_images
from sensorium import media
from sensorium.errors import SensoriumError
from sensorium.media import Limits, load, load_image

GOOD = good_images()
BAD = {bad.name: bad for bad in bad_images()}
SECONDS = 2.0  # of this thread on the processor, for any one file, so that a busy machine fails no test


def sentence(src, limits: Limits = media.DEFAULT) -> str:
    """The one sentence with which ``src`` is refused."""
    start = time.thread_time()
    with pytest.raises(SensoriumError) as caught:
        load_image(src, limits)
    assert time.thread_time() - start < SECONDS
    text = str(caught.value)
    assert text.endswith(".") and text.isprintable(), text
    assert "0x" not in text and "<" not in text and "Traceback" not in text, text  # no addresses of objects
    return text


def test_the_corpus_is_large():
    assert len(BAD) >= 60


@pytest.mark.parametrize("name", BAD)
def test_bad_files_give_one_sentence(name):
    import re

    text = sentence(BAD[name].data)
    assert re.search(BAD[name].says, text), text
    assert text.startswith("The data")


@pytest.mark.parametrize("limits", [Limits(max_pixels=383), Limits(max_side=23), Limits(max_bytes=100)])
@pytest.mark.parametrize("name", GOOD)
def test_limits_hold_before_anything_is_decoded(name, limits, monkeypatch):
    def decode(*_):
        raise AssertionError("it was decoded")

    monkeypatch.setattr("sensorium.media.image._opened", decode)
    if limits.max_bytes == 100 and len(GOOD[name]) <= 100:
        pytest.skip("a small file")
    assert "more than" in sentence(GOOD[name], limits)


@pytest.mark.parametrize("name", [name for name in GOOD if name.startswith(("animated", "pages"))])
def test_the_limit_of_frames(name):
    assert load_image(GOOD[name], Limits(max_frames=4)).frames == 4
    assert "more than 3 frames" in sentence(GOOD[name], Limits(max_frames=3))


def test_limits_may_be_exactly_met():
    data = GOOD["rgb.png"]
    assert load_image(data, Limits(max_bytes=len(data), max_pixels=384, max_side=24, max_frames=1))


def test_our_limits_count_and_not_pillows(monkeypatch):
    monkeypatch.setattr(Pillow, "MAX_IMAGE_PIXELS", 20)  # it would warn, and refuse twice as many
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in GOOD:
            if not name.endswith((".webp", ".tif")):  # there Pillow checks on its own, before it allocates
                load_image(GOOD[name])


def test_paths_that_name_no_file(tmp_path):
    assert "does not exist; check the path" in sentence(tmp_path / "none.png")
    assert "is a directory" in sentence(tmp_path)
    assert "is a directory" in sentence(str(tmp_path) + "/")
    (tmp_path / "dangling.png").symlink_to("none")
    assert "does not exist" in sentence(tmp_path / "dangling.png")
    (tmp_path / "empty.png").write_bytes(b"")
    assert "empty.png is empty" in sentence(tmp_path / "empty.png")
    (tmp_path / "file").write_bytes(b"x")
    assert "cannot be read" in sentence(tmp_path / "file" / "a.png")
    (tmp_path / "loop").symlink_to("loop")
    assert "cannot be read" in sentence(tmp_path / "loop")
    assert "cannot be read" in sentence("x" * 5000 + ".png")
    assert "is no path" in sentence("/tmp/a\0b.png")
    assert "empty path" in sentence("")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_pipes_and_devices_never_block(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    assert "is a pipe" in sentence(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to("pipe.png")
    assert "is a pipe" in sentence(tmp_path / "link.png")
    for device in ("/dev/zero", "/dev/null", "/dev/tty", "/dev/random"):
        if Path(device).exists():
            assert "is a device" in sentence(device)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_file_that_becomes_a_pipe_between_the_look_and_the_opening(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    os.mkfifo(path)
    regular = tmp_path / "b.png"
    regular.write_bytes(b"x")
    real = Path.stat
    monkeypatch.setattr(Path, "stat", lambda self, **options: real(regular if self == path else self, **options))
    assert "is a pipe" in sentence(path)


def test_a_file_without_permission(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(GOOD["rgb.png"])

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    assert "may not be read by this user" in sentence(path)


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    path = tmp_path / "sparse.png"
    with path.open("wb") as out:
        out.truncate(10 << 30)
    assert "has 10 GiB, more than the 64 MiB" in sentence(path)


@pytest.mark.parametrize(
    "address",
    ["http://169.254.169.254/a.png", "HTTPS://x/a.png", "file:///etc/passwd", "data:image/png;base64,AA", "s3://b/a"],
)
def test_addresses_are_never_fetched(address):
    assert "nothing is fetched" in sentence(address)


def test_names_in_messages_are_harmless(tmp_path):
    path = tmp_path / "a\n\x1b[31mred\x07.png"
    path.write_bytes(b"no image")
    text = sentence(path)
    assert "\x1b" not in text and "red" in text
    assert len(sentence(str(tmp_path / ("y" * 200) / ("z" * 200)))) < 400


class Endless(io.RawIOBase):
    """A stream without an end, in small pieces."""

    taken = 0

    def readable(self):
        return True

    def read(self, size=-1):
        self.taken += 1000
        return b"\x89PNG\r\n\x1a\n" + bytes(992)


class Failing(io.RawIOBase):
    def read(self, size=-1):
        raise OSError("the tape is torn")


def test_streams():
    endless = Endless()
    assert "more than the 97.7 KiB" in sentence(endless, Limits(max_bytes=100_000))
    assert endless.taken < 200_000
    assert "open as text" in sentence(io.StringIO("text"))
    assert "cannot be read" in sentence(Failing())
    closed = io.BytesIO(GOOD["rgb.png"])
    closed.close()
    assert "cannot be read" in sentence(closed)
    assert "is empty" in sentence(io.BytesIO())
    for nothing in (None, 5, {"image": 1}, [b"x"], object()):
        assert "nothing that can be read" in sentence(nothing)


def test_load_takes_images_and_names_the_rest():
    assert load(GOOD["rgb.png"]).width == 24
    for name in ("film.gif", "text.png"):
        with pytest.raises(SensoriumError, match=r"is audio|is video|no image"):
            load(BAD[name].data)
