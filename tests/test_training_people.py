"""Recordings of people to learn from: the file of the game, and what of its subtitles is surely said."""

from __future__ import annotations

import io
import re
import struct
import wave

import numpy as np
import pytest

from sensorium import hub
from sensorium.errors import SensoriumError
from sensorium.training.data import amazon_queen, people, spoken_questions

SAID = "I'm here, I look over there. Hey you, is that it? Stop, what are you at, the boat? It is my ID, a course."
WORDS = set(re.findall("[a-z']+", SAID.lower()))


def text(value: str, at: int, align: int) -> bytes:
    """A text of the game at a place: its length, itself, and what fills it up; nothing fills up an empty one."""
    data = bytes([len(value)]) + value.encode("cp437")
    return data + bytes(-(at + len(data)) % align) if value else data


def dialogue(joe: list[tuple[int, str]], other: list[tuple[int, str]], again: tuple[str, str]) -> bytes:
    body = bytearray(32 + 96)  # a tree of one level
    places = []
    for lines in (joe, other):
        places.append(len(body))
        for number, said in lines:
            body += struct.pack(">hh", 0, number)
            body += text(said, len(body), 4)
    places.append(len(body))
    for said in again:
        body += text(said, len(body), 2)
    body[:10] = struct.pack(">5h", -1, 1, 7, len(joe), len(other))
    body[22:28] = struct.pack(">3H", places[1], 0, places[2])
    return bytes(20) + bytes(body)


def scene(said: list[str]) -> bytes:
    body = bytearray(struct.pack(">3h3H", 0, -len(said), 0, 0, 12, 0))
    for each in ("*FL", *said):
        body += text(each, len(body), 2)
    return bytes(20) + bytes(body)


def game(members: dict[str, bytes]) -> bytes:
    begin = 15 + 21 * len(members)
    table, bodies = b"", b""
    for name, body in members.items():
        table += struct.pack(">12sBII", name.encode(), 1, begin + len(bodies), len(body))
        bodies += body
    return b"QTBLCEM10\0\0\0\1" + struct.pack(">H", len(members)) + table + bodies


@pytest.fixture
def queen(tmp_path):
    """A game of one dialogue, one scene and two remarks."""
    sound = io.BytesIO()
    with wave.open(sound, "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes((np.sin(np.arange(800)) * 9000).astype("<i2").tobytes())
    recorded = ("07000AJ1", "07001FP1", "07001FP2", "07001FP4", "07XXXXP1", "C1A__031", "C1A__033", "JOE00421")
    members = {
        "BOB2.DOG": dialogue(
            [(9, "Hey, you*0"), (10, "Are you there?*01")],
            [(30, "Stop."), (31, "Look at that!*01Never.*GDStop.*FRHere!")],
            ("Hey you.", ""),
        ),
        "C1A.CUT": scene(["", "*FR*01", "*15What is that?*XY00(237,112)It's my boat.*01"]),
        "QUEEN2.JAS": b"Nobody recorded this*24\r\nOver here!*24\r\n",
        **{f"{name}.SB": sound.getvalue() for name in recorded},
    }
    path = tmp_path / "queen.1c"
    path.write_bytes(game(members))
    return path


def test_a_stretch_of_a_line_goes_with_its_recording(queen):
    assert [(line.name[:-3], line.text, line.speaker) for line in amazon_queen.lines(queen)] == [
        ("07000AJ1", "Are you there?", "joe"),
        ("07001FP1", "Look at that!", "bob"),
        ("07001FP4", "Here!", "bob"),
        ("07XXXXP1", "Hey you.", "bob"),
        ("C1A__033", "It's my boat.", "scene c1a"),
        ("JOE00421", "Over here!", "joe"),
    ]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"RIFF" + data[4:],
        lambda data: data[:60],
        lambda data: data[:9],
        lambda data: data[:15] + b"\xff" + data[16:],
    ],
)
def test_another_file_is_refused(queen, damage):
    queen.write_bytes(damage(queen.read_bytes()))
    with pytest.raises(SensoriumError, match="package"):
        amazon_queen.lines(queen)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("...look at that...", "Look at that."),
        ("What are you?!!", "What are you?"),
        ("Look... it IS my ID,", "Look, it is my ID."),
        ("I'M here, I'm there!!", "I'm here, I'm there!"),
        ('It is the "boat^_"', "It is the boat."),
        ("Look at the Zorblax, you.", "Look at the Zorblax, you."),
        ("Unga chunga, look!", ""),
        ("STOP! LOOK! There", ""),
        ("Look at 24 of my boat", ""),
        ("Stop!", ""),
        ("<gulp>", ""),
        ("...", ""),
        ("", ""),
    ],
)
def test_what_a_subtitle_says(written, said):
    assert people.sentence(written, WORDS.__contains__) == said


def test_recordings_leave_out_what_is_named_and_what_is_asked_in_tests(queen, monkeypatch, tmp_path):
    left_out = tmp_path / "left_out.txt"
    left_out.write_text("07001FP1.SB\n")
    monkeypatch.setattr(people, "LEFT_OUT", left_out)
    monkeypatch.setattr(people, "_words", lambda: frozenset(WORDS | {"it's"}))
    monkeypatch.setattr(people.hub, "fetch", lambda part: queen)
    monkeypatch.setattr(people.spoken_questions, "repeats_a_test", lambda text: "boat" in text)
    found = people.recordings()
    assert [(each.text, each.speaker) for each in found] == [
        ("Are you there?", "adventure joe"),
        ("Hey you.", "adventure bob"),
        ("Over here!", "adventure joe"),
    ]
    sound = found[0].sound()
    assert sound.shape == (800,) and sound.dtype == np.float32 and np.abs(sound).max() > 0.2


def test_the_real_recordings_are_many_and_none_is_of_the_evaluation(monkeypatch):
    from sensorium.evaluation import human_voices

    monkeypatch.setenv("SENSORIUM_OFFLINE", "1")
    try:
        found, heard = people.recordings(), human_voices.recordings()
    except SensoriumError as error:
        pytest.skip(f"the cache has not all recordings: {error}")
    assert len(found) > 5000 and len({each.speaker for each in found if "scene" not in each.speaker}) > 20
    bare = [re_bare(each.text) for each in found]
    assert not set(bare) & {re_bare(each.text) for each in heard}
    assert not any(spoken_questions.repeats_a_test(each.text) for each in found[:300])
    assert 0.5 < len(found[0].sound()) / 16_000 < 8
    assert {each.path for each in found} == {hub.fetch(people.PACKAGES["adventure"])}


def re_bare(said: str) -> str:
    """A text without its signs."""
    return "".join(sign for sign in said.lower() if sign.isalpha() or sign == " ")
