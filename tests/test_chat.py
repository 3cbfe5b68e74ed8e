"""`sensorium chat`: push to talk, barge-in and playback with programs of the test's own on PATH."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import tiny
from sensorium.errors import SensoriumError
from sensorium.messages import Message
from sensorium.turns import State, programs
from sensorium.turns.activity import RATE
from sensorium.turns.chat import LISTENING, NOTHING, Chat
from sensorium.turns.microphone import Microphone
from sensorium.turns.player import Player
from test_turns import WORDS, FakeEngine, loud, quiet, voice

RECORD = """
import os, sys, time
here = os.path.dirname(os.path.abspath(__file__))
open(here + "/recorded", "a").write(" ".join(sys.argv[1:]) + "\\n")
open(here + "/pids", "a").write(f"{os.getpid()}\\n")
sys.stdout.buffer.write(open(here + "/speech.pcm", "rb").read())
sys.stdout.buffer.flush()
time.sleep(60)
"""
PLAY = """
import os, sys
here = os.path.dirname(os.path.abspath(__file__))
open(here + "/pids", "a").write(f"{os.getpid()}\\n")
with open(here + "/played.pcm", "ab", buffering=0) as file:
    while data := sys.stdin.buffer.read(480):
        file.write(data)
"""
FAIL = 'import sys\nsys.exit("audio open error: no soundcards found...")'


def program(directory: Path, name: str, text: str) -> None:
    path = directory / name
    path.write_text(f"#!{sys.executable} -IS\n{text}")
    path.chmod(0o755)


@pytest.fixture
def room(tmp_path, monkeypatch):
    """A directory that is all of PATH, with a microphone that hears a second of voice, and a loudspeaker."""
    path = tmp_path / "bin"
    path.mkdir()
    program(path, "arecord", RECORD)
    program(path, "aplay", PLAY)
    (path / "speech.pcm").write_bytes(programs.to_pcm(np.concatenate([quiet(0.2), voice(1), quiet(0.3)])))
    monkeypatch.setenv("PATH", str(path))
    yield path
    assert not alive(path)
    assert not [t.name for t in threading.enumerate() if t.name in ("turns", "player", "microphone")]


def alive(room):
    """Programs that still run."""
    pids = (room / "pids").read_text().split() if (room / "pids").exists() else []
    return [pid for pid in pids if Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text()]


class Terminal:
    """Lines for `Chat.run`, each given when the conversation has come so far as it asks for."""

    def __init__(self, *script):
        self.script, self.shown, self.hints, self.complaints = script, [], [], []

    def __iter__(self):
        for item in self.script:
            if callable(item):
                deadline = time.monotonic() + 100
                while not item():
                    assert time.monotonic() < deadline, "the conversation does not go on"
                    time.sleep(0.005)
            else:
                yield item + "\n"

    def chat(self, engine, microphone=None, **options):
        return Chat(
            engine, microphone, self.shown.append, self.hints.append, self.complaints.append, detector=loud, **options
        )

    def talk(self, engine, microphone=None, *, wait=True, **options):
        with self.chat(engine, microphone, **options) as chat:
            chat.run(self, wait=wait)
            return [message.text or message.media[0] for message in chat.turns.messages]


def test_typed_messages_are_answered_and_said(room):
    terminal = Terminal("Hello", "Again")
    history = terminal.talk(FakeEngine())
    said = " ".join(WORDS)
    assert history == ["Hello", said, "Again", said] and "".join(terminal.shown) == f"{said}\n" * 2
    assert len((room / "played.pcm").read_bytes()) == 2 * 2 * 100 * (len(said) + 1)
    assert terminal.complaints == []


def test_enter_records_and_enter_sends(room):
    terminal = Terminal("", "")
    sound, answer = terminal.talk(FakeEngine(), Microphone())
    assert answer == " ".join(WORDS) and terminal.hints == [LISTENING] and terminal.complaints == []
    assert sound.rate == RATE and len(sound.samples) == round(0.2 * RATE / 512) * 512 + len(voice(1)) + 3200
    assert np.abs(sound.samples[4000:16_000] - 0.5).max() < 1e-3
    assert "-r 16000" in (room / "recorded").read_text()


def test_samples_that_come_in_halves_are_joined(room):
    halves = "sound = open(here + '/speech.pcm', 'rb').read()\nos.write(1, sound[:101])\ntime.sleep(0.05)\n"
    program(room, "arecord", RECORD.replace("sys.stdout.buffer.write(", halves + "os.write(1, sound[101:])  # "))
    pieces: list = []
    microphone = Microphone()
    microphone.start(pieces.append, pieces.append)
    wanted = programs.from_pcm((room / "speech.pcm").read_bytes())
    while sum(map(len, pieces)) < len(wanted):
        time.sleep(0.01)
    microphone.stop()
    assert np.array_equal(np.concatenate(pieces), wanted)


def test_where_nobody_spoke_nothing_is_sent(room):
    (room / "speech.pcm").write_bytes(bytes(32_000))
    terminal = Terminal("", "", "Hello")
    assert terminal.talk(FakeEngine(), Microphone())[0] == "Hello"
    assert terminal.hints == [LISTENING, NOTHING]


def test_enter_interrupts_the_answer_and_the_history_is_cut(room):
    """A word of eighty seconds is being said: what was played lies behind the word before it."""
    engine = FakeEngine(("Yes", "x" * 20_000, "end"))
    played = room / "played.pcm"
    answered = lambda: played.exists() and played.stat().st_size > 20_000  # noqa: E731
    terminal = Terminal("Hello", answered, "", "")
    with terminal.chat(engine, Microphone()) as chat:
        for number, line in enumerate(terminal):
            chat._line(line.strip())
            if number == 1:
                assert (
                    not chat._player._open
                    and chat.turns.state is State.LISTENING
                    and chat.turns.messages[-1].text == "Yes"
                )
                engine.words = ("Well",)
        assert chat.turns.wait(100)
        assert [message.text for message in chat.turns.messages] == ["Hello", "Yes", "", "Well"]
    assert played.stat().st_size < 2 * 100 * 20_000


def test_a_typed_line_takes_the_place_of_a_recording(room):
    terminal = Terminal("", "Never mind")
    assert terminal.talk(FakeEngine(), Microphone())[0] == "Never mind"


def test_without_programs_or_devices_a_sentence_says_so(room):
    program(room, "arecord", FAIL)
    with pytest.raises(SensoriumError, match=r"arecord finds no microphone \(audio open error: no soundcards found\)"):
        Microphone()
    (room / "arecord").unlink()
    with pytest.raises(SensoriumError, match="No program that records is installed"):
        Microphone()
    program(room, "aplay", FAIL)
    terminal = Terminal("Hello", "Again")
    assert len(terminal.talk(FakeEngine())) == 4
    assert len(terminal.complaints) == 1 and "aplay does not play (audio open error" in terminal.complaints[0]
    (room / "aplay").unlink()
    with pytest.raises(SensoriumError, match="No program that plays"):
        terminal.talk(FakeEngine())
    assert len(terminal.talk(FakeEngine(), player=False)) == 4


def test_a_microphone_that_dies_or_says_nothing(room):
    program(room, "arecord", RECORD.replace("time.sleep(60)", "sys.exit('unplugged')"))
    terminal = Terminal("", lambda: terminal.complaints, "Hello")
    history = terminal.talk(FakeEngine(), Microphone(), wait=False)
    assert "stopped recording (unplugged)" in terminal.complaints[0]
    assert type(history[0]).__name__ == "Audio" and "Hello" in history
    program(room, "arecord", "import time\ntime.sleep(60)")
    with pytest.raises(SensoriumError, match=r"no sound within 0\.5 seconds"):
        Microphone(wait_s=0.5)


def test_a_player_that_hangs_does_not_hold_the_conversation(room):
    program(room, "aplay", "import time\ntime.sleep(60)")
    reports: list = []
    player = Player(24_000, lambda *report: reports.append(report), reports.append)
    player.begin(1)
    player.play(1, np.zeros(24_000 * 20, np.float32))
    player.play(2, np.zeros(24_000, np.float32))  # of no answer that was begun
    time.sleep(0.3)
    began = time.monotonic()
    player.stop()
    player.close()
    assert time.monotonic() - began < 30
    assert all(turn == 1 and count < 24_000 for turn, count in reports)


def test_an_output_that_nobody_reads_ends_the_conversation(room):
    def broken(piece):
        raise BrokenPipeError

    with Chat(FakeEngine(), None, broken, print, print, detector=loud) as chat, pytest.raises(BrokenPipeError):
        chat.run(["Hello"], wait=True)


def test_errors_of_the_model_are_sentences(room):
    terminal = Terminal("Hello", "Again")
    assert terminal.talk(FakeEngine(error=SensoriumError("too long."))) == []
    assert terminal.complaints == ["too long."] * 2


# The command
# ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("chat") / "tiny", speech=True)


def command(model, home, *more):
    code = "import sys\nfrom sensorium.cli import run\nsys.exit(run(sys.argv[1:]))"
    arguments = ["chat", "--model", str(model), "--max-tokens", "4", *more]
    environment = {**os.environ, "SENSORIUM_HOME": str(home), "SENSORIUM_OFFLINE": "1"}
    return [sys.executable, "-c", code, *arguments], environment


@pytest.fixture(scope="module")
def question():
    """Real speech, as the microphone would give it."""
    hibari = pytest.importorskip("hibari")
    from sensorium.media import load_audio

    sound = hibari.Hibari()("Is there an apple in the picture?")
    return programs.to_pcm(load_audio(np.asarray(sound, np.float32), array_rate=24_000).samples)


def test_a_spoken_question_goes_through_the_command(room, model, tmp_path, question):
    """From the microphone through the encoder, the projector and the LLM to the loudspeaker."""
    (room / "speech.pcm").write_bytes(question)
    line, environment = command(model, tmp_path)
    done = subprocess.run(line, input="\n\nHello\n", capture_output=True, text=True, env=environment, timeout=200)
    assert done.returncode == 0 and len(done.stdout.splitlines()) >= 2, done.stderr
    told = [text for text in done.stderr.splitlines() if "Preparing" not in text]
    assert told == [LISTENING], done.stderr


def test_without_ears_or_voice_the_conversation_goes_on_by_text(room, model, tmp_path):
    program(room, "arecord", FAIL)
    (room / "aplay").unlink()
    line, environment = command(model, tmp_path)
    done = subprocess.run(line, input=b"Hel\xfflo\n", capture_output=True, env=environment, timeout=200)
    assert done.returncode == 0 and done.stdout.endswith(b"\n")
    told = [text for text in done.stderr.decode().splitlines() if "Preparing" not in text]
    assert len(told) == 2 and "finds no microphone" in told[0] and "No program that plays" in told[1]


TALK = """
import sys
sys.path.insert(0, {tests!r})
from sensorium import cli_chat, console
from sensorium.turns.chat import Chat
from sensorium.turns.microphone import Microphone
from test_turns import FakeEngine, loud
def talk():
    engine = FakeEngine(("Yes", "x" * 2000))
    with Chat(engine, Microphone(), console.write, cli_chat._hint, print, detector=loud) as chat:
        cli_chat._hint("ready")
        chat.run(cli_chat._lines(), wait=False)
