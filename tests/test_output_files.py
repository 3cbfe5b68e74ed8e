"""Where results are written: links, names of the system's own, endings, and what ends a command early."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import wave
from pathlib import Path

import pytest

from sensorium import console
from sensorium.arguments import output_file
from sensorium.errors import UsageError


def test_a_link_keeps_leading_to_its_file(tmp_path):
    real, link = tmp_path / "real.wav", tmp_path / "link.wav"
    link.symlink_to(real)  # which is not there yet
    assert output_file(link, "-o", ".wav") == real.resolve()
    real.write_bytes(b"old")
    assert output_file(link, "-o", ".wav") == real.resolve()


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert output_file(Path("x.wav"), "-o") == Path("x.wav")
    assert output_file(Path("~/x.wav"), "-o") == tmp_path / "x.wav"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("/dev/stdout", "no regular file"),
        ("/dev/null", "no regular file"),
        ("/proc/x.wav", "no regular file"),
        ("-", "takes text alone"),
        ("a.mp3", "name it a.wav"),
        (f"{'n' * 300}.wav", "name too long"),
        ("file/x.wav", "is no directory"),
        (".", "it is a directory"),
        ("loop.wav", "leads to itself"),
    ],
)
def test_what_cannot_be_written_is_said_before_the_work(tmp_path, monkeypatch, name, reason):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "loop.wav").symlink_to(tmp_path / "loop2.wav")
    (tmp_path / "loop2.wav").symlink_to(tmp_path / "loop.wav")
    with pytest.raises(UsageError, match=reason):
        output_file(Path(name), "-o", ".wav")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "loop.wav", "loop2.wav"]


def test_standard_output_redirected_to_a_file_is_no_output_file(tmp_path):
    with (tmp_path / "out").open("wb") as out:
        done = subprocess.run(
            [sys.executable, "-m", "sensorium", "speak", "Hi", "-o", "/dev/stdout"], stdout=out, stderr=subprocess.PIPE
        )
    assert done.returncode == 2 and b"no regular file" in done.stderr
    assert Path("/dev/stdout").is_symlink()


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_terminated_command_leaves_nothing_behind(tmp_path):
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom sensorium import console\n"
        "from sensorium.tasks.speak import wav_file\n\n"
        "def work():\n    with wav_file(Path('x.wav'), 24000):\n        print('begun', file=sys.stderr, flush=True)\n"
        "        time.sleep(30)\n    return 0\n\nsys.exit(console.guard(work))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None and process.stderr.readline() == "begun\n"
    assert len(list(tmp_path.iterdir())) == 1
    process.terminate()
    assert process.wait(10) == 128 + signal.SIGTERM
    assert process.stderr.read() == "" and not list(tmp_path.iterdir())


def test_the_handler_goes_with_the_command():
    before = signal.getsignal(signal.SIGTERM)
    assert console.guard(lambda: 0) == 0
    assert signal.getsignal(signal.SIGTERM) is before


def test_speech_through_a_link(tmp_path, monkeypatch):
    pytest.importorskip("hibari")
    from sensorium.cli import run

    real, link = tmp_path / "real.wav", tmp_path / "link.wav"
    real.write_bytes(b"old")
    link.symlink_to(real)
    assert run(["speak", "Hi", "-o", str(link)]) == 0
    assert link.is_symlink()
    with wave.open(str(real)) as file:
        assert file.getnframes() > 1000


def test_what_is_read_is_not_written_over(tmp_path, monkeypatch):
    question, link = tmp_path / "question.wav", tmp_path / "link.wav"
    question.write_bytes(b"sound")
    link.symlink_to(question)
    for given in (question, link):
        with pytest.raises(UsageError, match="it is what you gave to be read"):
            output_file(given, "-o", ".wav", ["missing.wav", str(question)])
    assert output_file(tmp_path / "answer.wav", "-o", ".wav", [question]) == tmp_path / "answer.wav"
    assert output_file(question, "-o", ".wav") == question
    assert question.read_bytes() == b"sound"
