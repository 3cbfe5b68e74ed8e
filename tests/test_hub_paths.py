"""Cache directories, atomic writes and locks."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from sensorium.errors import SensoriumError, UsageError
from sensorium.hub import atomic_dir, atomic_write, cache_dir, file_lock, home, offline
from sensorium.hub.paths import remove_stale

pytest_plugins = ["hub_fixtures"]
pytestmark = pytest.mark.usefixtures("hub_home")


def test_home_follows_the_variable_and_the_platform(monkeypatch, tmp_path):
    assert home() == tmp_path / "home"
    monkeypatch.setenv("SENSORIUM_HOME", "~/models")
    assert home() == tmp_path / "user" / "models"
    monkeypatch.delenv("SENSORIUM_HOME")
    monkeypatch.setattr(sys, "platform", "linux")
    assert home() == tmp_path / "user" / ".cache" / "sensorium"
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/tmp/x")
    assert home() == Path("/var/tmp/x/sensorium")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert home() == tmp_path / "user" / ".cache" / "sensorium"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert home() == tmp_path / "user" / "Library" / "Caches" / "sensorium"
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", "/appdata")
    assert home() == Path("/appdata/sensorium")


@pytest.mark.parametrize(
    ("value", "result"),
    [("1", True), ("TRUE", True), ("yes", True), ("0", False), ("", False), ("no", False), ("off", False)],
)
def test_offline(monkeypatch, value, result):
    monkeypatch.setenv("SENSORIUM_OFFLINE", value)
    assert offline() is result


def test_cache_dir_is_made_and_stays_inside():
    assert cache_dir("a", "b") == home() / "a" / "b"
    assert (home() / "a" / "b").is_dir()
    for name in ("..", "/etc", "a/../..", "C:", "", "a\0"):
        with pytest.raises(ValueError):
            cache_dir(name)


def test_a_cache_that_cannot_be_made(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SENSORIUM_HOME", str(tmp_path / "file"))
    with pytest.raises(SensoriumError, match="SENSORIUM_HOME"):
        cache_dir("a")
    with pytest.raises(SensoriumError, match="SENSORIUM_HOME"), atomic_write(home() / "x"):
        pass
    with pytest.raises(SensoriumError, match="SENSORIUM_HOME"), file_lock(home() / "x"):
        pass


def test_atomic_write_is_all_or_nothing(tmp_path):
    path = tmp_path / "new" / "file"
    with atomic_write(path) as out:
        out.write(b"one")
        assert not path.exists()
    assert path.read_bytes() == b"one"
    with pytest.raises(KeyError), atomic_write(path, "w") as out:
        out.write("two")
        raise KeyError
    assert path.read_bytes() == b"one"
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


@pytest.mark.skipif(os.name != "posix", reason="rights of POSIX")
def test_only_files_are_written_over(tmp_path):
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for place, reason in (("directory", "is a directory"), ("pipe", "no regular file"), ("link", "no regular file")):
        with pytest.raises(SensoriumError, match=reason), atomic_write(tmp_path / place) as file:
            file.write(b"x")
    assert {"directory", "link", "pipe"} >= {path.name for path in tmp_path.iterdir()} - {"home", "user"}
    assert (tmp_path / "pipe").is_fifo() and (tmp_path / "link").is_symlink()


def test_a_place_that_is_not_the_cache_is_not_blamed_on_it(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SensoriumError, match="choose a place that you can write to"), atomic_write(tmp_path / "file/x"):
        pass
    (cache_dir("a") / "file").touch()
    with pytest.raises(SensoriumError, match="set SENSORIUM_HOME"), atomic_write(cache_dir("a") / "file" / "x"):
        pass


def test_written_files_have_the_users_usual_rights(tmp_path):
    old = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "file") as out:
            out.write(b"x")
        with atomic_dir(tmp_path / "dir") as directory:
            (directory / "x").write_text("x")
    finally:
        os.umask(old)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "dir").stat().st_mode & 0o777 == 0o750


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path, monkeypatch, number):
    def full(_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SensoriumError, match=r"full; free some space"), atomic_write(tmp_path / "file") as out:
        out.write(b"x")
    with pytest.raises(SensoriumError, match=r"full; free some space"), atomic_write(tmp_path / "file") as out:
        full(out)
    assert not list(tmp_path.glob("*file*"))


def test_the_callers_own_io_errors_pass_through(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "file"):
        (tmp_path / "none").read_bytes()


def test_atomic_dir_replaces_as_a_whole(tmp_path):
    target = tmp_path / "tree"
    for text in ("one", "two"):
        with atomic_dir(target) as directory:
            (directory / text).write_text(text)
    assert [path.name for path in target.iterdir()] == ["two"]
    with pytest.raises(KeyError), atomic_dir(target) as directory:
        (directory / "three").write_text("")
        raise KeyError
    assert [path.name for path in target.iterdir()] == ["two"]
    assert [path.name for path in tmp_path.iterdir() if path.name not in ("user", "home")] == ["tree"]


def test_a_disk_that_fills_inside_atomic_dir_is_one_sentence_and_leaves_nothing(tmp_path):
    target = home() / "graphs" / "tree"
    with pytest.raises(SensoriumError, match=r"full; free some space there, or set SENSORIUM_HOME"), atomic_dir(target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(SensoriumError, match=r"tree cannot be written \(.*SENSORIUM_HOME"), atomic_dir(target) as d:
        (d / "none" / "x").write_text("")
    with pytest.raises(FileNotFoundError), atomic_dir(target):  # the caller's own
        (tmp_path / "none").read_bytes()
    assert not list(target.parent.iterdir())


def test_what_killed_processes_left_is_removed(tmp_path):
    target = tmp_path / "graphs" / "tree"
    with atomic_dir(target) as live:
        (live / "x").write_text("x")
    for name in (".tree.abcd_123.tmp", ".tree.abcd_124.old", ".tree2.abcd_123.tmp"):
        (target.parent / name).mkdir()
        (target.parent / name / "weights.bin").write_bytes(b"x" * 99)
    remove_stale(target)
    assert sorted(path.name for path in target.parent.iterdir()) == [".tree2.abcd_123.tmp", "tree"]


def test_the_lock_excludes_threads(tmp_path):
    inside, most = [], []

    def work():
        with file_lock(tmp_path / "x"):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.01)
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 6


def test_the_lock_excludes_processes_and_dies_with_them(tmp_path):
    code = """
import sys, time
from sensorium.hub import file_lock
with file_lock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "x")], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(SensoriumError, match="Another Sensorium process"), file_lock(tmp_path / "x", timeout=0.1):
            pass
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    with file_lock(tmp_path / "x", timeout=5):
        pass


def test_a_misread_offline_switch_is_refused(monkeypatch):
    monkeypatch.setenv("SENSORIUM_OFFLINE", "banana")
    with pytest.raises(UsageError, match="'banana'; set it to 1"):
        offline()
