"""Bytes from a path, a buffer or a stream, never more than the limit and never from a pipe or a device."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from sensorium.errors import SensoriumError

_PIECE = 1 << 20
_IN_MEMORY = 16 << 20  # of a stream that is kept until it is decoded; more goes to a temporary file


def readable_size(size: int) -> str:
    """A number of bytes for people: "64 MiB", "1.5 kB"."""
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size} bytes"


def shown(name: object) -> str:
    """A name as it may stand in a message: printable, on one line, not endless."""
    text = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in str(name))
    return text if len(text) <= 200 else f"{text[:100]}...{text[-90:]}"


def read_bytes(
    src: str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes], max_bytes: int
) -> tuple[bytes, str]:
    """The bytes of ``src`` and the name to use for it in messages.

    A path must name a regular file: pipes, devices and sockets could block or never end. Addresses are not fetched.

    Raises:
        SensoriumError: it does not exist, is no regular file, cannot be read, is empty or too large.
    """
    if isinstance(src, (bytes, bytearray, memoryview)):
        data, label = bytes(src) if len(src) <= max_bytes else b"", "The data"
        too_large = len(src) > max_bytes
    elif isinstance(src, (str, os.PathLike)):
        data, label = _read_path(src, max_bytes)
        too_large = len(data) > max_bytes
    else:
        label = _stream_label(src)
        data = b"".join(_pieces(src, label, max_bytes))
        too_large = len(data) > max_bytes
    if too_large:
        raise too_large_error(label, None, max_bytes)
    if not data:
        raise _empty_error(label)
    return data, label


@contextlib.contextmanager
def open_seekable(
    src: str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes], max_bytes: int
) -> Iterator[tuple[IO[bytes], str]]:
    """A file that can be read from any place, and the name to use for it; for media too large to be held in memory.

    A path is opened and read as it is needed; a stream is first written to a temporary file, up to the limit.

    Raises:
        SensoriumError: as of :func:`read_bytes`.
    """
    if isinstance(src, (bytes, bytearray, memoryview)):
        data, label = read_bytes(src, max_bytes)
        yield io.BytesIO(data), label
    elif isinstance(src, (str, os.PathLike)):
        label = _path_label(src)
        with _path_errors(label):
            opened = _open_path(src, label, max_bytes)
        with opened:
            if not os.fstat(opened.fileno()).st_size:
                raise _empty_error(label)
            yield opened, label
    else:
        label = _stream_label(src)
        with contextlib.ExitStack() as stack:
            handle: IO[bytes] = io.BytesIO()
            for piece in _pieces(src, label, max_bytes):
                if isinstance(handle, io.BytesIO) and handle.tell() + len(piece) > _IN_MEMORY:
                    held = handle.getbuffer()
                    handle = stack.enter_context(tempfile.TemporaryFile())
                    handle.write(held)
                handle.write(piece)
            if handle.tell() > max_bytes:
                raise too_large_error(label, None, max_bytes)
            if not handle.tell():
                raise _empty_error(label)
            handle.seek(0)
            yield handle, label


def too_large_error(label: str, size: int | None, max_bytes: int) -> SensoriumError:
    """The sentence for a file over the limit."""
    has = f"has {readable_size(size)}, " if size is not None else "has "
    return SensoriumError(f"{label} {has}more than the {readable_size(max_bytes)} that are read; give a smaller file.")


def _empty_error(label: str) -> SensoriumError:
    return SensoriumError(f"{label} is empty; give a file that has something in it.")


def _stream_label(src: object) -> str:
    name = getattr(src, "name", None)
    return "Standard input" if name == "<stdin>" else shown(name) if isinstance(name, str) else "The stream"


def _path_label(src: str | os.PathLike[str]) -> str:
    return shown(os.fsdecode(os.fspath(src)))


def _read_path(src: str | os.PathLike[str], max_bytes: int) -> tuple[bytes, str]:
    label = _path_label(src)
    with _path_errors(label), _open_path(src, label, max_bytes) as handle:
        return handle.read(max_bytes + 1), label


def _open_path(src: str | os.PathLike[str], label: str, max_bytes: int) -> Any:
    text = os.fsdecode(os.fspath(src))
    if text.lower().startswith(("http://", "https://", "ftp://", "data:", "file://", "s3://")):
        kind = "a data URL" if text.lower().startswith("data:") else "an address"
        advice = "give the path alone" if text.lower().startswith("file:") else "save it to a file first"
        raise SensoriumError(f"{label} is {kind} and no path; {advice}, as nothing is fetched from here.")
    if not text:
        raise SensoriumError("An empty path names no file; give the path of a file.")
    _refuse_special(Path(text).stat().st_mode, label)
    # Not blocking, should the file have become a pipe since; a terminal must not become ours.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)
    handle = os.fdopen(os.open(text, flags | getattr(os, "O_CLOEXEC", 0)), "rb")
    try:
        facts = os.fstat(handle.fileno())
        _refuse_special(facts.st_mode, label)
        if facts.st_size > max_bytes:
            raise too_large_error(label, facts.st_size, max_bytes)
    except BaseException:
        handle.close()
        raise
    return handle


@contextlib.contextmanager
def _path_errors(label: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise SensoriumError(f"{label} does not exist; check the path.") from error
    except IsADirectoryError as error:
        raise SensoriumError(f"{label} is a directory; name the files in it.") from error
    except PermissionError as error:
        raise SensoriumError(f"{label} may not be read by this user; change its permissions.") from error
    except OSError as error:
        raise SensoriumError(
            f"{label} cannot be read ({error.strerror or 'input error'}); check the path and the disk."
        ) from error
    except ValueError as error:  # a NUL in the path
        raise SensoriumError(f"{label} is no path; check it for strange characters.") from error


def _refuse_special(mode: int, label: str) -> None:
    if stat.S_ISDIR(mode):
        raise SensoriumError(f"{label} is a directory; name the files in it.")
    if stat.S_ISFIFO(mode):
        raise SensoriumError(f"{label} is a pipe and no file; send its content to standard input and give - instead.")
    if not stat.S_ISREG(mode):
        raise SensoriumError(f"{label} is a device or a socket and no file; copy its content to a file first.")


def _pieces(src: IO[bytes], label: str, max_bytes: int) -> Iterator[bytes]:
    """What a stream gives, at most one byte more than the limit."""
    if not hasattr(src, "read"):
        raise SensoriumError(
            f"A value of type {type(src).__name__} is nothing that can be read; give a path, bytes or a binary stream."
        )
    size = 0
    try:
        while size <= max_bytes and (piece := src.read(min(_PIECE, max_bytes + 1 - size))):
            if not isinstance(piece, (bytes, bytearray)):
                raise SensoriumError(f"{label} is open as text; open it with mode 'rb'.")
            size += len(piece)
            yield bytes(piece)
    except (OSError, ValueError) as error:
        raise SensoriumError(f"{label} cannot be read ({type(error).__name__}); open it for reading.") from error