sys.exit(console.guard(talk))
"""


@pytest.mark.parametrize("typed", ["", "\n", "Hello\n"])
def test_ctrl_c_leaves_nothing_behind(room, typed):
    """At the prompt, while recording, while answering: no child, the terminal as it was, exit code 130."""
    import termios

    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    line = [sys.executable, "-c", TALK.format(tests=str(Path(__file__).parent))]
    process = subprocess.Popen(
        line,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in a shell's background job
    )
    seen = b""

    def until(text):
        nonlocal seen
        while text not in seen:
            seen += os.read(ours, 4096)

    try:
        until(b"ready")
        os.write(ours, typed.encode())
        if typed == "\n":
            until(b"Listening;")
        elif typed:
            while not (room / "played.pcm").exists():
                time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.wait(100) == 130
        assert termios.tcgetattr(theirs) == before
        assert b"Traceback" not in seen
    finally:
        process.kill()
        process.wait()
        os.close(ours)
        os.close(theirs)


def test_the_history_that_the_model_gets_is_what_was_said(room):
    engine = FakeEngine()
    Terminal("Hello", "Again").talk(engine, messages=[Message("system", "Be brief.")])
    assert [m.text for m in engine.asked[1]] == ["Be brief.", "Hello", " ".join(WORDS), "Again"]
