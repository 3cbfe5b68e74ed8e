"""The lines of the adventure "Flight of the Amazon Queen" (1995): what is said, by whom, and where it is recorded.

The game is one file: a table of members, then the members. Recordings are MP3 of 16 kbit/s at 11 kHz. A line is text
with stage directions: `Hey, over here!*01Look at that...*FR`; a star ends a stretch of it, two signs behind the star
say how the figure moves, and each stretch has a recording of its own, named by what the line belongs to and a number:

    .DOG    a dialogue: lines of Joe, who is the player, and of one other person
    .CUT    a scene that plays by itself: lines of several persons, of whom the file gives no names
    .JAS    what Joe remarks on things, one a line

Numbers are big-endian. Everything is relative to the end of a header of 20 bytes, which .DOG and .CUT have.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sensorium.errors import SensoriumError

_ENTRY = struct.Struct(">12sBII")  # name, volume, offset, size
_TABLE = 15  # where the table begins
_HEADER = 20
_FIRST_REMARK = 41  # remarks 1 to 40 are numbered elsewhere
_STAR = re.compile(r"\*(?:XY\d\d\(\d+,\d+\)|(..))")  # a direction: a walk to a point, or two signs
_SILENT = ("GD", "GM")  # directions that end a stretch without a recording


@dataclass(frozen=True)
class Line:
    """A stretch of a line: as it is written, whose it is, and where in the file its recording is, in bytes."""

    name: str
    text: str
    speaker: str
    begin: int
    size: int


def lines(path: Path) -> list[Line]:
    """Everything that is said and recorded in a game file (`queen.1c`), in its order, each recording once.

    Raises:
        SensoriumError: the file is no English game with recordings in MP3, or is damaged.
    """
    data = path.read_bytes()
    if data[:9] != b"QTBLCEM10" or data[12:13] != b"\1":
        raise SensoriumError(f"{path} is not the English game with MP3; take queen.1c of the package as it is.")
    try:
        return list(_found(data))
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise SensoriumError(f"{path} is damaged ({error}); fetch the package again.") from error


def _found(data: bytes) -> Iterator[Line]:
    members = _members(data)
    seen = set()
    for name, (begin, size) in members.items():
        member = data[begin : begin + size]
        stem, _, kind = name.partition(".")
        for prefix, text, speaker in _KINDS[kind](stem, member) if kind in _KINDS else ():
            for number, said in _stretches(text):
                recording = f"{prefix}{number:X}.SB"
                if said.strip() and recording in members and recording not in seen:
                    seen.add(recording)
                    yield Line(recording, said.strip(), speaker, *members[recording])


def _members(data: bytes) -> dict[str, tuple[int, int]]:
    (count,) = struct.unpack_from(">H", data, _TABLE - 2)
    found = {}
    for index in range(count):
        name, _, begin, size = _ENTRY.unpack_from(data, _TABLE + index * _ENTRY.size)
        found[name.rstrip(b"\0").decode("ascii")] = (begin, size)
    return found


def _stretches(text: str) -> Iterator[tuple[int, str]]:
    """The stretches of a line, numbered from 1."""
    number, begin = 1, 0
    for star in _STAR.finditer(text):
        if star[1] not in _SILENT:
            yield number, text[begin : star.start()]
        number, begin = number + 1, star.end()
    yield number, text[begin:]


Lines = Iterator[tuple[str, str, str]]  # how its recordings begin, the line, the speaker


def _dialogue(stem: str, member: bytes) -> Lines:
    data = member[_HEADER:]
    levels, _, key, joes, others = struct.unpack_from(">5h", data)
    other, _, again = struct.unpack_from(">3H", data, 22)
    name = re.sub(r"\d+$", "", stem).lower()
    for letter, at, count, who in (("J", 32 + abs(levels) * 96, joes, "joe"), ("P", other, others, name)):
        for _ in range(count):
            number = struct.unpack_from(">H", data, at + 2)[0]
            text, at = _string(data, at + 4, 4)
            yield f"{key:02d}{f'{number:x}'.rjust(4, '0').upper()}{letter}", text, who
    for letter, who in (("P", name), ("J", "joe")):  # when they meet again
        text, again = _string(data, again, 2)
        yield f"{key:02d}XXXX{letter}", text, who


def _scene(stem: str, member: bytes) -> Lines:
    data = member[_HEADER:]
    (count,) = struct.unpack_from(">h", data, 2)
    (at,) = struct.unpack_from(">H", data, 8)
    _, at = _string(data, at, 2)  # how Joe stands at first
    for number in range(1, abs(count) + 1):
        if at >= len(data):
            return
        text, at = _string(data, at, 2)
        yield f"{stem.ljust(5, '_')}{number:02d}", text, f"scene {stem.lower()}"


def _remarks(stem: str, member: bytes) -> Lines:
    if stem == "QUEEN2":
        for number, text in enumerate(member.decode("cp437").split("\r\n"), _FIRST_REMARK):
            yield f"JOE{number:04d}", text, "joe"


_KINDS = {"DOG": _dialogue, "CUT": _scene, "JAS": _remarks}


def _string(data: bytes, at: int, align: int) -> tuple[str, int]:
    """A text with its length in front, and where the next one begins: after an empty one, at once."""
    length = data[at]
    end = at + 1 + length
    return data[at + 1 : end].decode("cp437"), -(-end // align) * align if length else end
