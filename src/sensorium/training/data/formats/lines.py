"""JSON from files of any size: line by line, or item by item of one long array. Memory is bounded by a record."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from sensorium.errors import SensoriumError
from sensorium.training.data.formats.reader import Record

MAX_RECORD = 64 << 20
"""Bytes of a line or an item; a longer one is no record of a conversation."""
_PIECE = 1 << 20
_SPACE = b" \t\r\n"


def json_lines(path: Path, start: int = 0) -> Iterator[Record]:
    """The records of a JSONL file from number ``start`` on; empty lines do not count.

    A line that is too long or no JSON is a record with an error as its value.
    """
    with opened(path) as file:
        number, line_number = -1, 0
        while line := file.readline(MAX_RECORD + 1):
            line_number += 1
            too_long = len(line) > MAX_RECORD
            if too_long and not line.endswith(b"\n"):
                _skip_line(file)
            if not line.strip():
                continue
            number += 1
            if number < start:
                continue
            where = f"{path}, line {line_number}"
            if too_long:
                limit = f"has more than {MAX_RECORD >> 20} MiB"
                yield Record(where, SensoriumError(f"the line {limit}; keep pictures in files of their own."))
            else:
                yield Record(where, parse(line))


def json_items(path: Path, start: int = 0) -> Iterator[Record]:
    """The items of a file that is one JSON array, from number ``start`` on.

    Raises:
        SensoriumError: the file is no array, is cut off, or has an item that is no JSON (what follows is lost with it).
    """
    decoder = json.JSONDecoder()
    with opened(path) as file:
        text, line, number = _Text(file, path), 1, 0
        line += text.skip()
        if text.take() != "[":
            raise SensoriumError(f"{path} is no JSON array; give a list of samples, or one sample per line (JSONL).")
        while True:
            line += text.skip()
            if text.peek() == "]":
                return
            if number:
                if text.take() != ",":
                    raise SensoriumError(f"{path}, line {line}: the list is cut off or malformed; get a whole copy.")
                line += text.skip()
            value, lines = text.value(decoder, line)
            if number >= start:
                yield Record(f"{path}, line {line}", value)
            number += 1
            line += lines


class _Text:
    """A window over the text of a file that grows when an item does not fit."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        import codecs

        self._file, self._path = file, path
        self._decode = codecs.getincrementaldecoder("utf-8-sig")()
        self._text, self._at, self._ended = "", 0, False

    def _more(self, size: int = _PIECE) -> bool:
        if self._ended:
            return False
        piece = self._file.read(size)
        self._ended = len(piece) < size
        try:
            added = self._decode.decode(piece, final=self._ended)
        except UnicodeDecodeError:
            raise SensoriumError(f"{self._path} is not UTF-8 throughout; save it as UTF-8.") from None
        self._text, self._at = self._text[self._at :] + added, 0
        return True

    def peek(self) -> str:
        """The next character, or nothing at the end."""
        while self._at >= len(self._text) and self._more():
            pass
        return self._text[self._at : self._at + 1]

    def take(self) -> str:
        """The next character, consumed."""
        found = self.peek()
        self._at += len(found)
        return found

    def skip(self) -> int:
        """Consume white space; the number of lines in it."""
        lines = 0
        while (found := self.peek()) and found in " \t\r\n":
            lines += found == "\n"
            self._at += 1
        return lines

    def value(self, decoder: json.JSONDecoder, line: int) -> tuple[Any, int]:
        """The value that begins here, and the line breaks in it."""
        size = _PIECE
        while True:
            try:
                value, end = decoder.raw_decode(self._text, self._at)
                if end < len(self._text) or not self._more():
                    lines = self._text.count("\n", self._at, end)
                    self._at = end
                    return value, lines
            except RecursionError:
                raise SensoriumError(f"{self._path}, line {line}: the item is nested too deeply.") from None
            except ValueError:
                size *= 2
                if len(self._text) - self._at > MAX_RECORD or not self._more(size):
                    raise SensoriumError(
                        f"{self._path}, line {line}: an item is no JSON, is cut off or has more than "
                        f"{MAX_RECORD >> 20} MiB; get a whole copy of the file."
                    ) from None


def parse(line: bytes) -> Any:
    """One JSON value, or the SensoriumError that it is none."""
    try:
        return json.loads(line)
    except RecursionError:
        return SensoriumError("the JSON is nested too deeply.")
    except ValueError as error:  # also a wrong encoding
        reason = getattr(error, "msg", "not UTF-8")
        return SensoriumError(f"this is no JSON ({reason}); write one object per line.")


def opened(path: Path) -> BinaryIO:
    """A regular file, open for reading. Raises SensoriumError for anything else."""
    try:
        if not path.is_file():
            raise SensoriumError(f"{path} does not exist or is no file; correct the path.")
        return path.open("rb")
    except OSError as error:
        raise SensoriumError(f"{path} cannot be read ({error.strerror}); check its permissions.") from None


def _skip_line(file: BinaryIO) -> None:
    while (piece := file.readline(_PIECE)) and not piece.endswith(b"\n"):
        pass
